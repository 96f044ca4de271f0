"""Turn a recipe into a stream of measurements. Knows nothing of files, logs or plots."""

import ctypes
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import decayed_names
from bestiary.model import Model
from bestiary.ops.readout import cross_entropy
from bestiary.spec import Spec
from bestiary.tasks._task import SILENT, Batch, Task, stream
from bestiary.training.recipe import Recipe

CHUNK = 256  # rows of a selection or test batch: part of what its stream means
LOGITS = 2**25  # numbers computed at a time when scoring
TOKENS = 2**17  # tokens read at a time when scoring
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt


class Measurement(NamedTuple):
    """Sums, not means, so that any two may be added."""

    step: int
    split: str  # train, selection or test
    segment: int  # of the recipe's test tasks; -1 for all training segments together
    facet: str  # what the answers have in common, "" for all answers
    value: int  # of the facet
    loss: float  # nats
    right: int
    asked: int
    further: dict[str, float] = {}  # `rows`, `whole` (rows without a fault), and the task's own scores


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


def train(recipe: Recipe, model: Model | None = None, *, device: torch.device | str = "cpu") -> Iterator[Measurement]:
    """Train, looking at the selection stream every so often, and score on the test stream at the end.

    Yields measurements as they are made; a model given holds the weights after the last. Raises Diverged when the
    loss stops being finite.
    """
    model = (recipe.build() if model is None else model).to(device)
    optimizer = torch.optim.AdamW(decay_groups(recipe, model), lr=recipe.rate, fused=True)
    sums, step = torch.zeros(3, dtype=torch.float64, device=device), 0
    for step, batch in enumerate(batches(recipe), start=1):
        sums += update(recipe, model, optimizer, batch, step, device)
        if step % recipe.every == 0 or step == recipe.steps:
            loss, right, asked = sums.tolist()
            yield Measurement(step, "train", -1, "", 0, loss, int(right), int(asked))
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} at step {step}")
            sums.zero_()
            looks = list(score(model, recipe.select or recipe.test, recipe.steer, recipe.selection_rows, device=device))
            yield from (look._replace(step=step, split="selection") for look in looks if not look.facet)
            if recipe.stop is not None and accuracy(looks) >= recipe.stop:
                break
    yield from (look._replace(step=step) for look in score(model, recipe.test, "test", recipe.test_rows, device=device))


def update(
    recipe: Recipe,
    model: Model,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    device: torch.device | str,
) -> Tensor:
    """One step of gradient descent; loss, right and asked, summed, left on the device."""
    for group in optimizer.param_groups:
        group["lr"] = rate(recipe, step)
    where = batch.question_positions()
    targets = batch.targets.gather(1, where).flatten()
    count = int((targets != SILENT).sum())
    tokens, where, targets = batch.tokens.to(device), where.to(device), targets.to(device)
    model.train()
    with torch.random.fork_rng([tokens.device] if tokens.is_cuda else []):
        torch.manual_seed(stream("dropout", recipe.seed, step).initial_seed())
        hidden = model.hidden(tokens, where).flatten(0, 1)
    loss, right = cross_entropy(hidden, model.embed.weight, targets)
    optimizer.zero_grad()
    (loss / count).backward()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return torch.stack([loss.detach().double(), right.double(), torch.full_like(right, count).double()])


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, counted from 1: a linear rise times a cosine from 1 to 0."""
    done = (step - 1) // recipe.hold * recipe.hold / recipe.steps
    return recipe.rate * min(1.0, step / max(1, recipe.warmup)) * 0.5 * (1 + math.cos(math.pi * done))


def decay_groups(recipe: Recipe, model: nn.Module) -> list[dict[str, Any]]:
    """Parameters with weight decay and without."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    names = decayed(recipe, model)
    for name, weight in model.named_parameters():
        groups[name in names].append(weight)
    return [
        {"params": groups[True], "weight_decay": recipe.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def decayed(recipe: Recipe, model: nn.Module) -> set[str]:
    """The names of the parameters that weight decay acts on."""
    return {name for name, _ in model.named_parameters()} if recipe.decay == "all" else decayed_names(model)


def batches(recipe: Recipe) -> Iterator[Batch]:
    """The training batches in order; batch i of a seed is drawn from the stream ("train", seed, i)."""
    tasks = [part.build() for part in recipe.train]
    if not recipe.distinct:
        for i in range(recipe.steps):
            yield draw(recipe, tasks[i % len(tasks)], i)
        return
    owner = [segment for segment, count in enumerate(recipe.distinct) for _ in range(count)]
    deal = dealer(recipe, tasks, owner) if recipe.shuffle == "rows" else None
    order = list(range(len(owner)))
    for step in range(recipe.steps):
        epoch, place = divmod(step, len(owner))
        if place == 0 and recipe.shuffle != "none":
            order = torch.randperm(len(owner), generator=stream("order", recipe.seed, epoch)).tolist()
        i = order[place]
        yield draw(recipe, tasks[owner[i]], i) if deal is None else deal(epoch, i)


def draw(recipe: Recipe, task: Task, i: int) -> Batch:
    return task.draw(recipe.batch, "train", recipe.seed, i)


def dealer(recipe: Recipe, tasks: Sequence[Task], owner: Sequence[int]) -> Callable[[int, int], Batch]:
    """Batch i of an epoch, when the rows of each segment are dealt out anew. Keeps the set in memory."""
    pools, first = [], [owner.index(segment) for segment in range(len(tasks))]
    for segment, task in enumerate(tasks):
        drawn = [draw(recipe, task, i) for i, s in enumerate(owner) if s == segment]
        pools.append(
            [torch.cat([smaller(part) for part in column]) for column in zip(*(b[:2] for b in drawn), strict=True)]
        )

    @lru_cache(maxsize=len(tasks))
    def order(epoch: int, segment: int) -> Tensor:
        return torch.randperm(len(pools[segment][0]), generator=stream("rows", recipe.seed, epoch, segment))

    def deal(epoch: int, i: int) -> Batch:
        segment = owner[i]
        start = (i - first[segment]) * recipe.batch
        rows = order(epoch, segment)[start : start + recipe.batch]
        tokens, targets = (part[rows] for part in pools[segment])
        return Batch(tokens if tokens.is_floating_point() else tokens.long(), targets.long(), {})

    return deal


def smaller(part: Tensor) -> Tensor:
    return part if part.is_floating_point() else part.int()


def accuracy(looks: Sequence[Measurement]) -> float:
    """The mean over segments of the share of right answers."""
    shares = [look.right / look.asked for look in looks if not look.facet]
    return sum(shares) / len(shares)


Answers = tuple[Float[Tensor, "answers vocab"], Int[Tensor, " answers"]]  # logits and targets


@torch.no_grad()
def score(
    model: Model, tasks: Sequence[Spec], name: str, rows: int, *, device: torch.device | str = "cpu"
) -> Iterator[Measurement]:
    """Sums over the first `rows` rows of each task's stream `name`, altogether and by facet."""
    model.eval()
    for (seen,) in scores(lambda batch: [model.answer(batch)], tasks, name, rows, device=device):
        yield seen


def scores(
    answer: Callable[[Batch], Sequence[Answers]],
    tasks: Sequence[Spec],
    name: str,
    rows: int,
    *,
    models: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Measurement, ...]]:
    """`score` for several models at once, of which `answer` gives the answers: a measurement of each."""
    for segment, part in enumerate(tasks):
        task, found = part.build(), []
        for i, start in enumerate(range(0, rows, CHUNK)):
            batch = task.draw(CHUNK, name, part.key, i)
            for few in pieces(batch, min(CHUNK, rows - start), task.vocab, models):
                piece = few.to(device)
                found.append([columns(task, piece, *given) for given in answer(piece)])
        yield from zip(*(tally(parts, name, segment) for parts in zip(*found, strict=True)), strict=True)


def tally(parts: Sequence[dict[str, Tensor]], name: str, segment: int) -> Iterator[Measurement]:
    """Sums of the columns of all answers, altogether and by facet."""
    columns = {column: torch.cat([part[column] for part in parts]) for column in parts[0]}
    right, row = columns["right"], columns.pop("first").cumsum(0) - 1
    faults = torch.zeros(int(row[-1]) + 1).index_add_(0, row, 1 - right.float())
    scores = {c: columns.pop(c) for c in list(columns) if columns[c].is_floating_point()}
    further: dict[str, float] = {"rows": len(faults), "whole": int((faults == 0).sum())}
    for facet, values in {"": torch.zeros_like(right, dtype=torch.long), **columns}.items():
        sums = {score: torch.bincount(values, weights).tolist() for score, weights in scores.items()}
        for value, asked in enumerate(torch.bincount(values).tolist()):
            if asked:
                of = {score: total[value] for score, total in sums.items()}
                more = (further if not facet else {}) | {s: of[s] for s in of if s not in ("loss", "right")}
                yield Measurement(0, name, segment, facet, value, of["loss"], int(of["right"]), asked, more)


def pieces(batch: Batch, rows: int, vocab: int, models: int) -> Iterator[Batch]:
    """The first rows of a batch, few enough at a time for the logits of all models to fit."""
    asked = int((batch.targets != SILENT).sum(1).max())
    size = max(1, min(LOGITS // (asked * vocab), TOKENS // batch.targets.shape[1]) // models)
    for start in range(0, rows, size):
        part = slice(start, min(start + size, rows))
        yield batch.rows(part)


def columns(task: Task, batch: Batch, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Loss, whether it was right, the task's further scores, each facet, and whether it is a row's first, by answer."""
    asked = batch.targets != SILENT
    given = torch.full_like(batch.targets, SILENT).masked_scatter_(asked, logits.argmax(-1))
    scores = {
        "loss": F.cross_entropy(logits, targets, reduction="none"),
        "right": task.right(batch, given)[asked],
        **task.extra_scores(batch, logits),
    }
    columns = {name: x.double().cpu() for name, x in scores.items()}
    facets = {facet: x[asked].long().cpu() for facet, x in batch.facets.items()}
    row = asked.nonzero()[:, 0].cpu()
    return columns | facets | {"first": torch.cat([torch.ones(1), row.diff()]).clamp(max=1).long()}


def step_seconds(recipe: Recipe, *, device: torch.device | str = "cpu", tokens: int = 512) -> float:
    """About how long a training step takes here: a line through those of few rows, of so many tokens, and of twice."""
    rows = min(max(1, tokens // recipe.train[0].build().length), recipe.batch)
    few, twice = (seconds_of(recipe, batch, device) for batch in (rows, 2 * rows))
    return few + max(0.0, twice - few) * (recipe.batch - rows) / rows


def seconds_of(recipe: Recipe, batch: int, device: torch.device | str) -> float:
    """How long a step of a batch of that size takes, the least of several if they are short."""
    small = recipe.model_copy(update={"batch": batch, "distinct": (), "shuffle": "none"})
    model = small.build().to(device)
    optimizer = torch.optim.AdamW(decay_groups(small, model), lr=0.0, fused=True)
    drawn, taken = next(batches(small)), []
    while len(taken) < 2 or sum(taken[1:]) < 0.2:  # the first warms up
        begun = time.perf_counter()
        update(small, model, optimizer, drawn, 1, device).tolist()
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def found_device(name: str) -> torch.device:
    """The device of this name. Raises ValueError if there is none."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as fault:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"there is no device {name!r} here; there are {there}") from fault
    return device


def keep_memory() -> None:
    """For a process that only trains: let glibc keep freed memory for the next step.

    It otherwise gives the large temporaries of every step back, and the page faults cost up to a third of it.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    for option, size in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
        libc.mallopt(option, size)
