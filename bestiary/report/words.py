"""The summary of a report in words: sentences made from the numbers, none of which claims more than they support."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
        sentences = [*about_accuracy(own), *about_chance(task), *about_state(own), *about_rates(own)]
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
        yield f"{which} from a single seed: the interval tells of its answers, not of other seeds."
    steered = sum(cells[run["cell"]]["recipe"].get("steer") == "test" for run in runs)
    if steered:
        yield f"{count_noun(steered, 'run')} let the test set decide rate and stopping, as the recipe of a paper did."


def about_accuracy(cells: Sequence[Cell]) -> Iterator[str]:
    """Which mixer recalls most, and whether its interval separates it from the others."""
    tops = sorted(best_cells(cells).values(), key=lambda c: (-c["accuracy"], c["state"] or 0))
    first, rest = tops[0], tops[1:]
    where = "At the width chosen for each on the selection stream, " if len(cells) > len(tops) else ""
    if not rest:
        yield f"{where}{first['mixer']} has an accuracy of {accuracy_text(first)}."
        return
    if f"{first['accuracy']:.3f}" == f"{rest[-1]['accuracy']:.3f}":
        each = f"{where}each" if where else "Each"
        yield f"{each} of {len(tops)} mixers has an accuracy of {first['accuracy']:.3f}."
        return
    yield f"{where}{first['mixer']} has the highest accuracy of {len(tops)} mixers, {accuracy_text(first)}."
    near = [c["mixer"] for c in rest if c["high"] >= first["low"]]
    if near:
        yield f"Its interval overlaps {'that' if len(near) == 1 else 'those'} of {list_names(near)}."
    yield f"The lowest is that of {rest[-1]['mixer']}, {accuracy_text(rest[-1])}."


def about_chance(task: Mapping[str, Any]) -> Iterator[str]:
    """The accuracy that guessing gives."""
    chance, plateau = (task["levels"].get(name) for name in ("chance", "plateau"))
    if chance is not None:
        guess = f"; knowing which answers occur but not where gives {plateau:.3f}" if plateau > chance else ""
        yield f"Chance is {chance:.3f}{guess}."


def about_state(cells: Sequence[Cell]) -> Iterator[str]:
    """The smallest state with which each mixer reaches 0.99."""
    reach: dict[str, Cell] = {}
    for c in sorted(cells, key=lambda c: c["state"] or 0):
        if c["accuracy"] >= SOLVED and c["state"] is not None:
            reach.setdefault(c["mixer"], c)
    if reach:
        each = [f"{name}, {c['state']:,} numbers (width {c['dim']})" for name, c in list(reach.items())[:FEW]]
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
    state = "" if c["state"] is None else f", {c['state']:,} numbers of state"
    seeds = count_noun(c["seeds"], "seed")
    return (
        f"{c['accuracy']:.3f} (95 % interval {c['low']:.3f} to {c['high']:.3f}; {seeds}, {c['answers']:,} answers) "
        f"at width {c['dim']}{state}"
    )


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


def list_names(names: Sequence[str]) -> str:
    """Names in a sentence, only the first few of many."""
    return join_words(names) if len(names) <= FEW else f"{', '.join(names[:FEW])} and {len(names) - FEW} more"


def join_words(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
