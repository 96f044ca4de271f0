"""Parity by one reflection for each token, the symmetric group S3 by two: state tracking by delta rules.

The trained mixers, loaded. With beta = 2 a step of the delta rule, S <- (I - beta k k^T) S, is a reflection, which has
the eigenvalue -1; with beta <= 1 every eigenvalue is at least 0 (Grazzi et al., 2024). A product of n reflections in
each token reaches every orthogonal map whose fixed space has codimension n (Siems et al., 2025).

`parity`: a start token writes one vector with beta = 1, every 1 reflects it, every 0 leaves it: the sign is the parity.
With beta of at most 1 the first 1 wipes the memory.
`permutations`: S3 moves the coordinates of R^3; a swap is the reflection along e_i - e_j, and of the six permutations
one needs none, three need one and two (the cycles) need two. The start token writes an orthonormal basis of the plane
x + y + z = 0, so that the state is the product P of what was read, restricted to that plane. Reading with q =
(1, 0, -1) / sqrt(2) gives P^-1 q, a corner of a hexagon that tells all six apart. One reflection has determinant -1 and
a cycle +1, so that with one reflection in each token the cycles are out of reach.

Answers are asked at every position: the product of all tokens so far. The first token must be the start.
"""

import math
from itertools import permutations as orders
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.constructions._construction import Embedding, Stack
from bestiary.constructions.memories import SURE, zero_mixer
from bestiary.tasks._task import SILENT, Batch

S3 = tuple(orders(range(3)))  # token t is S3[t], the map of position i to S3[t][i]; token 0 changes nothing
START = len(S3)


@torch.no_grad()
def parity(*, negative: bool = True) -> Stack:
    """Bits in, their parity out, as 0 or 1; token 2 is the start. `negative=False` keeps beta to 1 at most."""
    made = zero_mixer(f"delta_net(heads=1, conv=1, negative={negative})", 3)
    query, key, value = made.streams.project.weight.unflatten(0, (3, 3)).unbind()
    query[0], key[0] = SURE, SURE  # always along the first axis
    value[0, 2] = SURE  # the start writes it
    made.streams.conv.filter.fill_(1.0)
    made.beta.weight[0] = torch.tensor([-SURE, SURE, 0.0 if negative else SURE])  # beta = 0, the highest, and 1
    made.answer.norm.weight.fill_(1.0)
    made.answer.out.weight[0, 0] = 1.0
    return Stack(
        Embedding(torch.eye(3, dtype=torch.float64)), [made], torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]).double()
    )


@torch.no_grad()
def permutations(*, reflections: int = 2) -> Stack:
    """Elements of S3 in, the product so far out, the latest acting last; token 6 is the start.

    With one of its `reflections` a cycle does what its first swap does. Raises ValueError for another number of them.
    """
    if reflections not in (1, 2):
        raise ValueError(f"a token of S3 is one reflection or two, not {reflections}")
    dim, steps = START + 1, 2
    made = zero_mixer(f"delta_product(heads=1, key=3, value=2, conv=1, steps={steps})", dim)
    plane = torch.tensor([[1.0, 0, -1], [1, -2, 1]]).double()
    plane = plane / plane.norm(dim=1, keepdim=True)
    query, key, value = made.streams.project.weight.split([3, 3 * steps, 2 * steps])
    query.copy_(inverse_silu(plane[0]).unsqueeze(1).expand(-1, dim))
    for token in range(dim):
        for step in range(steps):
            axis, beta = plan(token, step, plane, reflections)
            key[3 * step : 3 * step + 3, token] = inverse_silu(axis)
            made.beta.weight[step, token] = {0.0: -SURE, 1.0: 0.0, 2.0: SURE}[beta]
            if token == START:
                value[2 * step + step, token] = SURE
    made.streams.conv.filter.fill_(1.0)
    made.answer.norm.weight.fill_(1.0)
    made.answer.gate.weight.fill_(SURE)
    made.answer.out.weight[:2] = torch.eye(2, dtype=torch.float64)
    corners = torch.stack([plane @ permutation_matrix(order).T @ plane[0] for order in S3])
    return Stack(Embedding(torch.eye(dim, dtype=torch.float64)), [made], F.pad(corners, (0, dim - 2)))


def plan(token: int, step: int, plane: Float[Tensor, "2 3"], most: int) -> tuple[Float[Tensor, " 3"], float]:
    """The axis of a step of a token, and its beta."""
    if token == START:
        return plane[step], 1.0
    axes = swaps(S3[token])[:most]
    if step < len(axes):
        return axes[step], 2.0
    return plane[0], 0.0


def swaps(order: tuple[int, ...]) -> list[Float[Tensor, " 3"]]:
    """The axes of the reflections that make a permutation, the first to act first."""
    target, found = permutation_matrix(order), []
    swap = {(i, j): torch.eye(3).double()[i] - torch.eye(3).double()[j] for i, j in ((0, 1), (0, 2), (1, 2))}
    for axis in swap.values():
        if torch.allclose(reflection(axis), target):
            return [axis]
        for second in swap.values():
            if order != S3[0] and torch.allclose(reflection(second) @ reflection(axis), target):
                found = [axis, second]
    return found


def reflection(axis: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """The matrix I - 2 u u^T of the unit vector u along an axis."""
    unit = axis / axis.norm()
    return torch.eye(3, dtype=torch.float64) - 2 * torch.outer(unit, unit)


def permutation_matrix(order: tuple[int, ...]) -> Float[Tensor, "3 3"]:
    """The map that sends coordinate i to coordinate order[i]."""
    made = torch.zeros(3, 3, dtype=torch.float64)
    made[list(order), range(3)] = 1.0
    return made


def inverse_silu(wanted: Float[Tensor, " 3"], *, size: float = 0.2) -> Float[Tensor, " 3"]:
    """What SiLU turns into a multiple of a vector: SiLU reaches down to -0.278, so `size` stays above that."""
    found = []
    for goal in (wanted / wanted.abs().max() * size).tolist():
        low, high = (-1.2, 0.0) if goal < 0 else (0.0, 1.0)  # SiLU rises over either
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if middle / (1 + math.exp(-middle)) < goal else (low, middle)
        found.append(0.0 if goal == 0 else (low + high) / 2)
    return torch.tensor(found, dtype=torch.float64)


def draw_words(count: int, length: int, group: int, rng: torch.Generator) -> Batch:
    """A start token and random elements of Z2 (`group=2`) or S3 (`group=6`), with their product as the target."""
    tokens = torch.randint(group, (count, length), generator=rng)
    tokens[:, 0] = group
    return Batch(tokens, products(tokens, group), {})


def products(tokens: Int[Tensor, "batch time"], group: int) -> Int[Tensor, "batch time"]:
    """The product so far, by following one permutation in plain Python; SILENT at the start."""
    elements: Any = S3 if group == len(S3) else ((0, 1), (1, 0))
    answers = torch.full_like(tokens, SILENT)
    for sequence, found in zip(tokens.tolist(), answers, strict=True):
        so_far = elements[0]
        for time, token in enumerate(sequence[1:], start=1):
            so_far = tuple(elements[token][i] for i in so_far)
            found[time] = elements.index(so_far)
    return answers
