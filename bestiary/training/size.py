"""How large a recipe's model is, counted from the thing itself; and widths at which models are equally large.

Nothing is computed: tensors have shapes only, so that the size of any model is known in moments.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Literal, NamedTuple, TypeVar, cast

from bestiary.spec import parse
from bestiary.training.recipe import Recipe

Count = Literal["parameters", "state", "flops"]
T = TypeVar("T")


class Size(NamedTuple):
    """Trained numbers, the state of one sequence in numbers and bytes, and the work of reading a token."""

    parameters: int
    state: int
    bytes: int
    flops: float


def size(recipe: Recipe) -> Size:
    """The size of the model, embedding included; see `parameters`, `memory_of` and `flops` for what is counted."""
    state, taken = memory_of(recipe)
    return Size(parameters(recipe), state, taken, flops(recipe))


def once(count: Callable[[Recipe], T]) -> Callable[[Recipe], T]:
    """The count, done once for all recipes that differ in seed and learning rate alone."""
    known: dict[str, T] = {}

    @wraps(count)
    def counted(recipe: Recipe) -> T:
        if (shape := recipe.shape) not in known:
            known[shape] = count(recipe)
        return known[shape]

    return counted


@once
def parameters(recipe: Recipe) -> int:
    """Numbers that training changes."""
    import torch

    with torch.device("meta"):
        return sum(weight.numel() for weight in recipe.build().parameters())


@once
def memory_of(recipe: Recipe) -> tuple[int, int]:
    """Numbers and bytes of the state after the longest of the test tasks."""
    from bestiary.model import memory

    tasks = [task.build() for task in recipe.test]
    found = memory(recipe.build, time=max(task.length for task in tasks), dim=tasks[0].features or None)
    return found.numbers, found.bytes


@once
def flops(recipe: Recipe) -> float:
    """Operations of the forward pass of a training step, for each token it reads, the mean over segments.

    A multiplication and an addition are two. Counted are products of matrices (attention as the whole square, masked
    or not; logits where something is asked; complex products as real ones), convolutions, Fourier transforms of n
    numbers as 2.5 n log2(n), and elementwise recurrences as 2 for each number of each state (8 if complex). Not
    counted is what else is done number by number: gates, norms, activations, softmax, and looking up embeddings.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode  # a CPU that has shapes only: it works as a CPU would
    from torch.utils.flop_counter import FlopCounterMode

    done = tokens = 0
    for task in recipe.train:
        batch = task.build().draw(recipe.batch, "train", 0, 0)
        asked = batch.question_positions().shape
        with FakeTensorMode(), torch.no_grad():
            model, given = recipe.build(), torch.zeros(batch.tokens.shape, dtype=batch.tokens.dtype)
            where = torch.zeros(asked, dtype=torch.long)
            with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
                _ = model.parallel(given, where)
        done, tokens = done + counter.get_total_flops(), tokens + batch.targets.numel()
    return done / tokens


def formulas() -> dict[Any, Callable[..., int]]:
    """The work of what torch's counter leaves out: elementwise recurrences, Fourier transforms, attention on a CPU."""
    import torch
    from torch.utils.flop_counter import sdpa_flop_count

    def transform(given: Any, axes: list[int], *rest: Any, out_val: Any, **named: Any) -> int:
        del rest, named
        real = out_val if out_val.is_floating_point() else given
        length = real.shape[axes[0]]
        return round(2.5 * real.numel() * math.log2(max(2, length)))

    def step(*given: Any, out_val: Any, **named: Any) -> int:
        del given, named
        return (8 if out_val.is_complex() else 2) * out_val.numel()

    def attention(q: Any, k: Any, v: Any, *rest: Any, out_val: Any, **named: Any) -> int:
        del rest, out_val, named
        return sdpa_flop_count(q.shape, k.shape, v.shape)

    for formula in (transform, step, attention):
        cast(Any, formula)._get_raw = True  # given tensors, not shapes
    aten = torch.ops.aten
    fused = aten._scaled_dot_product_flash_attention_for_cpu
    return {aten._fft_r2c: transform, aten._fft_c2r: transform, aten.addcmul: step, fused: attention}


COUNTS: dict[Count, Callable[[Recipe], float]] = {
    "parameters": parameters,
    "state": lambda recipe: memory_of(recipe)[0],
    "flops": flops,
}


class Match(NamedTuple):
    """A recipe whose count is nearest to another's, and its share of that."""

    recipe: Recipe
    ratio: float


def matched(
    patterns: Iterable[str] | Mapping[str, str],
    like: Recipe,
    *,
    match: Count = "state",
    dims: Iterable[int] = range(4, 513, 4),
    tolerance: float = 0.2,
) -> dict[str, Match]:
    """For each pattern, by its text or given name, the recipe at the width whose count is nearest to that of `like`.

    Widths at which the pattern cannot be built are skipped; the count must not fall as the width grows, as it never
    does for our mixers. Raises ValueError where no width comes as near as the tolerance, naming the nearest.
    """
    named = patterns if isinstance(patterns, Mapping) else {text: text for text in patterns}
    widths, wanted, count = sorted(set(dims)), COUNTS[match](like), COUNTS[match]
    found = {}
    for name, text in named.items():
        able = [made for made in at_widths(text, like, widths) if buildable(made)]
        if not able:
            raise ValueError(f"{text} can be built at none of {len(widths)} widths; give other dims")
        place = bisect_left(able, wanted, key=count)
        nearest = min(able[max(0, place - 1) : place + 1], key=lambda made: abs(count(made) / wanted - 1))
        ratio = count(nearest) / wanted
        if abs(ratio - 1) > tolerance:
            told = f"{count(nearest):,.0f} {match} at width {nearest.dim}, {ratio:.2f} of the {wanted:,.0f} wanted"
            raise ValueError(f"{text} has no width within {tolerance:.0%}: the nearest has {told}")
        found[name] = Match(nearest, ratio)
    return found


def at_widths(text: str, like: Recipe, widths: Iterable[int]) -> Iterable[Recipe]:
    pattern = parse("mixers", text)
    return (like.model_copy(update={"pattern": pattern, "dim": dim}) for dim in widths)


def buildable(recipe: Recipe) -> bool:
    try:
        recipe.check()
    except ValueError:
        return False
    return True
