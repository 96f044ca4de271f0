"""Signs of how a training goes, by which the doctor tells why a run did not learn. They change nothing in it.

At each evaluation, for each part of the model (`embed`, `layers.0.mixer`, `layers.0.channel`, ...), as squared norms:

    gradient:PART   of the gradient of that step, after clipping
    moved:PART      of the difference between the weights and those before the first step
    cut:WEIGHT      how many numbers a weight has whose gradient is exactly zero, or that the loss does not reach
    frozen:WEIGHT   how many numbers a weight has that does not ask for a gradient

At the first evaluation also, the last three from a few training rows:

    start:PART      of the weights before the first step
    probed          rows that were read twice, the second time with other tokens in their second half
    leaks           those of them in which an output in the first half has changed, as none may
    blind           layers whose mixer answers the same at the last position when what came before is reversed
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bestiary.mixers._composition import token_kwargs
from bestiary.model import SEGMENT, Layer, Model
from bestiary.tasks._task import Batch
from bestiary.training.recipe import Recipe
from bestiary.training.whole import AnyModel

ROWS = 2  # that are probed
SAME = 1e-3  # two outputs differ by less, relative to the largest, if only rounding differs
DIGITS = 5  # of a squared norm


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@torch.no_grad()
def training_signs(model: nn.Module, start: Mapping[str, Tensor]) -> dict[str, float]:
    """The signs of a model that has just made a step, and had the weights `start` before the first."""
    weights = dict(model.named_parameters())
    moved = [weight - start[name] for name, weight in weights.items()]
    reached = {id(weight): weight.grad for weight in weights.values() if weight.grad is not None}
    found = torch.stack(torch._foreach_norm([*moved, *reached.values()])).tolist()  # pyright: ignore[reportPrivateImportUsage]
    by_weight = dict(zip(reached, found[len(weights) :], strict=True))
    gradients = [by_weight.get(id(w), 0.0) if w.requires_grad else None for w in weights.values()]
    return name_signs(list(weights), gradients, found[: len(weights)], [w.numel() for w in weights.values()])


def name_signs(
    names: Sequence[str], gradients: Sequence[float | None], moved: Sequence[float], counts: Sequence[int]
) -> dict[str, float]:
    """The signs from the norms of each weight; the gradient of a weight that does not ask for one is None."""
    kinds = ("frozen" if gradient is None else "cut" for gradient in gradients)
    still = {
        f"{kind}:{name}": float(count)
        for kind, name, gradient, count in zip(kinds, names, gradients, counts, strict=True)
        if not gradient
    }
    asked = [(name, norm) for name, norm in zip(names, gradients, strict=True) if norm is not None]
    return {**sum_squares("gradient", asked), **sum_squares("moved", zip(names, moved, strict=True)), **still}


def sum_squares(sign: str, norms: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The squared norms of the parts of the model, from the norms of its weights."""
    sums: dict[str, float] = {}
    for name, norm in norms:
        place = f"{sign}:{part_of(name)}"
        sums[place] = sums.get(place, 0.0) + norm**2
    return {place: round_number(total) for place, total in sums.items() if math.isfinite(total)}


def start_signs(start: Mapping[str, Tensor]) -> dict[str, float]:
    """The squared norms of the weights before the first step, by part."""
    return sum_squares("start", ((name, float(weight.norm())) for name, weight in start.items()))


def part_of(name: str) -> str:
    """The part of the model that a weight belongs to; the norm before a mixer belongs to the mixer."""
    words = name.split(".")
    if words[0] != "layers":
        return words[0]
    return ".".join((*words[:2], words[2].removeprefix("before_")))


def round_number(value: float) -> float:
    """A number with few digits, so that a log stays small."""
    return float(f"{value:.{DIGITS}g}")


@torch.no_grad()
def probe(recipe: Recipe, model: AnyModel, *, device: torch.device | str = "cpu") -> dict[str, float]:
    """`probed`, `leaks` and `blind` of a model; nothing where the sequences are very long, or answered at the end."""
    task = recipe.train[0].build()
    if not 4 <= task.length <= SEGMENT or task.bottleneck:
        return {}
    batch: Batch = task.draw(min(ROWS, recipe.batch), "train", recipe.seed, 0).to(device)
    tokens = batch.tokens
    if tokens.is_floating_point():
        tokens = tokens.to(next(model.parameters()).dtype)
    middle, training = tokens.shape[1] // 2, model.training
    changed = tokens.clone()
    changed[:, middle:] = -tokens[:, middle:] if tokens.is_floating_point() else (tokens[:, middle:] + 1) % task.vocab
    model.eval()
    both = model.hidden(torch.cat([tokens, changed]))[:, :middle].flatten(1)
    leaks = [differ(*pair) for pair in zip(*both.chunk(2), strict=True)]
    blind = 0  # of a whole model, whose layers are not known
    if isinstance(model, Model):
        blind = sum(is_blind(cast(Layer, layer), model, tokens) for layer in model.layers)
    model.train(training)
    return {"probed": float(len(tokens)), "leaks": float(sum(leaks)), "blind": float(blind)}


def is_blind(layer: Layer, model: Model, tokens: Tensor) -> bool:
    """Whether a mixer's last output does not depend on the order of what came before."""
    turned = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], dim=1)
    if torch.equal(turned, tokens):
        return False
    both = torch.cat([tokens, turned])
    x = model.embed(both) if model.read is None else model.read(both)
    last = torch.full(both.shape[:2], both.shape[1] - 1, device=both.device)[:, :1]
    known = token_kwargs(layer.mixer, model.mixer_tokens(both))
    y = layer.mixer.parallel(layer.before_mixer(x), last, **known).flatten(1)
    return bool(y.abs().max() > 0) and not differ(*y.chunk(2))


def differ(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs differ by more than rounding."""
    return bool((one - other).abs().max() > SAME * one.abs().max())


def stacked_signs(
    names: Sequence[str], gradients: Sequence[Tensor], weights: Sequence[Tensor], start: Sequence[Tensor]
) -> list[dict[str, float]]:
    """`training_signs` of each member of a stack, from its stacked weights and gradients."""
    moved = [weight - first for weight, first in zip(weights, start, strict=True)]
    norms = [torch.stack([x.reshape(len(x), -1).norm(dim=1) for x in part]).T.tolist() for part in (gradients, moved)]
    counts = [weight[0].numel() for weight in weights]
    return [name_signs(names, of_gradients, of_moves, counts) for of_gradients, of_moves in zip(*norms, strict=True)]
