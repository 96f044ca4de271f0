"""From runs to tables: one row for each run and test segment, and what may be concluded from many of them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bestiary.runs.health import summarize_log
from bestiary.runs.index import cached_parts
from bestiary.runs.intervals import interval
from bestiary.runs.store import DamagedRun, Record, Store

if TYPE_CHECKING:  # imported only where a table is built: `bestiary status` does without
    import pandas as pd

    from bestiary.training.recipe import Recipe

SOLVED = 0.99  # a task counts as solved from this selection accuracy on
QUIET = 300.0  # seconds without a measurement after which a run at work is shown as quiet
WORKS = 0.9  # a learning rate works if the mean selection accuracy over seeds reaches this


def results(store: Store, keys: Iterable[str]) -> "tuple[pd.DataFrame, list[str]]":
    """One row for each finished run and test segment, and a line about each run that cannot be read.

    Columns: the fields of the recipe; the `format` in which it was trained, which tells runs of earlier versions from
    those of today; the options of the segment's task; `right`, `asked`, `accuracy`, `loss`
    (nats per answer), `whole` (the share of sequences answered without a mistake) and the task's own scores on the
    test stream; `selection`, the last accuracy on the selection stream, mean over segments;
    `solved`, the first step at which that was 0.99; `steps`, `seconds` and `outcome`.
    """
    import pandas as pd

    keys = list(dict.fromkeys(keys))  # a run that is asked for twice is one run
    found = cached_parts(store, keys, index_parts, part="segments")
    runs = [found[key] for key in keys if key in found]
    damaged = [str(run) for run in runs if isinstance(run, DamagedRun)]
    return pd.DataFrame([row for rows in runs if not isinstance(rows, DamagedRun) for row in rows]), damaged


def index_parts(record: Record) -> dict[str, Any]:
    """What the cache keeps of every run: how far it came, and its rows if it is done. A run on text has neither rows
    nor accuracies.
    """
    curve = [] if is_on_text(record) else selection_curve(record.log)
    so_far = {"outcome": record.ended and record.ended.outcome, "pattern": pattern_text(record)}
    so_far |= {name: record.recipe[name] for name in ("dim", "rate", "seed")}
    so_far |= {"checked": record.ended is None or bool(record.ended.digests)}
    so_far |= {"step": record.log[-1]["step"] if record.log else 0, "selection": curve[-1][1] if curve else math.nan}
    scored = record.ended and not is_on_text(record)
    return {"so far": so_far, "segments": list(segment_rows(record, curve)) if scored else []}


def is_on_text(record: Record) -> bool:
    """Whether a run is one of `pretrain`, whose log holds losses and no answers."""
    return "kind" in record.recipe


REPORTED = (
    *("key", "segment", "dim", "rate", "seed", "accuracy", "asked"),
    *("selection", "solved", "steps", "seconds", "outcome"),
)  # columns of `results` that a report reads


def parts_with_report(record: Record) -> dict[str, Any]:
    """`index_parts`, and what a report reads of a finished run.

    That is its rows, selection curve, answers by distance, health and its cell's recipe as JSON. `status` does without
    it.
    """
    from bestiary.training.recipe import FORMAT

    parts = index_parts(record)
    if record.ended is None or is_on_text(record):
        return {**parts, "report": None}
    recipe = {name: value for name, value in record.recipe.items() if name not in ("rate", "seed")}
    if record.format not in (None, FORMAT):
        recipe["format"] = record.format  # so that it is another cell, which cannot be built or repeated now
    report = {
        "recipe": json.dumps(recipe),
        "rows": [{name: row[name] for name in REPORTED} for row in parts["segments"]],
        "curve": [list(point) for point in selection_curve(record.log)],
        "distances": [[place, *counts] for place, counts in distance_counts(record.log).items()],
        "health": json.loads(json.dumps(summarize_log(record.log)._asdict())),  # tuples become lists
    }
    return {**parts, "report": report}


def distance_counts(log: Iterable[Mapping[str, Any]]) -> dict[int, tuple[int, int]]:
    """Right answers and questions on the test stream by distance, in bins that begin at powers of two."""
    bins: dict[int, tuple[int, int]] = {}
    for line in log:
        if line["split"] == "test" and line["facet"] == "distance" and line["value"] > 0:
            place = 1 << (int(line["value"]).bit_length() - 1)
            right, asked = bins.get(place, (0, 0))
            bins[place] = (right + line["right"], asked + line["asked"])
    return dict(sorted(bins.items()))


def report_parts(store: Store, keys: Iterable[str]) -> "dict[str, dict[str, Any] | DamagedRun | None]":
    """By key, what a report reads of each run: None if it is not done or on text, an error if it is damaged."""
    return cached_parts(store, keys, parts_with_report, part="report")


def pattern_text(record: Record) -> str:
    """The pattern of mixers of a run, as users write it."""
    return ", ".join(part["text"] for part in record.recipe["pattern"])


def segment_rows(record: Record, curve: "Sequence[tuple[int, float]] | None" = None) -> Iterator[dict[str, Any]]:
    """The rows of a finished run in `results`, one for each test segment; `curve` is its selection curve, if known."""
    from bestiary.training.recipe import FORMAT, SPECS

    recipe, ended = record.recipe, record.ended
    curve = selection_curve(record.log) if curve is None else curve
    assert ended is not None
    tested = {line["segment"]: line for line in record.log if line["split"] == "test" and not line["facet"]}
    plain = {name: value for name, value in recipe.items() if name not in SPECS}
    for segment, task in enumerate(recipe["test"]):
        line = tested.get(segment, {"right": 0, "asked": math.nan, "loss": math.nan})  # a diverged run has none
        yield {
            **task["options"],
            **plain,
            "train": ", ".join(part["text"] for part in recipe["train"]),
            "budget": recipe["steps"],  # `steps` are those that were trained
            "pattern": pattern_text(record),
            "key": record.key,
            "format": record.format or FORMAT,
            "task": task["text"],
            "segment": segment,
            "right": line["right"],
            "asked": line["asked"],
            "accuracy": line["right"] / line["asked"],
            "loss": line["loss"] / line["asked"],
            **extra_scores(line),
            "selection": curve[-1][1] if curve else math.nan,
            "solved": next((step for step, share in curve if share >= SOLVED), math.nan),
            "steps": record.log[-1]["step"] if record.log else 0,
            "seconds": ended.seconds,
            "outcome": ended.outcome,
        }


def extra_scores(line: dict[str, Any]) -> dict[str, float]:
    """`whole`, the share of sequences answered without a mistake, and the task's own scores, per answer."""
    sums = dict(line.get("extra", line.get("further", {})))  # "further" in logs before 0.2
    rows, whole = sums.pop("rows", math.nan), sums.pop("whole", math.nan)
    return {"whole": whole / rows} | {score: total / line["asked"] for score, total in sums.items()}


def selection_curve(log: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Accuracy on the selection stream by step, the mean over segments."""
    shares: dict[int, list[float]] = {}
    for line in log:
        if line["split"] == "selection" and not line["facet"]:
            shares.setdefault(line["step"], []).append(line["right"] / line["asked"])
    return [(step, sum(found) / len(found)) for step, found in shares.items()]


def facets(store: Store, keys: Iterable[str], facet: str) -> "pd.DataFrame":
    """One row for each run, test segment and value of a facet: `right`, `asked`, `accuracy`, `loss` per answer."""
    import pandas as pd

    rows = []
    for key in dict.fromkeys(keys):
        record = store.read(key)
        for line in record.log:
            if line["split"] == "test" and line["facet"] == facet:
                shares = {"accuracy": line["right"] / line["asked"], "loss": line["loss"] / line["asked"]}
                rows.append(
                    {"key": key, "pattern": pattern_text(record), "dim": record.recipe["dim"], **line, **shares}
                )
    return pd.DataFrame(rows)


def best(table: "pd.DataFrame", *, group: Sequence[str], over: str = "rate") -> "pd.DataFrame":
    """The rows of each group at the value of `over` with the highest mean accuracy on the *selection* stream.

    Adds `tried`, the number of values, and `window`, the decades between the least and the greatest value that works,
    with a mean selection accuracy of at least 0.9 (0 if one of several works, NaN if none does or only one was tried).
    Runs of other formats are other groups.
    """
    import pandas as pd

    kept = []
    for _, rows in table.groupby(with_format(table, group), sort=False, dropna=False):
        scores = diverged_as_zero(rows).groupby(over)["selection"].mean()
        working = scores.index[scores >= WORKS]
        window = math.log10(working.max() / working.min()) if len(working) and len(scores) > 1 else math.nan
        kept.append(rows[rows[over] == scores.idxmax()].assign(tried=len(scores), window=window))
    return pd.concat(kept) if kept else table


def with_format(table: "pd.DataFrame", group: Sequence[str]) -> list[str]:
    """The columns of a group, and the format if a table has several: runs trained in another way are no seeds."""
    several = "format" in table and table["format"].nunique() > 1 and "format" not in group
    return [*group, "format"] if several else list(group)


def diverged_as_zero(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with a selection accuracy of 0, and unsolved, for runs that diverged, however good they were before."""
    diverged = table["outcome"] == "diverged"
    solved = {"solved": table["solved"].mask(diverged)} if "solved" in table else {}
    return table.assign(selection=table["selection"].fillna(0.0).mask(diverged, 0.0), **solved)


def curve(table: "pd.DataFrame", *, group: Sequence[str], value: str = "accuracy") -> "pd.DataFrame":
    """Mean over seeds of each group, with a 95 % interval, the number of seeds and of answers.

    `solves` counts the seeds that reached a selection accuracy of 0.99; `solved` is the median step at which they did,
    missing unless all did; `seconds` is the mean time of a run. Runs of other formats are other groups.
    """
    import pandas as pd

    rows, group = [], with_format(table, group)
    for names, found in table.groupby(group, sort=False, dropna=False):
        low, high = interval(found[value].fillna(0.0).tolist(), int(found["asked"].sum()))  # a diverged run scores 0
        solved = diverged_as_zero(found)["solved"]
        rows.append(
            {
                **dict(zip(group, names, strict=True)),
                value: found[value].fillna(0.0).mean(),
                "low": low,
                "high": high,
                "seeds": len(found),
                "answers": int(found["asked"].sum()),
                "solved": solved.median() if solved.notna().all() else math.nan,
                "solves": int(solved.notna().sum()),
                "seconds": found["seconds"].mean(),
            }
        )
    return pd.DataFrame(rows)


def brief(table: "pd.DataFrame") -> "pd.DataFrame":
    """The columns that distinguish most runs, and their results."""
    columns = [
        "task",
        "pattern",
        "dim",
        "rate",
        "seed",
        "outcome",
        "accuracy",
        "answers",
        "solved",
        "seconds",
        "key",
    ]
    return table.rename(columns={"asked": "answers"})[columns]


def progress(store: Store, recipes: "Sequence[Recipe] | None" = None) -> "tuple[pd.DataFrame, list[str]]":
    """What `run_states` returns, as a table."""
    import pandas as pd

    rows, damaged = run_states(store, recipes)
    columns = ["state", "pattern", "dim", "rate", "seed", "step", "selection", "key"]
    return pd.DataFrame(rows, columns=columns), damaged


def run_states(store: Store, recipes: "Sequence[Recipe] | None" = None) -> tuple[list[dict[str, Any]], list[str]]:
    """The state of every run: its outcome if it is done, or at work (and where), failed, interrupted, or to come.

    The runs of the recipes, or all in the store if none are given. `checked` is false for runs from before 0.2, whose
    files have no digests. Also returns a line about each run that cannot be read.
    """
    rows, damaged = [], []
    keys = store.run_keys() if recipes is None else list(dict.fromkeys(recipe.key for recipe in recipes))
    found = cached_parts(store, keys, index_parts, part="so far")
    for key in keys:
        if key not in found:
            rows.append({"state": "to come"})
        elif isinstance(found[key], DamagedRun):
            damaged.append(str(found[key]))
        else:
            try:
                state = found[key]["outcome"] or unfinished_state(store, key)
            except DamagedRun as fault:
                damaged.append(str(fault))
            else:
                rows.append({"state": state, **found[key], "key": key})
    return rows, damaged


def damaged_runs(store: Store, keys: Iterable[str]) -> dict[str, str]:
    """A line about each run that cannot be read, by its key; `results` leaves these out."""
    found = cached_parts(store, keys, index_parts, part="so far")
    return {key: str(fault) for key, fault in found.items() if isinstance(fault, DamagedRun)}


def unfinished_state(store: Store, key: str) -> str:
    """The state of a run that is not done: at work, failed or interrupted."""
    owner = store.owner(key)
    if owner and (silence := store.silence(key)) > QUIET:
        return f"at work: {owner}, no measurement for {duration(silence)}"
    return f"at work: {owner}" if owner else "failed" if store.failure(key) else "interrupted"


def duration(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def scaled_accuracy(accuracy: float, chance: float) -> float:
    """(accuracy - chance) / (1 - chance): 0 is guessing and 1 is perfect, as papers on formal languages report."""
    return (accuracy - chance) / (1 - chance)


def depth_for(table: "pd.DataFrame", level: float, *, group: Sequence[str]) -> "pd.DataFrame":
    """The least depth at which the mean test accuracy over seeds reaches a level, NaN where none does."""
    group = with_format(table, group)
    means = table.groupby([*group, "depth"])["accuracy"].mean().reset_index()
    reached = means[means["accuracy"] >= level].groupby(group)["depth"].min()
    return means[group].drop_duplicates().set_index(group).assign(depth=reached).reset_index()
