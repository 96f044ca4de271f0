"""How large a recipe's model is, measured on the model itself; and the widths at which models are equally large.

Nothing is computed: the tensors have shapes but no data, so that even a large model is measured in moments.
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
    """Parameters, the state of one sequence in numbers and bytes, and floating-point operations per token."""

    parameters: int
    state: int
    bytes: int
    flops: float


def size(recipe: Recipe) -> Size:
    """The size of the model with its embedding; `parameters`, `state_size` and `flops` say what is counted."""
    numbers, count = state_size(recipe)
    return Size(parameters(recipe), numbers, count, flops(recipe))


def cache_by_shape(count: Callable[[Recipe], T]) -> Callable[[Recipe], T]:
    """The function, called once for all recipes that differ in seed and learning rate alone."""
    known: dict[str, T] = {}

    @wraps(count)
    def counted(recipe: Recipe) -> T:
        if (shape := recipe.shape_key) not in known:
            known[shape] = count(recipe)
        return known[shape]

    return counted


@cache_by_shape
def parameters(recipe: Recipe) -> int:
    """The number of trained parameters."""
    import torch

    with torch.device("meta"):
        return sum(weight.numel() for weight in recipe.build().parameters())


@cache_by_shape
def state_size(recipe: Recipe) -> tuple[int, int]:
    """Numbers and bytes of the state after the longest of the test tasks."""
    from bestiary.model import memory

    tasks = [task.build() for task in recipe.test]
    found = memory(recipe.build, time=max(task.length for task in tasks), dim=tasks[0].features or None)
    return found.numbers, found.bytes


@cache_by_shape
def flops(recipe: Recipe) -> float:
    """Floating-point operations of the forward pass of a training step, per token, the mean over segments.

    A multiplication and an addition are two. It counts products of matrices (attention as the whole square, masked
    or not; logits where something is asked; complex products as real ones), convolutions, Fourier transforms of n
    numbers as 2.5 n log2(n), and elementwise recurrences as 2 for each number of each state (8 if complex). It does
    not count other elementwise work: gates, norms, activations, softmax and the lookup of embeddings.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode  # tensors with shapes but no data, on a CPU
    from torch.utils.flop_counter import FlopCounterMode

    operations = tokens = 0
    for task in recipe.train:
        batch = task.build().draw(recipe.batch, "train", 0, 0)
        asked = batch.question_positions().shape
        with FakeTensorMode(), torch.no_grad():
            model, given = recipe.build(), torch.zeros(batch.tokens.shape, dtype=batch.tokens.dtype)
            where = torch.zeros(asked, dtype=torch.long)
            with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
                _ = model.parallel(given, where)
        operations, tokens = operations + counter.get_total_flops(), tokens + batch.targets.numel()
    return operations / tokens


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """Operations that torch's counter leaves out: elementwise recurrences, Fourier transforms, attention on a CPU."""
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
        cast(Any, formula)._get_raw = True  # they receive tensors, not shapes
    aten = torch.ops.aten
    fused = aten._scaled_dot_product_flash_attention_for_cpu
    return {aten._fft_r2c: transform, aten._fft_c2r: transform, aten.addcmul: step, fused: attention}


COUNTS: dict[Count, Callable[[Recipe], float]] = {
    "parameters": parameters,
    "state": lambda recipe: state_size(recipe)[0],
    "flops": flops,
}


class Match(NamedTuple):
    """The recipe whose count is nearest to a wanted one, and its count divided by the wanted one."""

    recipe: Recipe
    ratio: float


def match_widths(
    patterns: Iterable[str] | Mapping[str, str],
    like: Recipe,
    *,
    match: Count = "state",
    dims: Iterable[int] = range(4, 513, 4),
    tolerance: float = 0.2,
) -> dict[str, Match]:
    """`match_width` of several patterns, by their text or by a name. Raises ValueError if one of them has no match."""
    named = patterns if isinstance(patterns, Mapping) else {text: text for text in patterns}
    widths = sorted(set(dims))
    return {
        name: match_width(text, like, match=match, dims=widths, tolerance=tolerance) for name, text in named.items()
    }


def match_width(
    text: str, like: Recipe, *, match: Count = "state", dims: Iterable[int] = range(4, 513, 4), tolerance: float = 0.2
) -> Match:
    """The recipe with this pattern at the width whose count is nearest to that of `like`.

    Skips widths at which the pattern cannot be built. The count must not fall as the width grows; it never does for
    our mixers. Raises ValueError if no width comes within the tolerance, and names the nearest, and if `like` has a
    count of 0.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance} is no share of a count; 0.2 accepts a fifth more or less")
    widths, wanted, count = sorted(set(dims)), COUNTS[match](like), COUNTS[match]
    if not wanted:
        raise ValueError(f"{text} has nothing to match: the model to be matched has a {match} of 0; match another size")
    candidates = [recipe for recipe in recipes_at_widths(text, like, widths) if can_build(recipe)]
    if not candidates:
        raise ValueError(f"{text} can be built at none of {len(widths)} widths; give other dims")
    place = bisect_left(candidates, wanted, key=count)
    nearest = min(candidates[max(0, place - 1) : place + 1], key=lambda recipe: abs(count(recipe) / wanted - 1))
    ratio = count(nearest) / wanted
    if not abs(ratio - 1) <= tolerance:
        described = f"{count(nearest):,.0f} {match} at width {nearest.dim}, {ratio:.2f} of the {wanted:,.0f} wanted"
        raise ValueError(f"{text} has no width within {tolerance:.0%}: the nearest has {described}")
    return Match(nearest, ratio)


def recipes_at_widths(text: str, like: Recipe, widths: Iterable[int]) -> Iterable[Recipe]:
    """The recipe with another pattern, at each of the widths."""
    pattern = parse("mixers", text)
    return (like.model_copy(update={"pattern": pattern, "dim": dim}) for dim in widths)


def can_build(recipe: Recipe) -> bool:
    """Whether the recipe passes its checks."""
    try:
        recipe.check()
    except ValueError:
        return False
    return True
