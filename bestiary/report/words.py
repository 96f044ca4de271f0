"""The summary of a report in words: sentences made from the numbers, none of which says more than they carry."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bestiary.runs.table import SOLVED, WORKS

Cell = Mapping[str, Any]
FEW = 8  # mixers named one by one in a sentence


def summary(contents: Mapping[str, Any], stands: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """Paragraphs, each a heading and its sentences: one about the runs, one for each task.

    `stands` counts the runs by how they stand, as `table.progress` says it.
    """
    cells, tasks = contents["cells"], contents["tasks"]
    parts = [("Runs", list(about_runs(contents, stands)))]
    for i, task in enumerate(tasks):
        own = [c for c in cells if c["task"] == i]
        said = [*about_accuracy(own), *about_chance(task), *about_state(own), *about_rates(own)]
        parts.append((task["label"], said))
    return parts


def about_runs(contents: Mapping[str, Any], stands: Mapping[str, int]) -> Iterator[str]:
    runs, cells = contents["runs"], contents["cells"]
    done = contents["total"]
    seeds = sorted({run["seed"] for run in runs})
    mixers = len({c["mixer"] for c in cells})
    what = f"{counted(mixers, 'mixer')} on {counted(len(contents['tasks']), 'task')}"
    told = (
        f"{counted(len(seeds), 'seed')} ({spoken(list(map(str, seeds)))})"
        if len(seeds) <= FEW
        else f"{len(seeds)} seeds"
    )
    yield f"{counted(done, 'finished run')} of {what}, with {told}."
    ended = {name: count for name, count in stands.items() if name not in ("finished", "solved", "diverged") and count}
    lost = stands.get("diverged", 0)
    yield (
        f"{counted(lost, 'run')} diverged and {'counts' if lost == 1 else 'count'} as accuracy 0."
        if lost
        else "No run diverged."
    )
    if ended:
        yield "Not in the figures: " + ", ".join(f"{count} {name}" for name, count in sorted(ended.items())) + "."
    single = sum(c["seeds"] == 1 for c in cells)
    if single:
        which = "Every point is" if single == len(cells) else f"{single} of {len(cells)} points are"
        yield f"{which} from a single seed: the interval tells of its answers, not of other seeds."
    steered = sum(cells[run["cell"]]["recipe"].get("steer") == "test" for run in runs)
    if steered:
        yield f"{counted(steered, 'run')} let the test set decide rate and stopping, as the recipe of a paper did."


def about_accuracy(cells: Sequence[Cell]) -> Iterator[str]:
    """Who recalls most, and whether the interval tells it from the others."""
    tops = sorted(top(cells).values(), key=lambda c: (-c["accuracy"], c["state"] or 0))
    first, rest = tops[0], tops[1:]
    where = "At the width chosen for each on the selection stream, " if len(cells) > len(tops) else ""
    if not rest:
        yield f"{where}{first['mixer']} has an accuracy of {told(first)}."
        return
    if f"{first['accuracy']:.3f}" == f"{rest[-1]['accuracy']:.3f}":
        each = f"{where}each" if where else "Each"
        yield f"{each} of {len(tops)} mixers has an accuracy of {first['accuracy']:.3f}."
        return
    yield f"{where}{first['mixer']} has the highest accuracy of {len(tops)} mixers, {told(first)}."
    near = [c["mixer"] for c in rest if c["high"] >= first["low"]]
    if near:
        yield f"Its interval overlaps {'that' if len(near) == 1 else 'those'} of {named(near)}."
    yield f"The lowest is that of {rest[-1]['mixer']}, {told(rest[-1])}."


def about_chance(task: Mapping[str, Any]) -> Iterator[str]:
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
        who = "No mixer reached" if len(never) == len(names) > 1 else f"{named(never)} did not reach"
        yield f"{who} {SOLVED:g} at any width tried."
    unknown = sorted({c["mixer"] for c in cells if c["state"] is None})
    if unknown:
        yield f"The state of {named(unknown)} is not known: a file of the recipe is gone or has changed."


def about_rates(cells: Sequence[Cell]) -> Iterator[str]:
    """The widest and the narrowest window of learning rates, among those tried."""
    swept = [c for c in cells if len(c["rates"]) > 1]
    if not swept:
        yield "One learning rate was tried at each point, so that nothing is known of how wide a range works."
        return
    working = sorted((c for c in swept if c["works"]), key=lambda c: -decades(c))
    if not working:
        yield f"None of the learning rates tried brought a mean selection accuracy of {WORKS:g} ({ranged(swept)})."
        return
    widest, narrowest = decades(working[0]), decades(working[-1])
    yield f"Widest window of rates with a mean selection accuracy of {WORKS:g} or more: {window(working, widest)}."
    if narrowest < widest:
        yield f"Narrowest: {window(working, narrowest)}."
    without = len(swept) - len(working)
    if without:
        yield f"At {without} of {len(swept)} points no rate tried does so."


def top(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The cell of each mixer with the highest accuracy on the selection stream; of equals the one of smaller state."""
    found: dict[str, Cell] = {}
    for c in sorted(cells, key=lambda c: (-(c["selection"] or 0), c["state"] or 0)):
        found.setdefault(c["mixer"], c)
    return found


def told(c: Cell) -> str:
    state = "" if c["state"] is None else f", {c['state']:,} numbers of state"
    seeds = counted(c["seeds"], "seed")
    return (
        f"{c['accuracy']:.3f} (95 % interval {c['low']:.3f} to {c['high']:.3f}; {seeds}, {c['answers']:,} answers) "
        f"at width {c['dim']}{state}"
    )


def window(cells: Sequence[Cell], width: float) -> str:
    """A width in decades, and the first few of the points that have it."""
    equal = [c for c in cells if decades(c) == width]
    each = [f"{c['mixer']} at width {c['dim']} ({span(c)} of {len(c['rates'])} tried)" for c in equal[:3]]
    more = f" and {len(equal) - 3} more" if len(equal) > 3 else ""
    return f"{width:.1f} decades, of {'; '.join(each)}{more}"


def span(c: Cell) -> str:
    low, high = c["works"]
    return f"{low:g} to {high:g}" if high > low else f"{low:g} alone"


def decades(c: Cell) -> float:
    return c["window"] or 0.0


def ranged(cells: Sequence[Cell]) -> str:
    rates = [rate for c in cells for rate, *_ in c["rates"]]
    return f"{min(rates):g} to {max(rates):g}"


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def named(names: Sequence[str]) -> str:
    """Names in a sentence, the first few of many."""
    return spoken(names) if len(names) <= FEW else f"{', '.join(names[:FEW])} and {len(names) - FEW} more"


def spoken(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
