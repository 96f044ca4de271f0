"""What every mixer must satisfy.

A law takes a spec, builds what it needs and raises `Broken` with one line that says what is wrong and where. Mixers are
checked with perturbed weights, since initial zeros would hide a broken path, and in float64, where two ways to the same
number agree to 1e-8. Ranges alone are checked in float32.
"""

import typing
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from bestiary.laws._law import DIM, TOLERANCE, Broken, Law, options
from bestiary.mixers._composition import token_kwargs
from bestiary.mixers._mixer import Mixer, take
from bestiary.model import measure_state, memory, memory_after, state_leaves
from bestiary.spec import Spec
from bestiary.tasks._task import Tokens, stream

TIME = 131  # a prime length, beyond two chunks of 64
LONG = (1024, 512, 256)  # causality and cuts are asked once more at the first of these that a mixer takes
CUTS = ((1,), (2,), (31,), (32,), (33,), (63,), (64,), (65,), (130,), (1, 2, 5, 70, 71))
WALK = (*range(20), *range(60, 69), *range(124, TIME + 1))  # lengths after which a state is measured
SPANS = ((20, TIME), (TIME - 1, TIME))  # where inputs are changed to see what follows them
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


def forward_outputs(mixer: Mixer, x: Tensor, tokens: Tokens | None) -> Tensor:
    """What `forward` gives at all positions."""
    return run_mixer(mixer, x, tokens=tokens)[0]


def parallel_outputs(mixer: Mixer, x: Tensor, tokens: Tokens | None) -> Tensor:
    """What `parallel` gives at all positions."""
    return mixer.parallel(x, None, **token_kwargs(mixer, tokens))


def longest_run(mixer: Mixer) -> tuple[Tensor, Tokens | None, Tensor]:
    """One sequence as long as a mixer takes, its tokens if it reads them, and what `parallel` gives for it."""
    for time in LONG:  # it may know fewer positions, or grow without bound
        with suppress(Exception):
            run = long_run(mixer, time)
            if run[2].isfinite().all():
                return run
    return long_run(mixer, TIME)


def long_run(mixer: Mixer, time: int) -> tuple[Tensor, Tokens | None, Tensor]:
    """One sequence of this length, its tokens if the mixer reads them, and what `parallel` gives for it."""
    x = random_inputs(1, time)
    tokens = token_choices(mixer, x)[-1]
    return x, tokens, parallel_outputs(mixer, x, tokens)


def causality(checked: Spec) -> None:
    """No output of `forward` or `parallel` depends on a later input, or on a later token."""
    mixer, x = build_perturbed(checked), random_inputs()
    for tokens in token_choices(mixer, x):
        for outputs, spans in ((forward_outputs, ((1, 2), *SPANS)), (parallel_outputs, SPANS)):
            whole = outputs(mixer, x, tokens)
            for start, end in spans:
                check_past(outputs(mixer, *with_others(x, tokens, start, end)), whole, start, end)
    with torch.no_grad():
        x, tokens, whole = longest_run(mixer)
        start, end = x.shape[1] * 3 // 4, x.shape[1]
        check_past(parallel_outputs(mixer, *with_others(x, tokens, start, end)), whole, start, end)


def with_others(x: Tensor, tokens: Tokens | None, start: int, end: int) -> tuple[Tensor, Tokens | None]:
    """Inputs and tokens with others from `start` to `end`; no norm makes them the same again."""
    at, known = torch.zeros(x.shape[1], dtype=torch.bool), None
    at[start:end] = True
    if tokens is not None:
        known = (tokens + at) % VOCAB
    return torch.where(at.unsqueeze(1), random_inputs(*x.shape[:2], seed=1), x), known


def check_past(changed: Tensor, whole: Tensor, start: int, end: int) -> None:
    """Raises Broken if outputs before `start` are not the same, however imprecise the mixer is."""
    close = min(TOLERANCE.get(), SAME_SHAPES)
    if (found := first_difference(changed[:, :start], whole[:, :start], close)) is not None:
        later = f"the input at position {start} does" if end - start == 1 else f"inputs from position {start} on do"
        raise Broken(f"the output at position {found[0]} changes when {later}")


def cut(checked: Spec) -> None:
    """Cutting a sequence anywhere and passing the state across the cut, to a copy of the mixer, changes nothing."""
    mixer, x = build_perturbed(checked), random_inputs()
    mixers = mixer, deepcopy(mixer)  # a copy from before any run, which lacks what is kept outside the state
    for tokens in token_choices(mixer, x):
        whole, _ = run_mixer(mixer, x, tokens=tokens)
        for cuts in CUTS:
            check_cut(mixers, x, tokens, whole, cuts)
    with torch.no_grad():
        x, tokens, whole = longest_run(mixer)
        check_cut(mixers, x, tokens, whole, (x.shape[1] * 3 // 4,))


def check_cut(
    mixers: tuple[Mixer, Mixer], x: Tensor, tokens: Tokens | None, whole: Tensor, cuts: tuple[int, ...]
) -> None:
    """Raises Broken unless the parts of a sequence, read by two mixers in turn, give the outputs of the whole."""
    state, parts, where = None, [], ", ".join(map(str, cuts))
    for turn, (start, end) in enumerate(pairwise((0, *cuts, x.shape[1]))):
        given = x[:, start:end], state, None if tokens is None else tokens[:, start:end]
        try:
            y, state = run_mixer(mixers[turn % 2], *given)
        except Exception as fault:  # anything may be raised by a user's code
            if turn == 0 or isinstance(fault, Broken):
                raise
            said = f"{type(fault).__name__}: {fault}".splitlines()[0]
            raise Broken(f"cut at {where}: a copy of the mixer cannot go on from the state alone: {said}") from None
        parts.append(y)
    if (found := first_difference(torch.cat(parts, dim=1), whole)) is not None:
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
    """Every parameter gets a gradient, but for those that are frozen."""
    mixer, x = build_perturbed(checked), random_inputs().requires_grad_()
    for tokens in token_choices(mixer, x):
        run_mixer(mixer, x, tokens=tokens)[0].square().sum().backward()
    for name, weight in mixer.named_parameters():
        if weight.requires_grad and (weight.grad is None or not weight.grad.any()):
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
    """What is measured as the most that a state holds up to a length is no less than what it holds on the way there.

    The walk is not on the meta device, where a step of some mixers takes many times longer; the law `meta` says that
    the sizes are the same.
    """
    mixer, state, most = build_perturbed(checked, dtype=torch.float32), None, 0
    x, parts = random_inputs(1, TIME, dtype=torch.float32), [m for m in mixer.modules() if isinstance(m, Mixer)]
    sizes, outside = dict[int, int](), dict[int, int]()
    for start, time in pairwise(WALK):
        with torch.no_grad():
            _, state = run_mixer(mixer, x[:, start:time], state)
        sizes[time] = measure_state(state).numbers
        outside[time] = sum(isinstance(leaf, int) for leaf in state_leaves(state))
        equal, places = mixer.equal_state(time), [part.largest_state(time) for part in parts]
        if wrong := [place for place in places if not 1 <= place <= time]:
            raise Broken(f"up to {time} positions the state is said to be largest after {wrong[0]}")
        for length in {*places, equal} - sizes.keys():
            sizes[length] = measure_state(run_mixer(mixer, x[:, :length])[1]).numbers
        if not 1 <= equal <= time or sizes[equal] != sizes[time]:
            raise Broken(f"after {time} positions the state has {sizes[time]} numbers, not as many as after {equal}")
        most = max(most, sizes[time])
        if (told := max(sizes[place] for place in (time, *places))) < most:
            raise Broken(f"up to {time} positions the state holds at least {most} numbers, told are {told}")
    if outside[TIME] > outside[19]:
        raise Broken(f"after {TIME} positions {outside[TIME]} numbers of the state are in no tensor, and do not count")
    measured = memory(lambda: checked.build(DIM), time=17, dim=DIM).numbers
    if measured != (most := max(sizes[time] for time in range(1, 18))):
        raise Broken(f"up to 17 positions the state holds at most {most} numbers, measured are {measured}")


def stacking(checked: Spec) -> None:
    """Sets of weights stacked under torch.func.vmap compute what a loop over them does, and change the same buffers."""
    mixers, x = [build_perturbed(checked, seed=seed) for seed in range(3)], random_inputs(2, 37)
    where = torch.tensor([[5, 36], [0, 20]])
    for tokens in token_choices(mixers[0], x):
        for training in (False, True):
            check_stack([_Parallel(mixer.train(training)) for mixer in mixers], (x, where, tokens))


def check_stack(alone: "Sequence[_Parallel]", given: tuple[Any, ...]) -> None:
    """Raises Broken unless a stack gives the outputs, gradients and buffers that its members have alone."""
    weights, buffers = stack_module_state(typing.cast("list[nn.Module]", alone))

    def run(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        numbers = weights | buffers  # in which a pass leaves what it replaces
        y = functional_call(alone[0], numbers, given)
        if lost := [name.removeprefix("mixer.") for name, buffer in buffers.items() if numbers[name] is not buffer]:
            raise Broken(f"a pass replaces the buffer {lost[0]}, which a stack would lose: write into it with copy_")
        return y

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # of operations that vmap loops over: slow, and no fault
        warnings.filterwarnings("ignore", message="There is a performance drop")
        torch.manual_seed(0)
        found = vmap(run, randomness="same")(weights, buffers)
    names = [name for name, weight in weights.items() if weight.requires_grad]
    slopes = mean_gradients(found, [weights[name] for name in names])
    for i, member in enumerate(alone):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            due = member(*given)
        check_equal("output", found[i], due)
        wanted = mean_gradients(due[None], [member.get_parameter(name) for name in names])
        for name, slope, one in zip(names, slopes, wanted, strict=True):
            check_equal(f"gradient of {name}", slope[i], one)
        for name, buffer in member.named_buffers():
            check_equal(f"buffer {name} after a pass", buffers[name][i], buffer)


def mean_gradients(y: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the mean square of each output of a stack; zero where it does not depend on a weight."""
    if not y.requires_grad:
        return tuple(map(torch.zeros_like, weights))
    loss = y.square().flatten(1).mean(1).sum()
    return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)


def check_equal(what: str, found: Tensor, due: Tensor) -> None:
    """Raises Broken unless a number under vmap is that of a loop."""
    if torch.equal(found, due):  # infinities too
        return
    gap = (found - due).abs().max().item()
    if not gap <= TOLERANCE.get() * (1 + due.abs().max().item()):
        raise Broken(f"the {what.replace('mixer.', '')} under vmap differs from a loop's by {gap:.1e}")


class _Parallel(nn.Module):
    """A mixer seen through its parallel form."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, where: Tensor, tokens: Tokens | None) -> Tensor:
        return self.mixer.parallel(x, where, **token_kwargs(self.mixer, tokens))


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
