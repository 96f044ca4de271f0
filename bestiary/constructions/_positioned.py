"""BaseConv as the theory has it, with one bias for each position (Arora et al., 2023, section 4).

    y = (W u + B1) * (K convolved with u + B2)        W, K, B1 and B2 are given, sparse, and B1 and B2 know the row

The trained mixer `base_conv` is not this operator: its biases are the same at every position and it adds its input,
so that it can neither keep some rows and drop others nor forget a channel. Widths may change from layer to layer,
which is the same as zero channels.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Mixer
from bestiary.ops import convolution

FEW = 8  # taps of one channel, up to which they are summed one by one; more go through a Fourier transform

Number = int | float
Column = Float[Tensor, " rows"]
Inputs = Float[Tensor, "batch time inputs"]
Outputs = Float[Tensor, "batch time outputs"]
Entries = Mapping[tuple[int, int], Number]


class Positioned(Mixer):
    """y = (W u + B1) * (K convolved with u + B2), from `inputs` channels to `outputs`.

    `weight` maps (output, input) to a number, `taps` maps (lag, channel) to one; `left` and `right` (B1 and B2) map
    an output to a number or to a column, one number for each of `rows` positions. What is not given is zero.
    Reading on beyond the rows of a column raises ValueError.
    """

    class Memory(NamedTuple):
        """How many positions were read, and the inputs that taps still reach."""

        time: int
        past: Tensor | None  # the inputs of lagged channels that a tap will still reach

    weight: Tensor
    lagged: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        weight: Entries,
        taps: Entries,
        left: Mapping[int, Number | Column],
        right: Mapping[int, Number | Column],
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.register_buffer("weight", sparse_matrix(weight, (outputs, inputs)))
        self.left, self.right = _Bias(outputs, left), _Bias(outputs, right)
        most = max(Counter(channel for _, channel in taps).values(), default=0)
        self.filter = _Transformed(taps) if most > FEW else _Tapped(min(inputs, outputs), taps)
        self.reach = max((lag for lag, _ in taps), default=0)
        self.register_buffer("lagged", torch.tensor(sorted({c for lag, c in taps if lag}), dtype=torch.long))

    def empty_output(self, x: Inputs) -> Outputs:
        return x.new_zeros(*x.shape[:2], self.outputs)

    def forward(self, x: Inputs, state: Memory | None = None) -> tuple[Outputs, Memory]:
        time, past = (0, None) if state is None else state
        seen = x
        if past is not None:
            seen = torch.cat([torch.zeros_like(x[:, :1]).repeat(1, past.shape[1], 1), x], dim=1)
            seen[:, : past.shape[1], self.lagged] = past
        mixed = self.right(self.filter(seen, self.outputs)[:, seen.shape[1] - x.shape[1] :], time)
        linear = torch.sparse.mm(self.weight, x.flatten(0, 1).T).T.unflatten(0, x.shape[:2])
        kept = convolution.recent_inputs(x[..., self.lagged], past, self.reach + 1) if self.reach else None
        return self.left(linear, time) * mixed, self.Memory(time + x.shape[1], kept)


def sparse_matrix(entries: Entries, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix from its entries."""
    where = torch.tensor(list(entries), dtype=torch.long).reshape(-1, 2).T
    values = torch.tensor(list(entries.values()), dtype=torch.float64)
    return torch.sparse_coo_tensor(where, values, shape, check_invariants=True).coalesce()


class _Bias(nn.Module):
    """Adds a constant to some channels, and a column to others."""

    constant: Tensor
    columns: Tensor
    where: Tensor

    def __init__(self, width: int, given: Mapping[int, Number | Column]) -> None:
        super().__init__()
        columns = {channel: value for channel, value in given.items() if isinstance(value, Tensor)}
        constant = torch.zeros(width, dtype=torch.float64)
        for channel, value in given.items():
            if not isinstance(value, Tensor):
                constant[channel] = value
        stacked = torch.stack(list(columns.values()), dim=1) if columns else torch.zeros(0, 0, dtype=torch.float64)
        self.register_buffer("constant", constant)
        self.register_buffer("columns", stacked)
        self.register_buffer("where", torch.tensor(list(columns), dtype=torch.long))

    def forward(self, x: Outputs, time: int) -> Outputs:
        x = x + self.constant
        if len(self.where):
            end = time + x.shape[1]
            if end > len(self.columns):
                raise ValueError(f"the biases are written for {len(self.columns)} positions, the input needs {end}")
            x[..., self.where] += self.columns[time:end]
        return x


class _Tapped(nn.Module):
    """A convolution with few taps for each channel, summed one by one, so that nothing is rounded."""

    lags: Tensor
    sizes: Tensor

    def __init__(self, width: int, taps: Entries) -> None:
        super().__init__()
        of: dict[int, list[tuple[int, float]]] = {}
        for (lag, channel), size in taps.items():
            of.setdefault(channel, []).append((lag, size))
        depth = max(map(len, of.values()), default=0)
        lags, sizes = torch.zeros(depth, width, dtype=torch.long), torch.zeros(depth, width, dtype=torch.float64)
        for channel, found in of.items():
            for i, (lag, size) in enumerate(found):
                lags[i, channel], sizes[i, channel] = lag, size
        self.register_buffer("lags", lags)
        self.register_buffer("sizes", sizes)

    def forward(self, x: Inputs, outputs: int) -> Outputs:
        time, width = x.shape[1], self.lags.shape[1]
        y = x.new_zeros(*x.shape[:2], outputs)
        for lags, sizes in zip(self.lags, self.sizes, strict=True):
            if not lags.any():
                y[..., :width] += sizes * x[..., :width]
                continue
            source = torch.arange(time, device=x.device).unsqueeze(1) - lags
            found = x[..., :width].gather(1, source.clamp(min=0).expand(len(x), -1, -1))
            y[..., :width] += sizes * found * (source >= 0)
        return y


class _Transformed(nn.Module):
    """A convolution with many taps, such as a prefix sum, by Fourier transform."""

    filter: Tensor
    where: Tensor

    def __init__(self, taps: Entries) -> None:
        super().__init__()
        channels = sorted({channel for _, channel in taps})
        place = {channel: i for i, channel in enumerate(channels)}
        filter = torch.zeros(1 + max(lag for lag, _ in taps), len(channels), dtype=torch.float64)
        for (lag, channel), size in taps.items():
            filter[lag, place[channel]] = size
        self.register_buffer("filter", filter)
        self.register_buffer("where", torch.tensor(channels))

    def forward(self, x: Inputs, outputs: int) -> Outputs:
        y = x.new_zeros(*x.shape[:2], outputs)
        y[..., self.where] = convolution.long(x[..., self.where], self.filter)
        return y


def taps_of(filters: Iterable[tuple[int, Mapping[int, Number]]]) -> dict[tuple[int, int], Number]:
    """Filters of channels, each a map from lags to numbers, as the entries of K."""
    return {(lag, channel): size for channel, filter in filters for lag, size in filter.items()}
