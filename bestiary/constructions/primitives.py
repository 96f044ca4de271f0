"""The primitives of BaseConv: what one layer with position-dependent biases can do, its weights written out.

Each returns one layer y = (W u + B1) * (K convolved with u + B2) on `dim` channels that changes one of them and
remembers the others: W = 0, B1 = 1, K = delta_0, B2 = 0 there (after Arora et al., 2023, appendix H; the names are
theirs). `circuit` composes them by itself.

    primitive        W            B1      K                  B2       changed channels hold
    linear           M            0       0                  1        u M, all channels
    copy             c <- a       0       0                  1        u_a
    shift by s       0            1       delta_s            0        u at i - s, zero above
    add rows         0            1       delta_0 + delta_s  0        u_i + u_{i-s}
    prefix sum       0            1       1 at every lag     0        u_0 + ... + u_i
    channel product  c <- a       0       delta_0            0        u_a u_c
    affine product   c <- alpha a beta    gamma delta_0      delta    (alpha u_a + beta) (gamma u_c + delta)
    row mask         0            0 / 1   delta_0            0        u in the chosen rows, zero in the others

To operate on some rows and keep the others: mask them into two channels, operate on one, add.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from bestiary.constructions._positioned import Column, Entries, Number, Positioned


def change_channel(
    dim: int, channel: int, *, weight: Entries, filter: Mapping[int, Number], left: Number | Column, right: Number
) -> Positioned:
    """A layer that changes one channel. Raises ValueError if there is no such channel."""
    for named in (channel, *(a for _, a in weight)):
        if not 0 <= named < dim:
            raise ValueError(f"channel {named} is not among the {dim} channels")
    others: dict[int, Number | Column] = {c: 1.0 for c in range(dim) if c != channel}
    taps = {(0, c): 1.0 for c in others} | {(lag, channel): size for lag, size in filter.items()}
    return Positioned(dim, dim, weight=weight, taps=taps, left=others | {channel: left}, right={channel: right})


def linear(matrix: Float[Tensor, "inputs outputs"]) -> Positioned:
    """u M, in every channel; nothing is remembered."""
    inputs, outputs = matrix.shape
    weight = {(c, a): matrix[a, c].item() for a in range(inputs) for c in range(outputs)}
    return Positioned(inputs, outputs, weight=weight, taps={}, left={}, right=dict.fromkeys(range(outputs), 1.0))


def copy(dim: int, a: int, to: int) -> Positioned:
    """Channel `to` becomes channel a."""
    return change_channel(dim, to, weight={(to, a): 1.0}, filter={}, left=0.0, right=1.0)


def shift(dim: int, channel: int, by: int) -> Positioned:
    """Row i of a channel becomes its row i - by, zero above."""
    return change_channel(dim, channel, weight={}, filter={by: 1.0}, left=1.0, right=0.0)


def add_rows(dim: int, channel: int, by: int) -> Positioned:
    """Row i of a channel becomes the sum of its rows i and i - by."""
    filter = {0: 1.0, by: 1.0} if by else {0: 2.0}
    return change_channel(dim, channel, weight={}, filter=filter, left=1.0, right=0.0)


def prefix_sum(dim: int, channel: int, rows: int) -> Positioned:
    """Row i of a channel becomes the sum of its rows up to i."""
    return change_channel(dim, channel, weight={}, filter=dict.fromkeys(range(rows), 1.0), left=1.0, right=0.0)


def product(dim: int, a: int, to: int) -> Positioned:
    """Channel `to` is multiplied by channel a."""
    return affine_product(dim, a, to)


def affine_product(
    dim: int, a: int, to: int, *, scale: tuple[Number, Number] = (1.0, 1.0), plus: tuple[Number, Number] = (0.0, 0.0)
) -> Positioned:
    """Channel `to` becomes (scale_0 u_a + plus_0) (scale_1 u_to + plus_1)."""
    return change_channel(dim, to, weight={(to, a): scale[0]}, filter={0: scale[1]}, left=plus[0], right=plus[1])


def row_mask(dim: int, channel: int, rows: int, kept: Iterable[int]) -> Positioned:
    """The chosen ones of `rows` rows of a channel stay, the others become zero: "remember" of the paper."""
    mask = torch.zeros(rows, dtype=torch.float64)
    mask[list(kept)] = 1.0
    return change_channel(dim, channel, weight={}, filter={0: 1.0}, left=mask, right=0.0)
