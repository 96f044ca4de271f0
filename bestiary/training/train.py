"""Turn a recipe into a stream of measurements. Writes no files and no logs."""

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import decayed_names
from bestiary.model import Model
from bestiary.ops.precision import exact
from bestiary.spec import Spec, read_specs
from bestiary.tasks._task import SILENT, Batch, Task, stream
from bestiary.training.health import copy_weights, probe, start_signs, training_signs
from bestiary.training.recipe import Recipe
from bestiary.training.rows import CHUNK
from bestiary.training.state import TrainingState
from bestiary.training.whole import AnyModel, as_model

LOGITS = 2**25  # logits computed at a time when scoring
TOKENS = 2**17  # tokens read at a time when scoring
PRODUCTS = {"float32": None, "bfloat16": torch.bfloat16}  # the type of the read-out's products, if not its own
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt


class Measurement(NamedTuple):
    """Sums, not means, so that any two may be added."""

    step: int
    split: str  # train, selection or test
    segment: int  # of the recipe's test tasks; -1 for all training segments together
    facet: str  # the answers counted have one value of it; "" for all answers
    value: int  # of the facet
    loss: float  # nats
    right: int
    asked: int
    extra: dict[str, float] = {}  # `rows`, `whole` (rows without a mistake), and the sums of the task's own scores;
    # in selection `mixed`, wrong answers that another question of the row has; in training the signs of `health`


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


def train(
    recipe: Recipe,
    model: nn.Module | None = None,
    *,
    device: torch.device | str = "cpu",
    saved: Mapping[str, Tensor] | None = None,
    after_step: Callable[[TrainingState], None] = lambda _: None,
) -> Iterator[Measurement]:
    """Train, score on the selection stream every few steps, and score on the test stream at the end.

    Yields measurements as they are made. A model that is given holds the trained weights after the last one; it may be
    any module from tokens to logits (see `WholeModel`). Raises Diverged when the training or test loss is not finite.

    `after_step` is called with the state of training once a step is over and measured. With its tensors as `saved`
    training goes on after that step, and yields what it would have yielded without a break, to the last bit on the
    same machine. Raises ValueError if they are those of another model.
    """
    state = new_state(recipe, model, device=device)
    begun = copy_weights(state.model)
    if saved is not None:
        state.load(saved)
    trained, optimizer = state.model, Optimizers(*state.optimizers)
    for step, batch in enumerate(batches(recipe, start=state.step), start=state.step + 1):
        state.sums += update(recipe, trained, optimizer, batch, step, device)
        state.step = step
        if step % recipe.every == 0 or step == recipe.steps:
            loss, right, asked = state.sums.tolist()
            signs = health_signs(recipe, trained, begun, step, device) if math.isfinite(loss) else {}
            yield Measurement(step, "train", -1, "", 0, loss, int(right), int(asked), signs)
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} at step {step}")
            state.sums.zero_()
            tasks, rows = recipe.select or recipe.test, recipe.selection_rows
            seen = list(score(trained, tasks, recipe.steer, rows, device=device, mixed=True))
            yield from (one._replace(step=step, split="selection") for one in seen if not one.facet)
            if recipe.stop is not None and accuracy(seen) >= recipe.stop:
                break
        after_step(state)
    yield from final_scores(score(trained, recipe.test, "test", recipe.test_rows, device=device), state.step)


def final_scores(measurements: Iterable[Measurement], step: int) -> list[Measurement]:
    """The measurements on the test stream, after the last step. Raises Diverged if no segment has a finite loss."""
    seen = [one._replace(step=step) for one in measurements]
    if not any(math.isfinite(one.loss) for one in seen if not one.facet):  # one that is very long may overflow alone
        raise Diverged(f"the loss is {seen[0].loss} on the test stream, after step {step}")
    return seen


def health_signs(
    recipe: Recipe, model: AnyModel, begun: Mapping[str, Tensor], step: int, device: torch.device | str
) -> dict[str, float]:
    """The signs of `health` at an evaluation; those that need a probe, at the first."""
    signs = training_signs(model, begun)
    if step == min(recipe.every, recipe.steps):
        signs |= start_signs(begun) | probe(recipe, model, device=device)
    return signs


def new_state(recipe: Recipe, model: nn.Module | None = None, *, device: torch.device | str = "cpu") -> TrainingState:
    """The state before the first step."""
    tasks = recipe.train + recipe.select + recipe.test
    trained = (recipe.build() if model is None else as_model(model, tasks)).to(device)
    optimizer = make_optimizer(recipe, trained)
    parts = optimizer.parts if isinstance(optimizer, Optimizers) else (optimizer,)
    return TrainingState(trained, *parts, device=device)


def update(
    recipe: Recipe,
    model: AnyModel,
    optimizer: "torch.optim.Optimizer | Optimizers",
    batch: Batch,
    step: int,
    device: torch.device | str,
) -> Tensor:
    """One step of gradient descent. Returns the sums of loss (nats), right answers and answers, on the device."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    where = batch.question_positions()
    targets = batch.targets.gather(1, where).flatten()
    count = int((targets != SILENT).sum())
    tokens, where, targets = batch.tokens.to(device), where.to(device), targets.to(device)
    model.train()
    with torch.random.fork_rng([tokens.device] if tokens.is_cuda else []):
        torch.manual_seed(stream("dropout", recipe.seed, step).initial_seed())
        with autocast(recipe, device):
            hidden = model.hidden(tokens, where).flatten(0, 1)
    loss, right = model.read_out(hidden, targets, dtype=PRODUCTS[recipe.precision])
    optimizer.zero_grad()
    (loss / count).backward()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return torch.stack([exact(x) for x in (loss.detach(), right, torch.full_like(right, count))])


def autocast(recipe: Recipe, device: torch.device | str) -> torch.autocast:
    """A context in which linear maps and attention are computed in the recipe's precision."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, counted from 1: a linear warm-up times a schedule that runs from the first step."""
    done = (step - 1) // recipe.hold * recipe.hold / recipe.steps
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[recipe.schedule]
    return recipe.floor + (recipe.rate * min(1.0, step / max(1, recipe.warmup)) - recipe.floor) * left


class Optimizers:
    """Several optimizers, each of some of the weights, used as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Change the weights."""
        for part in self.parts:
            part.step()


def make_optimizer(recipe: Recipe, model: AnyModel) -> torch.optim.Optimizer | Optimizers:
    """AdamW on all weights, or on all but those of hidden linear maps, which another optimizer takes.

    Muon (Jordan et al., 2024): its updates are scaled to the size that AdamW's have (Liu et al., 2025, "Muon is
    scalable for LLM training"), so that one rate serves both. Adafactor (Shazeer & Stern, 2018): its updates are scaled
    by the size of the weights, and its rate is at most 1 / sqrt(step).
    """
    groups = decay_groups(recipe, model)
    hidden = hidden_maps(model)
    if recipe.optimizer == "adamw" or not hidden:
        return torch.optim.AdamW(groups, lr=recipe.rate, betas=recipe.betas, fused=True)
    taken = [group | {"params": [w for w in group["params"] if id(w) in hidden]} for group in groups]
    taken = [group for group in taken if group["params"]]
    rest = [group | {"params": [w for w in group["params"] if id(w) not in hidden]} for group in groups]
    if recipe.optimizer == "muon":
        first: torch.optim.Optimizer = torch.optim.Muon(taken, lr=recipe.rate, adjust_lr_fn="match_rms_adamw")
    else:
        first = torch.optim.Adafactor(taken, lr=recipe.rate)
    return Optimizers(first, torch.optim.AdamW(rest, lr=recipe.rate, betas=recipe.betas, fused=True))


def hidden_maps(model: AnyModel) -> set[int]:
    """The ids of the weights of linear maps, but for those tied to an embedding, and for the head of a whole model.

    The head is the last map, if it has an output for each entry of the first embedding.
    """
    parts = list((model.layers if isinstance(model, Model) else model).modules())
    tables = [part for part in parts if isinstance(part, nn.Embedding)]
    maps = [part for part in parts if isinstance(part, nn.Linear)]
    if not isinstance(model, Model) and tables and maps and maps[-1].out_features == tables[0].num_embeddings:
        maps.pop()
    conv1d = [part for part in parts if type(part).__name__ == "Conv1D"]  # the linear maps of transformers' GPT-2
    return {id(part.weight) for part in (*maps, *conv1d)} - {id(table.weight) for table in tables}


def decay_groups(recipe: Recipe, model: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups for AdamW, with weight decay and without."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    names = decayed_weights(recipe, model)
    for name, weight in model.named_parameters():
        groups[name in names].append(weight)
    return [
        {"params": groups[True], "weight_decay": recipe.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def decayed_weights(recipe: Recipe, model: nn.Module) -> set[str]:
    """The names of the parameters that weight decay acts on."""
    return {name for name, _ in model.named_parameters()} if recipe.decay == "all" else decayed_names(model)


def batches(recipe: Recipe, *, start: int = 0) -> Iterator[Batch]:
    """The training batches in order, without the first `start`.

    Batch i of a seed is drawn from the stream ("train", seed, i).
    """
    tasks = [part.build() for part in recipe.train]
    if not recipe.distinct:
        for i in range(start, recipe.steps):
            place = i * len(tasks) // recipe.steps if recipe.curriculum else i % len(tasks)
            yield draw_batch(recipe, tasks[place], i)
        return
    segment_of = [segment for segment, count in enumerate(recipe.distinct) for _ in range(count)]
    deal = make_dealer(recipe, tasks, segment_of) if recipe.shuffle == "rows" else None
    order = list(range(len(segment_of)))
    for step in range(start, recipe.steps):
        epoch, place = divmod(step, len(segment_of))
        if (place == 0 or step == start) and recipe.shuffle != "none":
            order = torch.randperm(len(segment_of), generator=stream("order", recipe.seed, epoch)).tolist()
        i = order[place]
        yield draw_batch(recipe, tasks[segment_of[i]], i) if deal is None else deal(epoch, i)


def draw_batch(recipe: Recipe, task: Task, i: int) -> Batch:
    """Batch i of the training stream."""
    return task.draw(recipe.batch, "train", recipe.seed, i)


def make_dealer(recipe: Recipe, tasks: Sequence[Task], segment_of: Sequence[int]) -> Callable[[int, int], Batch]:
    """A function that returns batch i of an epoch with shuffled rows. Keeps the whole training set in memory."""
    pools, first = [], [segment_of.index(segment) for segment in range(len(tasks))]
    for segment, task in enumerate(tasks):
        drawn = [draw_batch(recipe, task, i) for i, s in enumerate(segment_of) if s == segment]
        pools.append(
            [
                torch.cat([to_small_integers(part) for part in column])
                for column in zip(*(b[:2] for b in drawn), strict=True)
            ]
        )

    @lru_cache(maxsize=len(tasks))
    def order(epoch: int, segment: int) -> Tensor:
        return torch.randperm(len(pools[segment][0]), generator=stream("rows", recipe.seed, epoch, segment))

    def deal(epoch: int, i: int) -> Batch:
        segment = segment_of[i]
        start = (i - first[segment]) * recipe.batch
        rows = order(epoch, segment)[start : start + recipe.batch]
        tokens, targets = (part[rows] for part in pools[segment])
        return Batch(tokens if tokens.is_floating_point() else tokens.long(), targets.long(), {})

    return deal


def to_small_integers(part: Tensor) -> Tensor:
    """Tokens as int32, which halves the memory of a set that is kept; other numbers unchanged."""
    return part if part.is_floating_point() else part.int()


def accuracy(measurements: Sequence[Measurement]) -> float:
    """The mean over segments of the share of right answers."""
    shares = [one.right / one.asked for one in measurements if not one.facet]
    return sum(shares) / len(shares)


Answers = tuple[Float[Tensor, "answers vocab"], Int[Tensor, " answers"]]  # logits and targets


@torch.no_grad()
def score(
    model: Callable[..., Any],
    tasks: str | Spec | Sequence[str | Spec],
    name: str = "test",
    rows: int = 3000,
    *,
    device: torch.device | str = "cpu",
    mixed: bool = False,
) -> Iterator[Measurement]:
    """Sums over the first `rows` rows of each task's stream `name`, over all answers and by facet.

    The model is one of ours, or any module or function from tokens to logits (see `WholeModel`). With `mixed` also the
    wrong answers that another question of the same row has. Afterwards the model is in training or evaluation mode as
    it was.
    """
    specs = read_specs("tasks", tasks)
    scored = as_model(model, specs)
    modes = {part: part.training for part in scored.modules()}
    scored.eval()
    options: dict[str, Any] = {"device": device, "mixed": mixed}
    try:
        for (measurement,) in score_models(lambda batch: [scored.answer(batch)], specs, name, rows, **options):
            yield measurement
    finally:
        for part, training in modes.items():
            part.training = training


def score_models(
    answer: Callable[[Batch], Sequence[Answers]],
    tasks: Sequence[Spec],
    name: str,
    rows: int,
    *,
    models: int = 1,
    device: torch.device | str = "cpu",
    mixed: bool = False,
) -> Iterator[tuple[Measurement, ...]]:
    """`score` for several models at once: one measurement of each. `answer` gives the answers of all of them."""
    for segment, part in enumerate(tasks):
        task, parts = part.build(), []
        for i, start in enumerate(range(0, rows, CHUNK)):
            batch = task.draw(CHUNK, name, part.key, i)
            for some in split_rows(batch, min(CHUNK, rows - start), task.vocab, models):
                piece = some.to(device)
                parts.append([answer_columns(task, piece, *answers, mixed=mixed) for answers in answer(piece)])
        yield from zip(*(sum_answers(of_one, name, segment) for of_one in zip(*parts, strict=True)), strict=True)


def sum_answers(parts: Sequence[dict[str, Tensor]], name: str, segment: int) -> Iterator[Measurement]:
    """Sums of the columns, over all answers and by facet."""
    columns = {column: torch.cat([part[column] for part in parts]) for column in parts[0]}
    right, row = columns["right"], columns.pop("first").cumsum(0) - 1
    mistakes = torch.zeros(int(row[-1]) + 1).index_add_(0, row, 1 - right.float())
    scores = {c: columns.pop(c) for c in list(columns) if columns[c].is_floating_point()}
    by_row: dict[str, float] = {"rows": len(mistakes), "whole": int((mistakes == 0).sum())}
    for facet, values in {"": torch.zeros_like(right, dtype=torch.long), **columns}.items():
        sums = {score: torch.bincount(values, weights).tolist() for score, weights in scores.items()}
        for value, asked in enumerate(torch.bincount(values).tolist()):
            if asked:
                total = {score: of_values[value] for score, of_values in sums.items()}
                loss, correct = total.pop("loss"), int(total.pop("right"))
                extra = (by_row if not facet else {}) | total
                yield Measurement(0, name, segment, facet, value, loss, correct, asked, extra)


def split_rows(batch: Batch, rows: int, vocab: int, models: int) -> Iterator[Batch]:
    """The first rows of a batch, in pieces small enough for the logits of all models to fit into memory."""
    asked = int((batch.targets != SILENT).sum(1).max())
    size = max(1, min(LOGITS // (asked * vocab), TOKENS // batch.targets.shape[1]) // models)
    for start in range(0, rows, size):
        part = slice(start, min(start + size, rows))
        yield batch.rows(part)


def answer_columns(
    task: Task, batch: Batch, logits: Tensor, targets: Tensor, *, mixed: bool = False
) -> dict[str, Tensor]:
    """For each answer: loss, whether it is right, the task's scores, the facets, and whether it is its row's first."""
    asked = batch.targets != SILENT
    answers = torch.full_like(batch.targets, SILENT).masked_scatter_(asked, logits.argmax(-1))
    scores = {
        "loss": F.cross_entropy(logits, targets, reduction="none"),
        "right": task.right(batch, answers)[asked],
        **task.extra_scores(batch, logits),
    }
    if mixed:
        scores["mixed"] = answers_another(batch, answers, logits.shape[-1])[asked] & (scores["right"] == 0)
    columns = {name: x.cpu().double() for name, x in scores.items()}
    facets = {facet: x[asked].long().cpu() for facet, x in batch.facets.items()}
    row = asked.nonzero()[:, 0].cpu()
    return columns | facets | {"first": torch.cat([torch.ones(1), row.diff()]).clamp(max=1).long()}


def answers_another(batch: Batch, answers: Tensor, vocab: int) -> Tensor:
    """Which answers are the target of some question of their row."""
    targets, given = (part.where(part != SILENT, vocab) for part in (batch.targets, answers))
    wanted = torch.zeros(len(targets), vocab + 1, dtype=torch.bool, device=targets.device)
    return wanted.scatter_(1, targets, True).gather(1, given)


def step_seconds(recipe: Recipe, *, device: torch.device | str = "cpu", tokens: int = 512) -> float:
    """About how long a training step takes on this machine, in seconds, the mean over the steps of all segments.

    Times for each segment a step on about `tokens` tokens and one on twice as many, and draws a line through both.
    """
    total = 0.0
    for task, turns in zip((part.build() for part in recipe.train), recipe.turns, strict=True):
        rows = min(max(1, tokens // task.length), recipe.batch)
        one, two = (measure_step(recipe, task, count, device) for count in (rows, 2 * rows))
        total += turns * (one + max(0.0, two - one) * (recipe.batch - rows) / rows)
    return total / sum(recipe.turns)


def measure_step(recipe: Recipe, task: Task, rows: int, device: torch.device | str) -> float:
    """How long a step on so many rows of a task takes, in seconds; the least of several if they are short."""
    model = recipe.build().to(device)
    optimizer = make_optimizer(recipe, model)
    drawn, seconds = task.draw(rows, "train", recipe.seed, 0), []
    while len(seconds) < 2 or sum(seconds[1:]) < 0.2:  # the first warms up
        start = time.perf_counter()
        update(recipe, model, optimizer, drawn, 1, device).tolist()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def find_device(name: str) -> torch.device:
    """The device of this name. Raises ValueError if this machine has none."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as fault:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"there is no device {name!r} here; there are {known}") from fault
    return device


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, in a process that only trains.

    By default it returns the large temporary tensors of every step to the system, and the page faults that follow cost
    up to a third of the step.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    for option, size in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
        libc.mallopt(option, size)
