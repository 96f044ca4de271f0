"""Two layers of softmax attention with one head recall from a stream in a width of O(log vocabulary) (ours).

The weights are loaded into the model that is trained, `Model(pattern="attention, attention(rotary=False)")` with its
norms, residual stream and tied head. With b = ceil(log2(vocab)) and codes c(x) of b signs, the stream has a width of
4b + 2:

    [ c(x) | -c(x) | 1 | -1 | c(x before) | -c(x before) ]        the last two are zero in the embedding

Signs beside their opposites have mean zero and a fixed length, so that LayerNorm is a known factor.
Layer 1 finds the previous token by position alone: q and k are the same constant, turned by rotary positions, q one
step further back, so that the score is sum_c cos(rate_c (t - 1 - j)), highest at j = t - 1.
Layer 2 looks for positions behind the current token: q . k_j = 2b c(x_t) . c(x_{j-1}) - c(x_t) . c(x_j), and adds
c(x_j), a multiple of it, to the stream. The second term is for j = 0, which is its own predecessor.

The width does not depend on the number of pairs, and on the length only through the sharpness of both layers, which
grows with its logarithm. Width cannot be below the codes: with b - 1 signs two tokens share one, and of each such two
values the head names the first.
"""

import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from bestiary.constructions._construction import Construction, Stream, TokenRows, code_width, signs
from bestiary.mixers._mixer import State
from bestiary.model import Model, ModelState
from bestiary.spec import parse

PATTERN = "attention, attention(rotary=False)"
SURE = 25.0  # nats between the right position and all others together, far below the resolution of either type
LOUD = 4.0  # how much louder the answer is than the token itself, in the stream


def softmax_attention(vocab: int, length: int, *, bits: int | None = None) -> "Attending":
    """The construction for `vocab` tokens and sequences up to `length`; `bits` fewer than log2(vocab) are too few.

    Raises ValueError for a length below 2 or more bits than the codes have.
    """
    least = code_width(vocab)
    bits = least if bits is None else bits
    if not 1 <= bits <= least or length < 2:
        raise ValueError(
            f"{vocab} tokens have codes of 1 to {least} signs and sequences 2 tokens, not {bits}, {length}"
        )
    model = Model(vocab, dim=4 * bits + 2, depth=2, pattern=parse("mixers", PATTERN), channel="none").double()
    with torch.no_grad():
        load(model, signs(vocab, bits), length)
    return Attending(model, length)


class Attending(Construction):
    """The model, and the longest sequence for which its weights are sharp enough."""

    def __init__(self, model: Model, length: int) -> None:
        super().__init__()
        self.model, self.length = model, length

    def hidden(self, tokens: TokenRows, state: ModelState | None = None) -> tuple[Stream, State]:
        time, past = (0, [None] * len(self.model.layers)) if state is None else state
        if time + tokens.shape[1] > self.length:
            raise ValueError(f"sharp enough for {self.length} positions, the input needs {time + tokens.shape[1]}")
        x, after = self.model.embed_tokens(tokens, time), []
        for layer, before in zip(self.model.layers, past, strict=True):
            x, kept = layer(x, before)
            after.append(kept)
        return self.model.norm(x), ModelState(time + tokens.shape[1], after)

    def head(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        return x @ self.model.embed.weight.T


def load(model: Model, codes: Float[Tensor, "vocab bits"], length: int) -> None:
    """Write the weights."""
    bits, dim = codes.shape[1], 4 * codes.shape[1] + 2
    one = torch.ones(len(codes), 1, dtype=codes.dtype)
    model.embed.weight.copy_(torch.cat([codes, -codes, one, -one, torch.zeros(len(codes), 2 * bits)], dim=1))
    eye = torch.eye(dim, dtype=codes.dtype)
    now, before, constant = eye[:bits], eye[2 * bits + 2 : 3 * bits + 2], eye[2 * bits]
    first, second = (cast(Any, layer).mixer for layer in model.layers)
    shrunk = math.sqrt((2 * bits + 2) / dim)  # what LayerNorm divides by before the first layer; 1 before the second
    for mixer in (first, second):
        for weight in (mixer.q, mixer.k, mixer.v, mixer.out):
            weight.weight.zero_()
    rates = turns(dim)
    margin = (1 - torch.cos(rates * torch.arange(1, length + 1).unsqueeze(1))).sum(1).min().item()
    sharp = (SURE + math.log(length)) / margin * math.sqrt(dim) * shrunk**2
    flat = torch.cat([torch.ones(dim // 2), torch.zeros(dim - dim // 2)]).double()
    back = torch.cat([rates.cos(), -rates.sin()])  # the same, turned back by one position
    first.q.weight.copy_(sharp * torch.outer(back, constant))
    first.k.weight.copy_(torch.outer(flat, constant))
    first.v.weight[:bits] = shrunk * now
    first.out.weight.copy_((before - eye[3 * bits + 2 :]).T @ eye[:bits])
    second.q.weight[:bits] = (SURE + math.log(length)) * math.sqrt(dim) / 2 * now
    second.k.weight[:bits] = 2 * bits * before - now
    second.v.weight[:bits] = LOUD * now
    second.out.weight.copy_((now - eye[bits : 2 * bits]).T @ eye[:bits])


def turns(dim: int) -> Float[Tensor, " half"]:
    """The rates at which the mixer's rotary positions turn each pair of channels."""
    half = dim // 2
    return 10_000 ** -(torch.arange(half, dtype=torch.float64) / half)
