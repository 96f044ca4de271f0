"""From runs to tables: one row for each run and test segment, and what may be concluded from many of them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bestiary.runs.index import derived
from bestiary.runs.intervals import interval
from bestiary.runs.store import Damaged, Record, Store

if TYPE_CHECKING:  # imported where a table is made, which a list of how runs stand need not be
    import pandas as pd

    from bestiary.training.recipe import Recipe

SOLVED = 0.99  # the selection accuracy from which a task counts as solved
WORKS = 0.9  # its mean over seeds from which a learning rate counts as one that works


def results(store: Store, keys: Iterable[str]) -> "tuple[pd.DataFrame, list[str]]":
    """One row for each finished run and test segment, and a line about each run that cannot be read.

    Columns: the fields of the recipe; the options of the segment's task; `right`, `asked`, `accuracy`, `loss`
    (nats per answer), `whole` (the share of sequences answered without a fault) and the task's own scores on the
    test stream; `selection`, the last accuracy on the selection stream, mean over segments;
    `solved`, the first step at which that was 0.99; `steps`, `seconds` and `outcome`.
    """
    import pandas as pd

    asked = list(keys)
    found = derived(store, asked, parts, part="segments")
    made = [found[key] for key in asked if key in found]
    damaged = [str(rows) for rows in made if isinstance(rows, Damaged)]
    return pd.DataFrame([row for rows in made if not isinstance(rows, Damaged) for row in rows]), damaged


def parts(record: Record) -> dict[str, Any]:
    """What is known of a run, as the index keeps it: how far it came, and its rows if it is done."""
    curve = selection_curve(record.log)
    so_far = {"outcome": record.ended and record.ended.outcome, "pattern": layers(record)}
    so_far |= {name: record.recipe[name] for name in ("dim", "rate", "seed")}
    so_far |= {"step": record.log[-1]["step"] if record.log else 0, "selection": curve[-1][1] if curve else math.nan}
    return {"so far": so_far, "segments": list(segments(record)) if record.ended else []}


def layers(record: Record) -> str:
    return ", ".join(part["text"] for part in record.recipe["pattern"])


def segments(record: Record) -> Iterator[dict[str, Any]]:
    from bestiary.training.recipe import SPECS

    recipe, ended, curve = record.recipe, record.ended, selection_curve(record.log)
    assert ended is not None
    tested = {line["segment"]: line for line in record.log if line["split"] == "test" and not line["facet"]}
    for segment, task in enumerate(recipe["test"]):
        line = tested.get(segment, {"right": 0, "asked": math.nan, "loss": math.nan})  # a diverged run has none
        yield {
            **task["options"],
            **{name: value for name, value in recipe.items() if name not in SPECS},
            "pattern": layers(record),
            "key": record.key,
            "task": task["text"],
            "segment": segment,
            "right": line["right"],
            "asked": line["asked"],
            "accuracy": line["right"] / line["asked"],
            "loss": line["loss"] / line["asked"],
            **further(line),
            "selection": curve[-1][1] if curve else math.nan,
            "solved": next((step for step, share in curve if share >= SOLVED), math.nan),
            "steps": record.log[-1]["step"] if record.log else 0,
            "seconds": ended.seconds,
            "outcome": ended.outcome,
        }


def further(line: dict[str, Any]) -> dict[str, float]:
    """`whole`, the share of sequences answered without a fault, and the task's own scores, per answer."""
    sums = dict(line.get("further", {}))
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
    for key in keys:
        record = store.read(key)
        for line in record.log:
            if line["split"] == "test" and line["facet"] == facet:
                shares = {"accuracy": line["right"] / line["asked"], "loss": line["loss"] / line["asked"]}
                rows.append({"key": key, "pattern": layers(record), "dim": record.recipe["dim"], **line, **shares})
    return pd.DataFrame(rows)


def best(table: "pd.DataFrame", *, group: Sequence[str], over: str = "rate") -> "pd.DataFrame":
    """The rows of each group at the value of `over` with the highest mean accuracy on the *selection* stream.

    Adds `tried`, how many values there were, and `window`, the decades spanned by those that work: whose mean
    selection accuracy is at least 0.9 (0 if one of several does, NaN if none does or only one was tried).
    """
    import pandas as pd

    kept = []
    for _, rows in table.groupby(list(group), sort=False, dropna=False):
        scores = judged(rows).groupby(over)["selection"].mean()
        working = scores.index[scores >= WORKS]
        window = math.log10(working.max() / working.min()) if len(working) and len(scores) > 1 else math.nan
        kept.append(rows[rows[over] == scores.idxmax()].assign(tried=len(scores), window=window))
    return pd.concat(kept) if kept else table


def judged(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with a selection accuracy of 0 for runs that diverged, however well they did before."""
    return table.assign(selection=table["selection"].fillna(0.0).mask(table["outcome"] == "diverged", 0.0))


def curve(table: "pd.DataFrame", *, group: Sequence[str], value: str = "accuracy") -> "pd.DataFrame":
    """Mean over seeds of each group, with a 95 % interval, the number of seeds and of answers."""
    import pandas as pd

    rows = []
    for names, found in table.groupby(list(group), sort=False, dropna=False):
        low, high = interval(found[value].fillna(0.0).tolist(), int(found["asked"].sum()))  # a diverged run scores 0
        rows.append(
            {
                **dict(zip(group, names, strict=True)),
                value: found[value].fillna(0.0).mean(),
                "low": low,
                "high": high,
                "seeds": len(found),
                "answers": int(found["asked"].sum()),
                "solved": found["solved"].median() if found["solved"].notna().all() else math.nan,
                "solves": int(found["solved"].notna().sum()),
                "seconds": found["seconds"].mean(),
            }
        )
    return pd.DataFrame(rows)


def brief(table: "pd.DataFrame") -> "pd.DataFrame":
    """The columns that tell most runs apart, and their results."""
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
    """How every run stands, as `standing` tells it, as a table."""
    import pandas as pd

    rows, damaged = standing(store, recipes)
    columns = ["stands", "pattern", "dim", "rate", "seed", "step", "selection", "key"]
    return pd.DataFrame(rows, columns=columns), damaged


def standing(store: Store, recipes: "Sequence[Recipe] | None" = None) -> tuple[list[dict[str, Any]], list[str]]:
    """How every run stands: done (and how), at work (and where), failed, interrupted, or to come.

    The runs of the recipes, or all in the store if none are given; and a line about each that cannot be read.
    """
    rows, damaged = [], []
    keys = store.begun() if recipes is None else [recipe.key for recipe in recipes]
    found = derived(store, keys, parts, part="so far")
    for key in keys:
        if key not in found:
            rows.append({"stands": "to come"})
        elif isinstance(found[key], Damaged):
            damaged.append(str(found[key]))
        else:
            outcome = found[key]["outcome"]
            rows.append({"stands": outcome or unfinished(store, key), **found[key], "key": key})
    return rows, damaged


def unfinished(store: Store, key: str) -> str:
    """How a run stands that is not done."""
    owner = store.owner(key)
    return f"at work: {owner}" if owner else "failed" if store.failure(key) else "interrupted"


def scaled(accuracy: float, chance: float) -> float:
    """(accuracy - chance) / (1 - chance): 0 is guessing and 1 is perfect, as papers on formal languages report."""
    return (accuracy - chance) / (1 - chance)


def depth_for(table: "pd.DataFrame", level: float, *, group: Sequence[str]) -> "pd.DataFrame":
    """The least depth at which the mean test accuracy over seeds reaches a level, NaN where none does."""
    means = table.groupby([*group, "depth"])["accuracy"].mean().reset_index()
    reached = means[means["accuracy"] >= level].groupby(list(group))["depth"].min()
    return means[list(group)].drop_duplicates().set_index(list(group)).assign(depth=reached).reset_index()
