"""What every task must satisfy. A law takes a spec and raises `Broken` with one line that says what is wrong."""

import random
from typing import Any

import torch
from torch import Tensor

from bestiary.laws._law import Broken, Law, options
from bestiary.spec import Spec, parse, spec
from bestiary.tasks._task import LARGE_SPACE, SILENT, Batch, Task, hash_rows

ROWS = 2000


def draw_batch(checked: Spec, *path: Any, rows: int = ROWS) -> tuple[Task, Batch]:
    """The task, and a batch of a stream."""
    task = checked.build()
    return task, task.draw(rows, *path)


NUMBERS = {"vocab": int, "length": int, "chance": float, "plateau": float}  # what every task must set


def attributes(checked: Spec) -> None:
    """A task sets its vocabulary, length, chance and plateau, which is at least chance."""
    task = checked.build()
    for name, kind in NUMBERS.items():
        found = getattr(task, name, None)
        if not isinstance(found, (int, float) if kind is float else int) or isinstance(found, bool):
            given = "it does not set it" if found is None else f"it is {found!r}"
            raise Broken(f"a task sets `{name}`, a number; {given}")
        if found < 1 if kind is int else not 0 <= found <= 1:
            wanted = "at least 1" if kind is int else "from 0 to 1"
            raise Broken(f"`{name}` is {found}; it must be {wanted}")
    if task.plateau < task.chance - 1e-9:
        raise Broken(f"`plateau` is {task.plateau:.4g}, less than `chance`, {task.chance:.4g}")


def determinism(checked: Spec) -> None:
    """A batch is a function of its stream alone, and draws from nothing else."""
    task, one = draw_batch(checked, "laws", 0, rows=50)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        random.seed(1)
        again = checked.build().draw(50, "laws", 0)
    other, later = task.draw(50, "laws", 1), task.draw(50, "laws", 0)
    if not same_batch(one, again):
        raise Broken("the same stream gives another batch: sampling draws from a global generator")
    if not same_batch(one, later):
        raise Broken("the same stream gives another batch later on: sampling depends on earlier draws")
    if torch.equal(one.tokens, other.tokens):
        raise Broken("another stream gives the same batch")


def same_batch(one: Batch, other: Batch) -> bool:
    """Whether two batches are equal in all their parts."""
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


RESERVED = "loss", "right", "first", "mixed", "rows", "whole"  # columns and sums that training.score adds
LARGEST_FACET = 2**20  # scores are summed in a table with a row for each value up to the largest


def shapes(checked: Spec) -> None:
    """Tokens and targets lie in the vocabulary, every row asks something, facets are whole numbers and named apart."""
    task, batch = draw_batch(checked, "laws", 0)
    wanted, shape = (ROWS, task.length), batch.tokens.shape
    if shape != wanted + ((task.features,) if task.features else ()) or any(
        x.shape != wanted for x in (batch.targets, *batch.facets.values())
    ):
        parts = {"tokens": batch.tokens, "targets": batch.targets, **batch.facets}
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        hint = "; a facet with one number a row is `.expand_as(tokens)`" if batch.facets else ""
        raise Broken(f"a batch of {ROWS} rows of length {task.length} has {shapes}{hint}")
    asked = batch.targets != SILENT
    symbols = {} if task.features else {"tokens": batch.tokens}
    for name, found in {**symbols, "targets": batch.targets[asked]}.items():
        if found.min() < 0 or found.max() >= task.vocab:
            raise Broken(f"{name} run from {found.min()} to {found.max()}, the vocabulary from 0 to {task.vocab - 1}")
    if not asked.any(1).all():
        raise Broken("some rows ask nothing")
    for name, x in batch.facets.items():
        given = x[asked].double()
        odd = given[(given < 0) | (given > LARGEST_FACET) | (given != given.round())]
        if len(odd):
            raise Broken(
                f"the facet {name} is {odd[0]:g} at a question, where whole numbers to {LARGEST_FACET:,} can be"
            )
    few = batch.rows(slice(2))
    extra = task.extra_scores(few, torch.zeros(int((few.targets != SILENT).sum()), task.vocab))
    columns = [*batch.facets, *extra, *RESERVED]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise Broken(f"{', '.join(twice)} cannot name a facet or further score: another column of scores has that name")


def oracle(checked: Spec) -> None:
    """`solve` answers every question, or, of an open task, is right where it answers."""
    task, batch = draw_batch(checked, "laws", 0)
    asked, answers = batch.targets != SILENT, task.solve(batch.tokens)
    if task.open:
        asked &= answers != SILENT
        if not asked.any():
            raise Broken("solve never answers")
    wrong = (asked & ~task.right(batch, answers)).nonzero()
    if len(wrong):
        row, time = wrong[0].tolist()
        raise Broken(f"solve errs {len(wrong)} times of {int(asked.sum())}, first in row {row} at position {time}")


def prefix(checked: Spec) -> None:
    """No answer depends on what comes after its question."""
    task, batch = draw_batch(checked, "laws", 0, rows=50)
    whole = task.solve(batch.tokens)
    for time in (batch.targets != SILENT).any(0).nonzero().flatten().tolist():
        asked = batch.targets[:, time] != SILENT
        if not torch.equal(task.solve(batch.tokens[:, : time + 1])[asked, time], whole[asked, time]):
            raise Broken(f"solve answers the question at position {time} otherwise once it has read on")


MANY_ROWS, MANY_NUMBERS = 2**17, 2**19  # in which repeated rows are looked for


def disjoint_streams(checked: Spec) -> None:
    """Rows of the train, selection and test streams never meet; a task with few sequences says how few."""
    task: Task = checked.build()
    if task.space >= LARGE_SPACE:
        rows = min(MANY_ROWS, max(2 * ROWS, MANY_NUMBERS // (task.length * max(1, task.features))))
        if again := count_repeats(task.draw(rows, "laws", "repeats").tokens):
            raise Broken(f"{again} of {rows} rows repeat another, so the task must say how small its `space` is")
    sets = {name: row_set(draw_batch(checked, *name)[1].tokens) for name in STREAMS}
    for held in STREAMS[2:]:
        for other in STREAMS:
            if held[0] != other[0] and (shared := len(sets[held] & sets[other])):
                raise Broken(f"{shared} of {ROWS} rows of the {held[0]} stream are {other[0]} rows")


STREAMS: tuple[tuple[str | int, ...], ...] = (
    ("train", 0, 0),
    ("train", 1, 0),
    ("selection", "key", 0),
    ("test", "key", 0),
)


def presets(checked: Spec) -> None:
    """Every preset, and every value of an axis with the other defaults, is a task whose oracle is right."""
    if checked.changed:
        return
    written = [f"{checked.name}.{preset}" for preset in checked.build().presets]
    given = [{axis: value} for axis, values in checked.build().axes.items() for value in values]
    for part in [*(parse("tasks", text)[0] for text in written), *(spec("tasks", checked.name, **o) for o in given)]:
        try:
            task, batch = draw_batch(part, "laws", 0, rows=4)
        except ValueError as fault:
            raise Broken(f"{part}: {fault}") from None
        answers = task.solve(batch.tokens)
        asked = (batch.targets != SILENT) & ((answers != SILENT) if task.open else True)
        if not task.right(batch, answers)[asked].all():
            raise Broken(f"solve errs in {part}")


def row_set(rows: Tensor) -> set[bytes]:
    """Rows of tokens as a set."""
    return {row.tobytes() for row in rows.numpy()}


def count_repeats(rows: Tensor) -> int:
    """How many rows of tokens occurred before; only those with equal hashes are compared."""
    _, group, times = hash_rows(rows).unique(return_inverse=True, return_counts=True)
    alike = rows[times[group] > 1]
    return len(alike) - len(row_set(alike))


def chance_level(checked: Spec) -> None:
    """The best answer that does not look at the tokens is right as often as stated; 2 % of error is allowed."""
    task, fit = draw_batch(checked, "laws", "fit", rows=10 * ROWS)
    _, held = draw_batch(checked, "laws", "held", rows=10 * ROWS)
    common = torch.bincount(fit.targets[fit.targets != SILENT], minlength=3).topk(3).indices.tolist()
    few = fit.rows(slice(ROWS))
    guess = max(common, key=lambda symbol: correct_per_row(task, few, symbol).sum().item())
    found, asked = correct_per_row(task, held, guess), (held.targets != SILENT).sum(1).double()
    share, count = (found.sum() / asked.sum()).item(), asked.sum().item()
    binomial = (task.chance * (1 - task.chance) / count) ** 0.5
    by_row = (found - task.chance * asked).std().item() * len(found) ** 0.5 / count  # answers of a row may be alike
    slack = 5 * max(binomial, by_row) + 5 / count + 0.02 * task.chance
    if abs(share - task.chance) > slack:
        raise Broken(
            f"one answer to everything is right {share:.4f} of the time, the stated chance is {task.chance:.4f}"
        )


def correct_per_row(task: Task, batch: Batch, answer: int) -> Tensor:
    """How many questions of each row are right if this is the answer to all of them."""
    right = task.right(batch, torch.full_like(batch.targets, answer))
    return (right & (batch.targets != SILENT)).sum(1).double()


TASK_LAWS: dict[str, Law] = {
    "attributes": attributes,
    "determinism": determinism,
    "shapes": shapes,
    "oracle": oracle,
    "prefix": prefix,
    "disjoint streams": disjoint_streams,
    "presets": presets,
    "chance": chance_level,
    "options": options,
}
