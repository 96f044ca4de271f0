"""What every mixer must satisfy.

A law takes a spec, builds what it needs and raises `Broken` with one line that says what is wrong and where. Mixers are
checked with perturbed weights, since initial zeros would hide a broken path, and in float64, where two ways to the same
number agree to 1e-8. Ranges alone are checked in float32.
"""

import typing
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from bestiary.laws._law import DIM, TOLERANCE, Broken, Law, options
from bestiary.mixers._composition import token_kwargs
from bestiary.mixers._mixer import Mixer, take
from bestiary.model import measure_state, memory, memory_after, state_leaves
from bestiary.spec import Spec
from bestiary.tasks._task import Tokens, stream

TIME = 131  # a prime length, beyond two chunks of 64
CUTS = ((1,), (2,), (31,), (32,), (33,), (63,), (64,), (65,), (130,), (1, 2, 5, 70, 71))
CHOSEN = ((0, 36, 62, 63, 64, 65, 127, 128, 130), (1, 36, 63, 64, 66, 126, 128, 129, 129))  # where parallel is asked
SAME_SHAPES = 1e-5  # how far numbers may differ where both are computed in the same way, however imprecisely
VOCAB = 40  # of the tokens given to a mixer that reads them: few, so that some repeat
STEEPEST = 1e7  # a gradient after zero inputs: two norms in a row have a slope of 1,000 each


def build_perturbed(checked: Spec, *, seed: int = 0, by: float = 0.1, dtype: torch.dtype = torch.float64) -> Mixer:
    """The mixer with noise of size `by` added to its initial weights."""
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


def token_choices(mixer: Mixer, x: Tensor) -> tuple[Tokens | None, ...]:
    """What to give as the tokens of x: nothing, and drawn ones, too, if the mixer reads them."""
    drawn = torch.randint(VOCAB, x.shape[:2], generator=stream("laws", "tokens"))
    return (None, drawn) if mixer.reads_tokens else (None,)


def run_mixer(mixer: Mixer, x: Tensor, state: Any = None, tokens: Tokens | None = None) -> tuple[Tensor, Any]:
    """Output and state. Raises Broken if their form is wrong."""
    given = mixer(x, state, **token_kwargs(mixer, tokens))
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor)):
        raise Broken("forward(x, state) must return the output and the state")
    if given[0].shape != x.shape:
        raise Broken(f"an input of shape {tuple(x.shape)} gives an output of shape {tuple(given[0].shape)}")
    return given


def first_difference(found: Tensor, wanted: Tensor, close: float | None = None) -> tuple[int, float] | None:
    """The first position in time where two outputs differ by more than the tolerance or `close`, and how much there."""
    gap = ((found - wanted).abs().amax(dim=(0, 2)) / (1 + wanted.abs().amax())).detach()
    wrong = (~(gap <= (TOLERANCE.get() if close is None else close))).nonzero().flatten()
    return (int(wrong[0]), float(gap[wrong[0]])) if len(wrong) else None


def causality(checked: Spec) -> None:
    """No output depends on a later input, or on a later token."""
    mixer, x = build_perturbed(checked), random_inputs()
    for tokens in token_choices(mixer, x):
        whole, _ = run_mixer(mixer, x, tokens=tokens)
        for time in (1, 20, TIME - 1):
            at = (torch.arange(TIME) == time).long()
            others = None if tokens is None else (tokens + at) % VOCAB
            changed, _ = run_mixer(mixer, x + at.unsqueeze(1), tokens=others)
            close = min(TOLERANCE.get(), SAME_SHAPES)
            if (found := first_difference(changed[:, :time], whole[:, :time], close)) is not None:
                raise Broken(f"the output at position {found[0]} changes when the input at position {time} does")


def cut(checked: Spec) -> None:
    """Cutting a sequence anywhere and passing the state across the cut changes nothing."""
    mixer, x = build_perturbed(checked), random_inputs()
    for tokens in token_choices(mixer, x):
        whole, _ = run_mixer(mixer, x, tokens=tokens)
        for cuts in CUTS:
            state, parts = None, []
            for start, end in zip((0, *cuts), (*cuts, TIME), strict=True):
                y, state = run_mixer(mixer, x[:, start:end], state, None if tokens is None else tokens[:, start:end])
                parts.append(y)
            if (found := first_difference(torch.cat(parts, dim=1), whole)) is not None:
                where = ", ".join(map(str, cuts))
                raise Broken(f"cut at {where}: the output at position {found[0]} differs by {found[1]:.1e}")


def no_dead_state(checked: Spec) -> None:
    """Every real number in the state can influence a later output. Integers, such as tokens, are left to `cut`."""
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


def empty_input(checked: Spec) -> None:
    """An input of length 0 gives an empty output and leaves the state as it is; a batch of no sequences works."""
    mixer = build_perturbed(checked)
    for batch in (2, 0):
        x, nothing = random_inputs(batch, 9), random_inputs(batch, 0)
        for state in (None, run_mixer(mixer, x[:, :5])[1]):
            _, after = run_mixer(mixer, nothing, state)
            wanted, given = (list(state_leaves(kept)) for kept in (state, after))
            if state is not None and not (len(wanted) == len(given) and all(map(same_leaf, wanted, given))):
                raise Broken(f"an input of length 0 changes the state of {batch} sequences")
            (y, _), (again, _) = (run_mixer(mixer, x[:, 5:], kept) for kept in (state, after))
            if batch and (found := first_difference(again, y)) is not None:
                raise Broken(f"after an input of length 0 the output at position {found[0]} differs by {found[1]:.1e}")
        for time, asked in ((0, 0), (9, 0), (9, 2)):
            where = torch.zeros(batch, asked, dtype=torch.long)
            for there in (None, where):
                shape = (batch, time if there is None else asked, DIM)
                if (found := mixer.parallel(x[:, :time], there).shape) != shape:
                    raise Broken(f"parallel gives the shape {tuple(found)} where {shape} is due")


def same_leaf(one: Any, other: Any) -> bool:
    """Whether two parts of states are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def batch_independence(checked: Spec) -> None:
    """Sequences of one batch do not see each other."""
    mixer, x = build_perturbed(checked), random_inputs(3, 37)
    for tokens in token_choices(mixer, x):
        together, _ = run_mixer(mixer, x, tokens=tokens)
        rows = [slice(i, i + 1) for i in range(3)]
        alone = [run_mixer(mixer, x[row], tokens=None if tokens is None else tokens[row])[0] for row in rows]
        if (found := first_difference(together, torch.cat(alone))) is not None:
            raise Broken(f"a sequence gives another output in a batch than alone, first at position {found[0]}")


def parallel_form(checked: Spec) -> None:
    """`parallel` gives the outputs of `forward`, at all positions and at chosen ones, and the same gradients."""
    mixer = build_perturbed(checked)
    for x in (random_inputs(time=37), random_inputs()):
        for tokens in token_choices(mixer, x):
            check_parallel(mixer, x.requires_grad_(), tokens)


def check_parallel(mixer: Mixer, x: Tensor, tokens: Tokens | None) -> None:
    """Raises Broken unless `parallel` does for this input what `forward` does."""
    where = torch.tensor(CHOSEN).clamp(max=x.shape[1] - 1)
    whole, _ = run_mixer(mixer, x, tokens=tokens)
    named = {"x": x, **{name: weight for name, weight in mixer.named_parameters() if weight.requires_grad}}
    for asked, called in ((None, "parallel(x, None)"), (where, "parallel(x, where)")):
        found, wanted = mixer.parallel(x, asked, **token_kwargs(mixer, tokens)), take(whole, asked)
        if (differs := first_difference(found, wanted)) is not None:
            raise Broken(f"{called} differs from forward by {differs[1]:.1e}")
        both = (pulled_gradients(y, list(named.values())) for y in (found, wanted))
        for name, one, two in zip(named, *both, strict=True):
            if not (gap := (one - two).abs().max().item()) <= TOLERANCE.get() * (1 + two.abs().max().item()):
                raise Broken(f"the gradient of {name} through {called} differs from that through forward by {gap:.1e}")


def pulled_gradients(y: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the sum of an output times random numbers; zero where it does not depend on a weight."""
    if not y.requires_grad:
        return tuple(map(torch.zeros_like, weights))
    pull = torch.randn(y.shape, generator=stream("laws", "pull"), dtype=y.dtype)
    loss = (y * pull).sum()
    return torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)


def gradients(checked: Spec) -> None:
    """Every parameter gets a gradient."""
    mixer, x = build_perturbed(checked), random_inputs()
    for tokens in token_choices(mixer, x):
        run_mixer(mixer, x, tokens=tokens)[0].square().sum().backward()
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


def zero_inputs(checked: Spec) -> None:
    """Gradients stay bounded in float32 where inputs are zero: everywhere, at the start, between others, at the end."""
    x = random_inputs(time=41, dtype=torch.float32)
    holes = x.clone()
    holes[:, [*range(9), 15, *range(20, 26), *range(33, 41)]] = 0
    pull = random_inputs(time=41, seed=1, dtype=torch.float32)
    for by in (0.0, 0.1):
        for given in (torch.zeros_like(x), holes):
            mixer, given = build_perturbed(checked, by=by, dtype=torch.float32), given.clone().requires_grad_()
            (run_mixer(mixer, given)[0] * pull).sum().backward()
            for name, weight in (("input", given), *mixer.named_parameters()):
                if weight.grad is not None and not weight.grad.abs().amax() <= STEEPEST:
                    raise Broken(f"after zero inputs the gradient of {name} reaches {weight.grad.abs().amax():.1e}")


def meta(checked: Spec) -> None:
    """The state on the meta device is as large as elsewhere, so that shapes are enough to measure memory."""
    for time in (1, 40):
        with torch.device("meta"):
            measured = memory_after(checked.build(DIM), time, DIM).numbers
        _, state = run_mixer(build_perturbed(checked), random_inputs(1, time))
        real = measure_state(state).numbers
        if measured != real:
            raise Broken(f"after {time} positions the state has {measured} numbers on meta, {real} elsewhere")


def largest_state(checked: Spec) -> None:
    """No state on the way to a length is larger than what is measured as the most up to that length.

    The walk is not on the meta device, where a step of some mixers takes many times longer; the law `meta` says that
    the sizes are the same.
    """
    mixer, state, sizes = build_perturbed(checked, dtype=torch.float32), None, []
    x = random_inputs(1, 19, dtype=torch.float32)
    for time in range(1, 20):
        with torch.no_grad():
            _, state = run_mixer(mixer, x[:, time - 1 : time], state)
        sizes.append(measure_state(state).numbers)
        place = mixer.largest_state(time)
        if not 1 <= place <= time:
            raise Broken(f"up to {time} positions the state is said to be largest after {place}")
        if (told := max(sizes[-1], sizes[place - 1])) != max(sizes):
            raise Broken(f"up to {time} positions the state holds at most {max(sizes)} numbers, told are {told}")
    measured = memory(lambda: checked.build(DIM), time=17, dim=DIM).numbers
    if measured != max(sizes[:17]):
        raise Broken(f"up to 17 positions the state holds at most {max(sizes[:17])} numbers, measured are {measured}")


def stacking(checked: Spec) -> None:
    """Several sets of weights stacked under torch.func.vmap compute what a loop over them computes."""
    mixers, x = [build_perturbed(checked, seed=seed) for seed in range(3)], random_inputs(2, 37)
    weights, buffers = stack_module_state(typing.cast("list[nn.Module]", mixers))
    where = torch.tensor([[5, 36], [0, 20]])
    for tokens in token_choices(mixers[0], x):

        def loss(weights: Any, buffers: Any, given: tuple[Any, ...]) -> Tensor:
            return functional_call(_Parallel(mixers[0]), prefix_names((weights, buffers)), given).square().mean()

        with warnings.catch_warnings():  # of operations that vmap loops over: slow, and no fault
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found = vmap(grad(loss), in_dims=(0, 0, None))(weights, buffers, (x, where, tokens))
        for i, mixer in enumerate(mixers):
            alone = _Parallel(mixer)(x, where, tokens).square().mean()
            named = {name: weight for name, weight in mixer.named_parameters() if weight.requires_grad}
            wanted = torch.autograd.grad(alone, list(named.values()), allow_unused=True, materialize_grads=True)
            for name, due in zip(named, wanted, strict=True):
                gap = (found[name][i] - due).abs().max().item()
                if not gap <= TOLERANCE.get() * (1 + due.abs().max().item()):
                    raise Broken(f"the gradient of {name} under vmap differs from a loop's by {gap:.1e}")


class _Parallel(nn.Module):
    """A mixer seen through its parallel form."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, where: Tensor, tokens: Tokens | None) -> Tensor:
        return self.mixer.parallel(x, where, **token_kwargs(self.mixer, tokens))


def prefix_names(parts: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    """Weights and buffers of a mixer, named as those of `_Parallel`."""
    return {f"mixer.{name}": tensor for part in parts for name, tensor in part.items()}


def seeding(checked: Spec) -> None:
    """The initial weights and buffers come from torch's generator alone."""
    twice = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twice.append(checked.build(DIM))
    one, two = ({**dict(built.named_parameters()), **dict(built.named_buffers())} for built in twice)
    for name, weight in one.items():
        if not torch.equal(weight, two[name]):
            raise Broken(f"two builds from one seed differ in {name}")


MIXER_LAWS: dict[str, Law] = {
    "causality": causality,
    "cut": cut,
    "empty input": empty_input,
    "no dead state": no_dead_state,
    "batch independence": batch_independence,
    "parallel form": parallel_form,
    "gradients": gradients,
    "float32 range": float_range,
    "zero inputs": zero_inputs,
    "meta": meta,
    "largest state": largest_state,
    "stacking": stacking,
    "seeding": seeding,
    "options": options,
}
