"""The summary of a report in words: sentences made from the numbers, none of which claims more than they support."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bestiary.report.levels import Levels, above, level_text
from bestiary.runs.table import SOLVED, WORKS

Cell = Mapping[str, Any]
FEW = 8  # mixers named one by one in a sentence


def summary(contents: Mapping[str, Any], states: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """Paragraphs, each a heading and its sentences: one about the runs, one for each task.

    `states` counts the runs by their state, as `table.progress` gives it.
    """
    cells, tasks = contents["cells"], contents["tasks"]
    parts = [("Runs", list(about_runs(contents, states)))]
    for i, task in enumerate(tasks):
        own = [c for c in cells if c["task"] == i]
        levels = task["levels"]
        sentences = [level_text(levels)] if levels else []
        sentences += [*about_accuracy(own, levels), *about_state(own), *about_rates(own)]
        parts.append((task["label"], sentences))
    return parts


def about_runs(contents: Mapping[str, Any], states: Mapping[str, int]) -> Iterator[str]:
    """How many runs there are, of how many seeds, and how many are missing."""
    runs, cells = contents["runs"], contents["cells"]
    done = contents["total"]
    seeds = sorted({run["seed"] for run in runs})
    mixers = len({c["mixer"] for c in cells})
    what = f"{count_noun(mixers, 'mixer')} on {count_noun(len(contents['tasks']), 'task')}"
    seeds_text = (
        f"{count_noun(len(seeds), 'seed')} ({join_words(list(map(str, seeds)))})"
        if len(seeds) <= FEW
        else f"{len(seeds)} seeds"
    )
    yield f"{count_noun(done, 'finished run')} of {what}, with {seeds_text}."
    others = {name: count for name, count in states.items() if name not in ("finished", "solved", "diverged") and count}
    diverged = states.get("diverged", 0)
    yield (
        f"{count_noun(diverged, 'run')} diverged and {'counts' if diverged == 1 else 'count'} as accuracy 0."
        if diverged
        else "No run diverged."
    )
    if others:
        yield "Not in the figures: " + ", ".join(f"{count} {name}" for name, count in sorted(others.items())) + "."
    single = sum(c["seeds"] == 1 for c in cells)
    if single:
        which = "Every point is" if single == len(cells) else f"{single} of {len(cells)} points are"
        told = "the interval tells of its answers, taken as independent, not of other seeds"
        yield f"{which} from a single seed: {told}."
    steered = sum(cells[run["cell"]]["recipe"].get("steer") == "test" for run in runs)
    if steered:
        yield f"{count_noun(steered, 'run')} let the test set decide rate and stopping, as the recipe of a paper did."


def about_accuracy(cells: Sequence[Cell], levels: Levels) -> Iterator[str]:
    """Which mixer recalls most among those above guessing, and whether its interval separates it from the others."""
    found = sorted(best_cells(cells).values(), key=lambda c: (-c["accuracy"], c["state"] or 0))
    where = "At the width chosen for each by selection accuracy, " if len(cells) > len(found) else ""
    if diverged := [c["mixer"] for c in found if not c["answers"]]:
        yield f"All runs of {list_names(diverged)} diverged{' at the width chosen' if where else ''}."
    tops = [c for c in found if c["answers"]]
    learnt, others = ([c for c in tops if above(c["low"], levels) is wanted] for wanted in (True, False))
    if not tops:
        return
    if len(tops) == 1:
        note = ", which is not above guessing" if others else ""
        yield f"{where}{tops[0]['mixer']} has an accuracy of {accuracy_text(tops[0])}{note}."
        return
    if not learnt:
        none, (low, high) = "none" if where else "None", (tops[-1]["accuracy"], tops[0]["accuracy"])
        span = f"{low:.3f} to {high:.3f}"
        yield f"{where}{none} of {len(tops)} mixers is above guessing: accuracies from {span}, not ranked."
        return
    yield from ranking(learnt, len(tops), where)
    if others:
        means = [f"{c['mixer']} ({c['accuracy']:.3f})" for c in others]
        yield f"Not above guessing, by the interval: {list_names(means)}."


def ranking(learnt: Sequence[Cell], count: int, where: str) -> Iterator[str]:
    """The best and the lowest of the mixers above guessing, of `count` in all."""
    first, last, rest = learnt[0], learnt[-1], learnt[1:]
    if not rest:
        which = f"{where}{first['mixer']} alone of {count} mixers is above guessing"
        yield f"{which}, with an accuracy of {accuracy_text(first)}."
        return
    among = f"{count} mixers" if len(learnt) == count else f"the {len(learnt)} mixers above guessing"
    if f"{first['accuracy']:.3f}" == f"{last['accuracy']:.3f}":
        each = f"{where}each" if where else "Each"
        yield f"{each} of {among} has an accuracy of {first['accuracy']:.3f}."
        return
    yield f"{where}{first['mixer']} has the highest accuracy of {among}, {accuracy_text(first)}."
    near = [c["mixer"] for c in rest if c["high"] >= first["low"]]
    if near:
        yield f"Its interval overlaps {'that' if len(near) == 1 else 'those'} of {list_names(near)}."
    which = "The lowest" if len(learnt) == count else "The lowest above guessing"
    yield f"{which} is that of {last['mixer']}, {accuracy_text(last)}."


def about_state(cells: Sequence[Cell]) -> Iterator[str]:
    """The smallest state with which each mixer reaches 0.99."""
    reach: dict[str, Cell] = {}
    for c in sorted(cells, key=lambda c: c["state"] or 0):
        if c["accuracy"] >= SOLVED and c["state"] is not None:
            reach.setdefault(c["mixer"], c)
    if reach:
        each = [
            f"{name}, {count_noun(c['state'], 'number')} (width {c['dim']})" for name, c in list(reach.items())[:FEW]
        ]
        more = f"; and {len(reach) - FEW} more" if len(reach) > FEW else ""
        yield f"The smallest state that reached an accuracy of {SOLVED:g}: {'; '.join(each)}{more}."
    names = list(dict.fromkeys(c["mixer"] for c in cells))
    never = [name for name in names if all(c["accuracy"] < SOLVED for c in cells if c["mixer"] == name)]
    if never:
        who = "No mixer reached" if len(never) == len(names) > 1 else f"{list_names(never)} did not reach"
        yield f"{who} {SOLVED:g} at any width tried."
    unknown = sorted({c["mixer"] for c in cells if c["state"] is None})
    if unknown:
        yield f"The state of {list_names(unknown)} is not known: a file of the recipe is gone or has changed."


def about_rates(cells: Sequence[Cell]) -> Iterator[str]:
    """The widest and the narrowest window of learning rates among those tried."""
    swept = [c for c in cells if len(c["rates"]) > 1]
    if not swept:
        yield "One learning rate was tried at each point, so that nothing is known of how wide a range works."
        return
    working = sorted((c for c in swept if c["works"]), key=lambda c: -window_width(c))
    if not working:
        yield f"None of the learning rates tried brought a mean selection accuracy of {WORKS:g} ({tried_range(swept)})."
        return
    widest, narrowest = window_width(working[0]), window_width(working[-1])
    yield f"Widest window of rates with a mean selection accuracy of {WORKS:g} or more: {window_text(working, widest)}."
    if narrowest < widest:
        yield f"Narrowest: {window_text(working, narrowest)}."
    without = len(swept) - len(working)
    if without:
        yield f"At {without} of {len(swept)} points no rate tried does so."


def best_cells(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The cell of each mixer with the highest selection accuracy; of equals the one with the smaller state."""
    found: dict[str, Cell] = {}
    for c in sorted(cells, key=lambda c: (-(c["selection"] or 0), c["state"] or 0)):
        found.setdefault(c["mixer"], c)
    return found


def accuracy_text(c: Cell) -> str:
    """An accuracy with its interval, seeds, answers, width and state."""
    state = "" if c["state"] is None else f", {count_noun(c['state'], 'number')} of state"
    counts = f"{count_noun(c['seeds'], 'seed')}, {count_noun(c['answers'], 'answer')}"
    span = f"95 % interval {c['low']:.3f} to {c['high']:.3f}"
    return f"{c['accuracy']:.3f} ({span}; {counts}) at width {c['dim']}{state}"


def window_text(cells: Sequence[Cell], width: float) -> str:
    """The width of a window in decades, and the first few of the cells that have it."""
    equal = [c for c in cells if window_width(c) == width]
    each = [f"{c['mixer']} at width {c['dim']} ({rate_span(c)} of {len(c['rates'])} tried)" for c in equal[:3]]
    more = f" and {len(equal) - 3} more" if len(equal) > 3 else ""
    return f"{width:.1f} decades, of {'; '.join(each)}{more}"


def rate_span(c: Cell) -> str:
    """The lowest and the highest rate that works."""
    low, high = c["works"]
    return f"{low:g} to {high:g}" if high > low else f"{low:g} alone"


def window_width(c: Cell) -> float:
    """The width of a cell's window of rates in decades, 0 if it has none."""
    return c["window"] or 0.0


def tried_range(cells: Sequence[Cell]) -> str:
    """The lowest and the highest rate tried."""
    rates = [rate for c in cells for rate, *_ in c["rates"]]
    return f"{min(rates):g} to {max(rates):g}"


def count_noun(count: int, what: str) -> str:
    """A count with its noun, `1 run` or `2 runs`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def list_names(names: Sequence[str], most: int = FEW) -> str:
    """Names in a sentence, only the first few of many."""
    return join_words(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def join_words(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
