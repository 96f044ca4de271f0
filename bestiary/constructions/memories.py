"""Associative memories with explicit weights: linear attention, the delta rule and least squares, on a stream.

The trained mixers, loaded. A key is a one-hot code, a value the bits of its token and their opposites. The key of a
value is the token before it: a convolution of two taps brings it to the value's place, where the pair is written; a
query reads at its own place.

    "linear"    short_conv, then linear_attention: y = sum_i (q . k_i) v_i (Schlag, Irie & Schmidhuber, 2021)
    "delta"     delta_net alone, whose own convolution it is, with beta 1 at values and 0 elsewhere: what two layers of
                attention need for induction, one layer of the delta rule does
    "squares"   mesa_net alone, y = G^T (H + ridge)^-1 q. An orthogonal q is an eigenvector of H + ridge, so that one
                step of conjugate gradients is exact

At most d keys are orthogonal in d channels, and up to there recall is exact (the capacity that Schlag et al. name); the
state of d^2 numbers does not depend on the length. With one key more, two share a channel: linear attention then holds
the sum of their values, least squares their mean, the delta rule the later one. Codes that are only nearly orthogonal
hold more pairs than that, but not exactly: `bounds.simulated_accuracy`.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.constructions._construction import Embedding, Stack
from bestiary.constructions._stream_codes import answer_codes, code_table, key_width
from bestiary.spec import parse

Rule = Literal["linear", "delta", "squares"]
SURE = 40.0  # a logit whose sigmoid is 1 in float64 too, and an input that SiLU passes on as it is


def memory_of(rule: Rule, vocab: int, *, width: int | None = None) -> Stack:
    """A memory for MQAR of `vocab` tokens, its keys in `width` channels, one for each key if not given.

    Raises ValueError for more channels than keys, and for a vocabulary without keys.
    """
    width = key_width(vocab, width)
    codes, bits = code_table(vocab, width), answer_codes(vocab).shape[1]
    places = Places(width, bits)
    with torch.no_grad():
        match rule:
            case "linear":
                codes = torch.cat([codes, codes[:, :width]], dim=1)  # the keys once more, to be held back by one
                layers = linear_memory(codes.shape[1], places)
            case "delta":
                layers = [delta_memory(codes.shape[1], places)]
            case "squares":
                layers = [least_squares_memory(codes.shape[1], places)]
    return Stack(Embedding(codes), layers, F.pad(answer_codes(vocab), (0, codes.shape[1] - bits)))


class Places:
    """Where the parts of a code stand: the key, the bits of a value and their opposites, what kind of token it is."""

    def __init__(self, width: int, bits: int) -> None:
        self.key, self.value = range(width), range(width, width + 2 * bits)
        self.is_value, self.is_none = width + 2 * bits, width + 2 * bits + 1
        self.bits, self.again = bits, range(width + 2 * bits + 2, 2 * width + 2 * bits + 2)


def zero_mixer(text: str, dim: int) -> Any:
    """A trained mixer with every weight zero, in float64."""
    (found,) = parse("mixers", text)
    made = found.build(dim).double()
    for weight in made.parameters():
        weight.zero_()
    return made


def selection_matrix(outputs: int, dim: int, chosen: range) -> Float[Tensor, "outputs dim"]:
    """The map whose first outputs are the chosen channels."""
    return F.pad(torch.eye(dim, dtype=torch.float64)[list(chosen)], (0, 0, 0, outputs - len(chosen)))


def sign_matrix(dim: int, bits: int) -> Float[Tensor, "dim dim"]:
    """Bits minus their opposites: the signs of a value."""
    return selection_matrix(dim, dim, range(bits)) - selection_matrix(dim, dim, range(bits, 2 * bits))


def linear_memory(dim: int, places: Places) -> list[Any]:
    """A convolution that holds the second copy of the keys back, and linear attention."""
    conv = zero_mixer("short_conv(taps=2, residual=False)", dim)
    conv.conv.filter[0] = 1.0
    conv.conv.filter[:, list(places.again)] = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    made = zero_mixer(f"linear_attention(feature='identity', normalise=False, features={len(places.key)})", dim)
    made.q.weight.copy_(selection_matrix(len(places.key), dim, places.key))
    made.k.weight.copy_(selection_matrix(len(places.key), dim, places.again))
    made.v.weight.copy_(selection_matrix(dim, dim, places.value))
    made.out.weight.copy_(sign_matrix(dim, places.bits))
    return [conv, made]


def delta_memory(dim: int, places: Places) -> Any:
    """The delta rule: queries and values now, keys one step before."""
    made = zero_mixer("delta_net(heads=1, conv=2)", dim)
    key = selection_matrix(dim, dim, places.key)
    made.streams.project.weight.copy_(SURE * torch.cat([key, key, selection_matrix(dim, dim, places.value)]))
    made.streams.conv.filter[0] = 1.0
    made.streams.conv.filter[:, dim : 2 * dim] = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    write_at_values(made.beta.weight, places)
    return set_readout(made, dim, places)


def least_squares_memory(dim: int, places: Places) -> Any:
    """Least squares over all that was read."""
    made = zero_mixer("mesa_net(heads=1, conv=2, steps=1)", dim)
    key = selection_matrix(dim, dim, places.key)
    made.streams.project.weight.copy_(SURE * torch.cat([key, key]))
    made.streams.conv.filter[0, :dim] = made.streams.conv.filter[1, dim:] = 1.0
    made.value.weight.copy_(selection_matrix(dim, dim, places.value))
    made.gamma.bias.fill_(SURE)  # nothing is forgotten
    write_at_values(made.beta.weight, places)
    return set_readout(made, dim, places)


def write_at_values(weight: Tensor, places: Places) -> None:
    """Set a gate to open at values and to close at all other tokens."""
    weight[0, places.is_value], weight[0, places.is_none] = SURE, -SURE


def set_readout(made: Any, dim: int, places: Places) -> Any:
    """Set the output map so that it gives the signs of a value."""
    made.answer.norm.weight.fill_(1.0)
    made.answer.out.weight.copy_(sign_matrix(dim, places.bits))
    return made
