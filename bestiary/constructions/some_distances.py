"""Filters that depend on the input recall in constant depth from t distances (Arora et al., 2023, Thm 4.5).

Row i is [onehot k | onehot v | onehot q]; the filters have spikes at the distances s at which a query asks for a key.
For each of them z = q_i * k_{i-s}, whose sum m is 1 where the tokens are the same, and m v_{i-s}; the answer is the sum
over s. Copies, products, sums, copies, products and a sum are six layers of width O(t c) for c tokens, with O(t c)
weights that are not zero, independent of the number of rows. (The theorem's O(t N c) parameters count the
filters written out.) The input enters the filters through the set of distances alone, so that the layers are compiled
for a set and kept.

    "programmatic"      the distances at which tokens repeat, read off the input
    "autocorrelation"   the t lags with the highest correlation sum_i q_i . k_{i-s}, by Fourier transform

Neither is causal: a row's filter is made of all rows, later ones included. A decoder would have to change its filter
with every token, which no convolution does. With fewer distances than there are, the questions at those left out get
no answer.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.constructions._construction import Construction, Stream, TokenRows, Triplets
from bestiary.constructions.circuit import Circuit, Wire
from bestiary.mixers._mixer import State
from bestiary.ops.convolution import fft_length


def some_distances(
    vocab: int, distances: int, *, kernel: Literal["programmatic", "autocorrelation"] = "programmatic"
) -> "SomeDistances":
    """The construction for `vocab` tokens and filters of up to so many `distances`, the most frequent ones."""
    if vocab < 1 or distances < 1:
        raise ValueError(f"there are no codes of {vocab} tokens or filters of {distances} spikes")
    return SomeDistances(vocab, distances, kernel)


class SomeDistances(Construction):
    """Layers made for the distances of each sequence."""

    causal = False
    stride = 3
    eye: Tensor

    def __init__(self, vocab: int, distances: int, kernel: str) -> None:
        super().__init__()
        self.vocab, self.distances, self.kernel = vocab, distances, kernel
        self.register_buffer("eye", torch.eye(vocab, dtype=torch.float64))
        self.embed = Triplets(self.eye)
        self.compiled, self.compiled_for = nn.ModuleList(), ()

    def hidden(self, tokens: TokenRows, state: State = None) -> tuple[Stream, State]:
        if state is not None:
            raise ValueError("filters made from the whole input read whole sequences at once")
        return torch.cat([self.one(row) for row in tokens.unsqueeze(1)]), None

    def one(self, tokens: TokenRows) -> Stream:
        """The output for one sequence, with layers made for its distances."""
        x = self.embed(tokens, 0)[..., :-1]
        chosen = self.spikes(tokens, x)
        if not chosen:
            return torch.zeros_like(x[..., : self.vocab])
        if chosen != self.compiled_for:
            self.compiled, self.compiled_for = nn.ModuleList(layers(self.vocab, chosen)), chosen
        for layer in self.compiled.to(x.dtype):
            x, _ = layer(x)
        return x

    def spikes(self, tokens: TokenRows, x: Stream) -> tuple[int, ...]:
        """The most frequent distances from queries back to their keys, the nearer first among equals."""
        counts = distance_counts(tokens) if self.kernel == "programmatic" else correlate(x, self.vocab)
        order = counts[1:].argsort(descending=True, stable=True)[: self.distances] + 1
        return tuple(sorted(s for s in order.tolist() if counts[s] > 0.5))

    def head(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        return x


def distance_counts(tokens: TokenRows) -> Float[Tensor, " rows"]:
    """How many queries stand at each distance from their key, by comparing tokens."""
    key, _, query = tokens[0].unflatten(0, (-1, 3)).unbind(1)
    now, then = (query.unsqueeze(1) == key).nonzero().unbind(1)
    return torch.bincount((now - then)[now > then], minlength=len(key)).double()


def correlate(x: Stream, vocab: int) -> Float[Tensor, " rows"]:
    """The same, as the correlation of the codes of queries and keys."""
    key, query = x[0, :, :vocab], x[0, :, 2 * vocab :]
    size = fft_length(2 * len(key))
    spectrum = (torch.fft.rfft(query, n=size, dim=0) * torch.fft.rfft(key, n=size, dim=0).conj()).sum(1)
    return torch.fft.irfft(spectrum, n=size)[: len(key)]


def layers(vocab: int, distances: tuple[int, ...]) -> list[nn.Module]:
    """The circuit for a set of distances."""
    circuit = Circuit(inputs=3 * vocab)
    k, v, q = (circuit.inputs[i * vocab : (i + 1) * vocab] for i in range(3))
    sums: list[dict[Wire, float]] = [{} for _ in range(vocab)]
    for s in distances:
        same = [circuit.gate({a: 1.0}, right=b, taps={s: 1.0}) for a, b in zip(q, k, strict=True)]
        match = circuit.sum(dict.fromkeys(same, 1.0))
        for parts, value in zip(sums, v, strict=True):
            parts[circuit.gate({match: 1.0}, right=value, taps={s: 1.0})] = 1.0
    return [*circuit.layers([circuit.sum(parts) for parts in sums])]
