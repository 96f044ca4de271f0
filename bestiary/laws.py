"""What every mixer and every task must satisfy. CI and `bestiary check` run the same laws.

A law takes a spec, builds what it needs and raises `Broken` with one line that says what is wrong and where.
Mixers are checked with every weight moved off its initial value, since zeros would hide a broken path, and in
float64, where two ways to the same number agree to 1e-8; range alone is checked in float32.
"""

import random
import typing
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from bestiary.mixers._mixer import Mixer, take
from bestiary.model import measure_state, memory, state_leaves
from bestiary.spec import Spec, locate, parse, schema, spec
from bestiary.tasks._task import LARGE_SPACE, SILENT, Batch, Task, stream

DIM, TIME = 64, 131  # a prime length, beyond two chunks of 64
CUTS = ((1,), (2,), (31,), (32,), (33,), (63,), (64,), (65,), (130,), (1, 2, 5, 70, 71))
CLOSE = 1e-8

Law = Callable[[Spec], None]


class Broken(Exception):
    """A law does not hold."""


def check(checked: Spec) -> Iterator[tuple[str, str | None]]:
    """Each law's name, and what breaks it or None."""
    for name, law in (MIXER_LAWS if checked.kind == "mixers" else TASK_LAWS).items():
        try:
            law(checked)
        except Broken as broken:
            yield name, str(broken)
        except Exception as fault:  # anything at all may be wrong with a user's code, and is the verdict
            yield (
                name,
                f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else 'no message'}",
            )
        else:
            yield name, None


def variants(kind: str, name: str) -> Iterator[Spec]:
    """A mixer or task with its defaults, and with the options under which it asks to be checked."""
    for options in ("", *locate(kind, name).variants):
        yield from parse(kind, f"{name}({options})")


# Mixers


def build_perturbed(checked: Spec, *, seed: int = 0, by: float = 0.1, dtype: torch.dtype = torch.float64) -> Mixer:
    """The mixer with its weights moved off their initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer = checked.build(DIM).to(dtype).eval()
        with torch.no_grad():
            for weight in mixer.parameters():
                weight.add_(by * torch.randn_like(weight))
    return mixer


def random_inputs(batch: int = 2, time: int = TIME, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal inputs (batch, time, DIM), the same for the same seed."""
    return torch.randn(batch, time, DIM, generator=stream("laws", seed), dtype=dtype)


def run_mixer(mixer: Mixer, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Output and state. Raises Broken if their form is wrong."""
    given = mixer(x, state)
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor)):
        raise Broken("forward(x, state) must return the output and the state")
    if given[0].shape != x.shape:
        raise Broken(f"an input of shape {tuple(x.shape)} gives an output of shape {tuple(given[0].shape)}")
    return given


def first_difference(found: Tensor, wanted: Tensor) -> tuple[int, float] | None:
    """The first position in time where two outputs differ, and by how much there."""
    gap = ((found - wanted).abs().amax(dim=(0, 2)) / (1 + wanted.abs().amax())).detach()
    wrong = (~(gap <= CLOSE)).nonzero().flatten()
    return (int(wrong[0]), float(gap[wrong[0]])) if len(wrong) else None


def causality(checked: Spec) -> None:
    """No output depends on a later input."""
    mixer, x = build_perturbed(checked), random_inputs()
    whole, _ = run_mixer(mixer, x)
    for time in (1, 20, TIME - 1):
        changed = x.clone()
        changed[:, time] += 1
        if (found := first_difference(run_mixer(mixer, changed)[0][:, :time], whole[:, :time])) is not None:
            raise Broken(f"the output at position {found[0]} changes when the input at position {time} does")


def cut(checked: Spec) -> None:
    """Cutting a sequence anywhere and passing the state across the cut changes nothing."""
    mixer, x = build_perturbed(checked), random_inputs()
    whole, _ = run_mixer(mixer, x)
    for cuts in CUTS:
        state, parts = None, []
        for start, end in zip((0, *cuts), (*cuts, TIME), strict=True):
            y, state = run_mixer(mixer, x[:, start:end], state)
            parts.append(y)
        if (found := first_difference(torch.cat(parts, dim=1), whole)) is not None:
            where = ", ".join(map(str, cuts))
            raise Broken(f"cut at {where}: the output at position {found[0]} differs by {found[1]:.1e}")


def no_dead_state(checked: Spec) -> None:
    """Every number in the state can influence a later output; of whole ones, such as tokens, a cut tells."""
    alive: list[Tensor] = []
    for seed in range(3):
        mixer, x = build_perturbed(checked, seed=seed), random_inputs(1, seed=seed)
        _, state = run_mixer(mixer, x[:, :30])
        given = [leaf.detach() for leaf in state_leaves(state) if isinstance(leaf, Tensor)]
        kept = [leaf.requires_grad_() for leaf in given if leaf.is_floating_point() or leaf.is_complex()]
        if not kept:
            return
        y, _ = run_mixer(mixer, x[:, 30:], replace_tensors(state, iter(given)))
        if not y.requires_grad:
            raise Broken("the output does not depend on the state at all")
        grads = torch.autograd.grad(y.square().sum(), kept, allow_unused=True)
        now = [torch.zeros_like(k, dtype=torch.bool) if g is None else g != 0 for k, g in zip(kept, grads, strict=True)]
        alive = [a | b for a, b in zip(alive, now, strict=True)] if alive else now
    for found in alive:
        if not found.all():
            share = 1 - found.double().mean().item()
            raise Broken(f"{share:.0%} of a state of shape {tuple(found.shape)} never reaches an output")


def replace_tensors(state: Any, tensors: Iterator[Tensor]) -> Any:
    """The state with its tensors replaced, in order."""
    if isinstance(state, Tensor):
        return next(tensors)
    if isinstance(state, tuple | list):
        parts = [replace_tensors(part, tensors) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def batch_independence(checked: Spec) -> None:
    """Sequences of one batch do not see each other."""
    mixer, x = build_perturbed(checked), random_inputs(3, 37)
    together, _ = run_mixer(mixer, x)
    alone = torch.cat([run_mixer(mixer, x[i : i + 1])[0] for i in range(3)])
    if (found := first_difference(together, alone)) is not None:
        raise Broken(f"a sequence gives another output in company, first at position {found[0]}")


def parallel_form(checked: Spec) -> None:
    """`parallel` gives what `forward` gives, everywhere and at chosen positions."""
    mixer, x = build_perturbed(checked), random_inputs(2, 37)
    whole, _ = run_mixer(mixer, x)
    where = torch.tensor([[0, 3, 36, 36], [1, 2, 20, 21]])
    for asked in (None, where):
        if (found := first_difference(mixer.parallel(x, asked), take(whole, asked))) is not None:
            raise Broken(
                f"parallel(x, {'where' if asked is not None else None}) differs from forward by {found[1]:.1e}"
            )


def gradients(checked: Spec) -> None:
    """Every parameter gets a gradient."""
    mixer, x = build_perturbed(checked), random_inputs()
    run_mixer(mixer, x)[0].square().sum().backward()
    for name, weight in mixer.named_parameters():
        if weight.grad is None or not weight.grad.any():
            raise Broken(f"the parameter {name} gets no gradient")


def float_range(checked: Spec) -> None:
    """Inputs a hundred times too large give finite outputs and gradients in float32."""
    for by in (0.0, 0.1):
        mixer = build_perturbed(checked, by=by, dtype=torch.float32)
        x = (100 * random_inputs(dtype=torch.float32)).requires_grad_()
        y, _ = run_mixer(mixer, x)
        y.sum().backward()
        for name, found in {
            "output": y,
            "input gradient": x.grad,
            **{n: p.grad for n, p in mixer.named_parameters()},
        }.items():
            if found is not None and not found.isfinite().all():
                raise Broken(f"inputs of size 100 make the {name} infinite or NaN")


def meta(checked: Spec) -> None:
    """Shapes alone are enough to measure memory: the state on the meta device is the state elsewhere."""
    for time in (1, 40):
        measured = memory(lambda: checked.build(DIM), time=time, dim=DIM).numbers
        _, state = run_mixer(build_perturbed(checked), random_inputs(1, time))
        real = measure_state(state).numbers
        if measured != real:
            raise Broken(f"after {time} positions the state has {measured} numbers on meta, {real} in truth")


def stacking(checked: Spec) -> None:
    """Several sets of weights stacked under torch.func.vmap compute what a loop over them computes."""
    mixers, x = [build_perturbed(checked, seed=seed) for seed in range(3)], random_inputs(2, 37)
    weights, buffers = stack_module_state(typing.cast("list[nn.Module]", mixers))
    where = torch.tensor([[5, 36], [0, 20]])

    def loss(weights: Any, buffers: Any, x: Tensor) -> Tensor:
        return functional_call(_Parallel(mixers[0]), prefix_names((weights, buffers)), (x, where)).square().mean()

    found = vmap(grad(loss), in_dims=(0, 0, None))(weights, buffers, x)
    for i, mixer in enumerate(mixers):
        mixer.parallel(x, where).square().mean().backward()
        for name, weight in mixer.named_parameters():
            gap = (found[name][i] - typing.cast(Tensor, weight.grad)).abs().max().item()
            if not gap <= CLOSE * (1 + float(typing.cast(Tensor, weight.grad).abs().max())):
                raise Broken(f"the gradient of {name} under vmap differs from a loop's by {gap:.1e}")


class _Parallel(nn.Module):
    """A mixer seen through its parallel form."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        return self.mixer.parallel(x, where)


def prefix_names(parts: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    """Weights and buffers of a mixer, named as those of `_Parallel`."""
    return {f"mixer.{name}": tensor for part in parts for name, tensor in part.items()}


def seeding(checked: Spec) -> None:
    """The initial weights come from torch's generator alone."""
    twice = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twice.append(checked.build(DIM))
    for (name, one), two in zip(twice[0].named_parameters(), twice[1].parameters(), strict=True):
        if not torch.equal(one, two):
            raise Broken(f"two builds from one seed differ in {name}")


def options(checked: Spec) -> None:
    """Wrong names and types are refused when the spec is made, wrong values when it is built, in one line."""
    known = schema(checked.kind, checked.name)
    check_refusal(
        lambda: spec(checked.kind, checked.name, no_such_option=1), TypeError, "an option that does not exist"
    )
    for name, (_, default) in known.items():
        check_refusal(
            lambda name=name: spec(checked.kind, checked.name, **{name: object()}),
            TypeError,
            f"{name}=object()",
        )
        if isinstance(default, int) and not isinstance(default, bool):
            for value in (-1, 0, 1, 7):
                try_option(checked, name, value)


def check_refusal(call: Callable[[], Any], wanted: type[Exception], what: str) -> None:
    """Raises Broken unless the call raises `wanted` with a message of one line."""
    try:
        call()
    except wanted as fault:
        if "\n" in str(fault):
            raise Broken(f"the message about {what} has more than one line") from None
    else:
        raise Broken(f"{what} is accepted")


def try_option(checked: Spec, name: str, value: int) -> None:
    """Build with a value that may be wrong: it works, or a TypeError or ValueError says so."""
    given = (DIM,) if checked.kind == "mixers" else ()
    try:
        with torch.device("meta"):
            spec(checked.kind, checked.name, **{**dict(checked.options), name: value}).build(*given)
    except (TypeError, ValueError) as fault:
        if "\n" in str(fault):
            raise Broken(f"the message about {name}={value} has more than one line") from None
    except Exception as fault:
        raise Broken(f"{name}={value} raises {type(fault).__name__} instead of a ValueError") from None


MIXER_LAWS: dict[str, Law] = {
    "causality": causality,
    "cut": cut,
    "no dead state": no_dead_state,
    "batch independence": batch_independence,
    "parallel form": parallel_form,
    "gradients": gradients,
    "float32 range": float_range,
    "meta": meta,
    "stacking": stacking,
    "seeding": seeding,
    "options": options,
}


# Tasks

ROWS = 2000


def draw_batch(checked: Spec, *path: Any, rows: int = ROWS) -> tuple[Task, Batch]:
    """The task, and a batch of a stream."""
    task = checked.build()
    return task, task.draw(rows, *path)


def determinism(checked: Spec) -> None:
    """A batch is a function of its stream alone, and draws from nothing else."""
    task, one = draw_batch(checked, "laws", 0, rows=50)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        random.seed(1)
        again = checked.build().draw(50, "laws", 0)
    other = task.draw(50, "laws", 1)
    if not all(torch.equal(a, b) for a, b in zip(one.tensors(), again.tensors(), strict=True)):
        raise Broken("the same stream gives another batch: sampling draws from a global generator")
    if torch.equal(one.tokens, other.tokens):
        raise Broken("another stream gives the same batch")


RESERVED = "loss", "right", "first"  # columns that training.score adds


def shapes(checked: Spec) -> None:
    """Tokens and targets lie in the vocabulary, every row asks something, facets are as large and named apart."""
    task, batch = draw_batch(checked, "laws", 0)
    wanted, shape = (ROWS, task.length), batch.tokens.shape
    if shape != wanted + ((task.features,) if task.features else ()) or any(
        x.shape != wanted for x in (batch.targets, *batch.facets.values())
    ):
        shapes = [tuple(x.shape) for x in (batch.tokens, batch.targets, *batch.facets.values())]
        raise Broken(f"a batch of {ROWS} rows of length {task.length} has shapes {shapes}")
    asked = batch.targets != SILENT
    symbols = {} if task.features else {"tokens": batch.tokens}
    for name, found in {**symbols, "targets": batch.targets[asked]}.items():
        if found.min() < 0 or found.max() >= task.vocab:
            raise Broken(f"{name} run from {found.min()} to {found.max()}, the vocabulary from 0 to {task.vocab - 1}")
    if not asked.any(1).all():
        raise Broken("some rows ask nothing")
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


def disjoint_streams(checked: Spec) -> None:
    """Rows of the train, selection and test streams never meet; a task with few sequences says how few."""
    sets = {name: row_set(draw_batch(checked, *name)[1]) for name in STREAMS}
    task: Task = checked.build()
    if (again := len(sets["train", 0, 0] & sets["train", 1, 0])) and task.space >= LARGE_SPACE:
        raise Broken(f"two training batches share {again} rows, so the task must say how small its `space` is")
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
    """Every preset, and every value of every axis beside the other defaults, is a task whose oracle is right."""
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


def row_set(batch: Batch) -> set[bytes]:
    """The rows of a batch as a set."""
    return {row.tobytes() for row in batch.tokens.numpy()}


def chance_level(checked: Spec) -> None:
    """The best answer that does not look at the tokens is right as often as stated; 2 % of it may be measured amiss."""
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
    "determinism": determinism,
    "shapes": shapes,
    "oracle": oracle,
    "prefix": prefix,
    "disjoint streams": disjoint_streams,
    "presets": presets,
    "chance": chance_level,
    "options": options,
}
