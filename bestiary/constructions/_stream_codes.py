"""Codes for recall from a stream by a memory of outer products: keys that are orthogonal, values in binary digits."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.constructions._construction import code_width, signs


def code_table(vocab: int, width: int) -> Float[Tensor, "vocab dim"]:
    """For each token of MQAR [onehot of a key | bits of a value | the other bits | is a value | is none].

    Tokens 1 to vocab/2 - 1 are keys, of which the last share the last of `width` channels if there are too few, and
    vocab/2 to vocab - 1 are values.
    """
    half = vocab // 2
    values = signs(vocab - half, code_width(vocab - half))
    keys = torch.eye(width, dtype=torch.float64)[torch.arange(half - 1).clamp(max=width - 1)]
    parts = torch.cat([(1 + values) / 2, (1 - values) / 2], dim=1)
    rows = torch.cat([F.pad(keys, (0, parts.shape[1])), F.pad(parts, (width, 0))])
    kind = (torch.arange(vocab) >= half).double()
    return torch.cat([F.pad(rows, (0, 0, 1, 0)), torch.stack([kind, 1 - kind], dim=1)], dim=1)


def answer_codes(vocab: int) -> Float[Tensor, "vocab bits"]:
    """The signs of each value, and zeros for every other token."""
    half = vocab // 2
    return F.pad(signs(vocab - half, code_width(vocab - half)), (0, 0, half, 0))


def key_width(vocab: int, width: int | None) -> int:
    """How many channels keys have: one each unless said otherwise. Raises ValueError."""
    keys = vocab // 2 - 1
    if keys < 1:
        raise ValueError(f"a vocabulary of {vocab} has no key beside its values; it needs at least 4 tokens")
    width = keys if width is None else width
    if not 1 <= width <= keys:
        raise ValueError(f"{keys} keys have orthogonal codes in {keys} channels, share some in fewer, but not {width}")
    return width
