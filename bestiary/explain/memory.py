"""Reading the memory of a layer with a matrix state: which pairs it holds, how exactly, and how the query weighs them.

The state of a `FastWeight` mixer is linear in the values that were written. So the weight with which position t reads
what was written at j, the "hidden attention" of Ali et al. (2024), is found by writing e_j instead of the value of j:
then what is read at t has that weight in its j-th place. It holds for every recurrence of `bestiary.ops.recurrence`,
decay, erasing and all.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.explain.blocks import take_apart
from bestiary.explain.cases import Cases, Pairs
from bestiary.explain.patching import positions
from bestiary.mixers._diagonal import Diagonal
from bestiary.mixers._filter import SineFilter
from bestiary.mixers._mixer import FastWeight, Features, ShortConv, take
from bestiary.mixers.attention import Attention
from bestiary.mixers.base_conv import BaseConv
from bestiary.mixers.long_conv import LongConv
from bestiary.ops.attention import rotate, share
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.tasks._task import Tokens


def mixer_inputs(model: nn.Module, tokens: Tokens) -> list[Features]:
    """What the mixer of each layer reads."""
    parts = take_apart(model)
    seen: dict[nn.Module, Features] = {}

    def look(module: nn.Module, given: Any, result: Any) -> None:
        del result
        seen[module] = given[0]

    hooks = [mixer.register_forward_hook(look) for mixer in parts.mixers]
    try:
        parts.stream(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[mixer] for mixer in parts.mixers]


@torch.no_grad()
def weights_between_positions(mixer: nn.Module, x: Features) -> Float[Tensor, "rows heads time time"] | None:
    """The weight with which each position reads each other one; None of a mixer that has no such weights here.

    Of softmax attention these are its probabilities; of a matrix memory, those of the module's docstring.
    """
    if isinstance(mixer, Attention):
        now = torch.arange(x.shape[1])
        q = mixer.split(mixer.q(x), mixer.heads)
        q, k = (rotate(q, now) if mixer.rotary else q), share(mixer.keys(x, now), mixer.heads)
        age = now.unsqueeze(1) - now
        seen = (age >= 0) & ((age < (mixer.window or len(now))) | (now < mixer.sinks))
        return (q @ k.mT * k.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    if isinstance(mixer, FastWeight):
        drive = drive_by_token(mixer, x)
        if drive is None:
            return None
        heads, time = drive.v.shape[2], x.shape[1]
        basis = torch.eye(time, dtype=x.dtype).view(1, time, 1, time).expand(len(x), -1, heads, -1)
        matrix = x.new_zeros(len(x), heads, drive.k.shape[-1], time)
        return run(drive._replace(v=basis), matrix)[0].transpose(1, 2)
    return None


def drive_by_token(mixer: FastWeight, x: Features) -> Drive | None:
    """What a matrix memory reads and writes at each token; None of one that takes several steps for a token."""
    drive, _ = mixer.drive(x, None)
    return drive if drive.q.shape[1] == x.shape[1] else None


@torch.no_grad()
def weight_table(model: nn.Module, cases: Cases) -> pd.DataFrame:
    """The share of a question's weight that lies on each kind of place of the asked pair, by layer and head.

    Weights may be negative; the share is of the sum of absolute values. "most on the right pair" is how often the key's
    or the value's place has the most weight of all.
    """
    parts, rows = take_apart(model), []
    for layer, (mixer, x) in enumerate(zip(parts.mixers, mixer_inputs(model, cases.tokens), strict=True)):
        weights = weights_between_positions(mixer, x)
        if weights is None:
            continue
        index = torch.arange(len(x))
        at_question = weights[index, :, cases.at].abs()
        shares = at_question / at_question.sum(-1, keepdim=True).clamp(min=1e-12)
        for head in range(shares.shape[1]):
            row: dict[str, object] = {"layer": layer, "head": head}
            for place in ("key", "value"):
                where = positions(cases, place)
                row[place] = float(shares[index, head, where[:, 0]].mean())
                row[f"other {place}"] = float(shares[index, head, where[:, 1]].mean())
            most = shares[:, head].argmax(-1)
            row["most on the right pair"] = float(((most == cases.key) | (most == cases.key + 1)).double().mean())
            rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def previous_token_table(model: nn.Module, cases: Cases) -> pd.DataFrame:
    """The share of each position's weight that lies on the token before it and on itself, by layer and head."""
    parts, rows = take_apart(model), []
    for layer, (mixer, x) in enumerate(zip(parts.mixers, mixer_inputs(model, cases.tokens), strict=True)):
        weights = weights_between_positions(mixer, x)
        if weights is None:
            continue
        shares = weights.abs() / weights.abs().sum(-1, keepdim=True).clamp(min=1e-12)
        before, itself = (shares.diagonal(-back, -2, -1)[..., 1 - back :].mean((0, 2)) for back in (1, 0))
        rows += [
            {"layer": layer, "head": head, "the token before": float(before[head]), "itself": float(itself[head])}
            for head in range(shares.shape[1])
        ]
    return pd.DataFrame(rows)


@torch.no_grad()
def readback_table(model: nn.Module, pairs: Pairs) -> pd.DataFrame:
    """What each head's matrix gives back once it has read every pair, asked with the keys it was written with.

    All rows are read as far as the last pair of any row, so that where pairs end earlier some other tokens follow.

    For a pair that is written at its key's place, or at its value's, S^T k is held against what was written there:

    - `named`: the share of pairs whose own value is the nearest, by cosine, of those of the row's pairs,
    - `cosine`: with its own value, on average,
    - `least squares`: that of the matrix of the same size with the least squared error on these pairs,
    - `effective rank`: exp of the entropy of the matrix's singular values, of at most min(key, value),
    - `half-life`: tokens after which half of what was written is left by decay alone, the median over tokens and
      channels, beside the tenth and the ninetieth percentile; infinite without decay.

    Empty for models without such layers.
    """
    parts, rows = take_apart(model), []
    cut = int(pairs.key.max()) + 2
    for layer, (mixer, x) in enumerate(zip(parts.mixers, mixer_inputs(model, pairs.tokens[:, :cut]), strict=True)):
        if not isinstance(mixer, FastWeight):
            continue
        drive = drive_by_token(mixer, x)
        if drive is None:
            continue
        _, matrix = run(drive, x.new_zeros(len(x), *mixer.shape))
        heads = drive.v.shape[2]
        for place, where in (("key", pairs.key), ("value", pairs.key + 1)):
            k = take(drive.k.expand(-1, -1, heads, -1), where).transpose(1, 2)  # (rows, heads, pairs, key)
            v = take(drive.v, where).transpose(1, 2)
            best = torch.linalg.lstsq(k.double(), v.double(), driver="gelsd").solution.to(k.dtype)
            likeness = cosines(k @ matrix, v)
            nearest = likeness.argmax(-1) == torch.arange(where.shape[1])
            found = {
                "named": nearest.double().mean((0, 2)),
                "cosine": likeness.diagonal(0, -2, -1).mean((0, 2)),
                "least squares": cosines(k @ best, v).diagonal(0, -2, -1).mean((0, 2)),
                "effective rank": effective_rank(matrix).mean(0),
                **half_life(drive.g, heads),
            }
            for head in range(heads):
                numbers = {name: float(values[head]) for name, values in found.items()}
                rows.append({"layer": layer, "head": head, "written at": place} | numbers)
    return pd.DataFrame(rows)


def cosines(x: Float[Tensor, "rows heads pairs value"], y: Tensor) -> Float[Tensor, "rows heads pairs pairs"]:
    """The cosine of each of the first with each of the second."""
    return nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(y, dim=-1).mT


def effective_rank(matrix: Float[Tensor, "rows heads key value"]) -> Float[Tensor, "rows heads"]:
    """exp of the entropy of the singular values as shares of their sum (Roy & Vetterli, 2007)."""
    values = torch.linalg.svdvals(matrix.double())
    shares = values / values.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.special.entr(shares).sum(-1).exp()


def half_life(g: Tensor | None, heads: int) -> dict[str, Float[Tensor, " heads"]]:
    """Tokens after which decay leaves half, of each head: the median and two percentiles; infinite without decay."""
    names = {"half-life 10 %": 0.1, "half-life": 0.5, "half-life 90 %": 0.9}
    if g is None:
        return {name: torch.full((heads,), math.inf) for name in names}
    lives = math.log(0.5) / g.clamp(max=-1e-12).transpose(1, 2).expand(-1, heads, -1, -1)
    found = np.quantile(lives.transpose(0, 1).flatten(1).cpu().numpy(), list(names.values()), axis=1)
    return dict(zip(names, torch.from_numpy(found), strict=True))  # torch.quantile refuses more than 2^24 numbers


LONG, LAGS = 8, 4  # a filter of more taps is long; a long one has a column for each of so many tokens back


@torch.no_grad()
def filter_table(model: nn.Module, time: int = 64) -> pd.DataFrame:
    """What each convolution looks at: the share of its weights, in absolute value, on each token back.

    Of a filter of more than eight taps, the first `time` are looked at, and `farther` is the share beyond four of them.
    The filter of a diagonal state-space model is its impulse response. Skips around a filter are not part of it.
    """
    rows = []
    for layer, mixer in enumerate(take_apart(model).mixers):
        for name, taps in find_filters(mixer, time):
            sizes = taps.detach().abs().sum(1)
            shares = (sizes / sizes.sum().clamp(min=1e-12)).tolist()
            row: dict[str, object] = {"layer": layer, "convolution": name or "itself"}
            far = {} if len(shares) <= LONG else {"farther": sum(shares[LAGS:])}
            near = shares[: LAGS if far else None]
            rows.append(row | {f"{back} back" if back else "now": share for back, share in enumerate(near)} | far)
    return pd.DataFrame(rows)


def find_filters(mixer: nn.Module, time: int) -> Iterator[tuple[str, Float[Tensor, "taps channels"]]]:
    """The filters of a mixer by the names of their modules, the tap of the newest token first."""
    for name, module in mixer.named_modules():
        if isinstance(module, ShortConv):
            zero = module.filter.new_zeros(1, len(module.filter), module.filter.shape[1])
            impulse = torch.cat([torch.ones_like(zero[:, :1]), zero[:, 1:]], dim=1)
            yield name, (module(impulse, None)[0] - module(zero, None)[0]).squeeze(0)  # without its bias
        elif isinstance(module, LongConv):
            yield name, module.filter()[:time]
        elif isinstance(module, SineFilter) or (isinstance(mixer, BaseConv) and module is mixer.filter):
            yield name, module(time)
        elif isinstance(module, Diagonal):
            impulse = torch.zeros(1, time, len(module.log_dt), 1, dtype=module.log_dt.dtype)
            impulse[:, 0] = 1
            yield name, module(impulse, None)[0, :, :, 0]
