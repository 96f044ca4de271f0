"""Interchange: what of a run must be put into another run for its answer to change (Vig et al., 2020; Geiger et al.,
2021; as "activation patching" in Zhang & Nanda, 2024).

Two rows differ in that two pairs have exchanged their keys, or their values. So the same question has two answers, and
D = logit(the one) - logit(the other) is high on the first row and low on the second. The model reads the second row,
with one thing taken from its run on the first, and the effect is

    effect = (mean D patched - mean D second) / (mean D first - mean D second)

0 if the thing does not matter, 1 if it alone decides. Of exchanged keys it shows where a key is bound to its value: as
long as that is not done, the key's own position decides, and later the place where it is bound.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bestiary.explain.blocks import Blocks, take_apart
from bestiary.explain.cases import Cases
from bestiary.mixers._mixer import Features

What = Literal["keys", "values"]
PLACES = ("key", "value", "after the value", "before the question", "question")
BESIDE = ("after the value", "before the question")
RESAMPLES = 1000


@torch.no_grad()
def patch_streams(model: nn.Module, cases: Cases, what: What, *, layers: Sequence[int] | None = None) -> pd.DataFrame:
    """The effect of the stream before each layer, and before the head, at each kind of place, with 95 % intervals.

    The places are those of the two exchanged pairs alike: "key" is where their keys stand. Cases in which the place
    "after the value" or "before the question" is also another one do not count there. Columns: `layer` (how many have
    been passed; all of them, or `layers`), `place`, `effect`, `low`, `high`.
    """
    parts = take_apart(model)
    first, second = parts.stream(cases.tokens), parts.stream(cases.swapped(what))
    tokens = cases.swapped(what)
    ends = [answer_margin(parts, stream[-1], cases) for stream in (first, second)]
    rows = []
    for layer in range(len(parts.blocks) + 1) if layers is None else layers:
        for place in PLACES:
            where, alone = positions(cases, place), stands_alone(cases, place)
            x = mixed_at(second[layer], first[layer], where)
            x = x if layer == len(parts.blocks) else parts.finish(x, layer, tokens)
            margins = (answer_margin(parts, x, cases), *ends)
            rows.append({"layer": layer, "place": place} | effect(*(one[alone] for one in margins)))
    return pd.DataFrame(rows)


def positions(cases: Cases, place: str) -> Int[Tensor, "cases _"]:
    """The positions of each case that are called so."""
    pairs = torch.stack([cases.key, cases.other], 1)
    return {
        "key": pairs,
        "value": pairs + 1,
        "after the value": pairs + 2,
        "before the question": cases.at.unsqueeze(1) - 1,
        "question": cases.at.unsqueeze(1),
    }[place]


def stands_alone(cases: Cases, place: str) -> Bool[Tensor, " cases"]:
    """The cases in which a place beside a pair or the question is no place of a pair, nor the question, itself."""
    if place not in BESIDE:
        return torch.ones_like(cases.at, dtype=torch.bool)
    others = torch.cat([positions(cases, other) for other in PLACES if other not in BESIDE], 1)
    return (positions(cases, place).unsqueeze(2) != others.unsqueeze(1)).flatten(1).all(1)


def mixed_at(x: Features, other: Features, where: Int[Tensor, "cases _"]) -> Features:
    """The stream with some positions of each row taken from another one."""
    index = where.unsqueeze(2).expand(-1, -1, x.shape[2])
    return x.scatter(1, index, other.gather(1, index))


@torch.no_grad()
def patch_states(model: nn.Module, cases: Cases, what: What) -> pd.DataFrame:
    """The effect of each layer's state, and of all together, at cuts between the pairs and the question.

    The second row is read up to the cut; there the state of a layer is replaced by that after the first row, and the
    rest is read. Columns: `layer` ("all" for the states of all layers), `cut`, `effect`, `low`, `high`.
    """
    parts = take_apart(model)
    tokens = cases.swapped(what)
    ends = [answer_margin(parts, parts.stream(rows)[-1], cases) for rows in (cases.tokens, tokens)]
    rows = []
    for cut, places in cuts(cases):
        found = torch.empty(len(parts.blocks) + 1, len(cases.at), dtype=ends[0].dtype)
        for place in places.unique().tolist():
            here = places == place
            group = cases.where(here)
            found[:, here] = margins_with_other_states(parts, group, tokens[here], place)
        for layer, margins in zip([*range(len(parts.blocks)), "all"], found, strict=True):
            rows.append({"layer": layer, "cut": cut} | effect(margins, *ends))
    return pd.DataFrame(rows)


def cuts(cases: Cases) -> Iterator[tuple[str, Int[Tensor, " cases"]]]:
    """Named places of each case at which its row is cut: how many tokens stand before the cut."""
    last = torch.maximum(cases.key, cases.other)
    yield "behind the pairs", last + 2
    yield "half way to the question", (last + 2 + cases.at) // 2
    yield "before the question", cases.at


def margins_with_other_states(
    parts: Blocks, cases: Cases, tokens: Int[Tensor, "cases time"], cut: int
) -> Float[Tensor, "layers cases"]:
    """D of the cases for each layer whose state is replaced, and for all together."""
    own, other = states_at(parts, tokens[:, :cut]), states_at(parts, cases.tokens[:, :cut])
    found = []
    for layer in range(len(own) + 1):
        chosen = [other[i] if layer in (i, len(own)) else own[i] for i in range(len(own))]
        x = parts.embed(tokens)[:, cut:]
        for block, state in zip(parts.blocks, chosen, strict=True):
            x, _ = block(x, state, tokens[:, cut:])
        found.append(answer_margin(parts, x, cases._replace(at=cases.at - cut)))
    return torch.stack(found)


def states_at(parts: Blocks, tokens: Int[Tensor, "cases time"]) -> list[object]:
    """The state of each block after the tokens."""
    x, states = parts.embed(tokens), []
    for block in parts.blocks:
        x, state = block(x, None, tokens)
        states.append(state)
    return states


def answer_margin(parts: Blocks, x: Features, cases: Cases) -> Float[Tensor, " cases"]:
    """D at the question of each case, from the stream before the head."""
    rows = torch.arange(len(x))
    logits = parts.head(x[rows, cases.at])
    return logits[rows, cases.right] - logits[rows, cases.wrong]


def effect(
    patched: Float[Tensor, " cases"], first: Float[Tensor, " cases"], second: Float[Tensor, " cases"]
) -> dict[str, float]:
    """The effect, with a 95 % interval over cases by the bootstrap.

    NaN if there are no cases, or if the answers to the two rows do not differ.
    """
    if not len(first):
        return dict.fromkeys(("effect", "low", "high"), math.nan)
    rng = torch.Generator().manual_seed(0)
    draws = torch.randint(len(first), (RESAMPLES, len(first)), generator=rng)
    draws[0] = torch.arange(len(first))
    above, whole = (x[draws].double().mean(1) for x in (patched - second, first - second))
    shares = torch.where(whole.abs() > 1e-9, above / whole, torch.nan)
    low, high = shares.quantile(torch.tensor([0.025, 0.975], dtype=shares.dtype)).tolist()
    return {"effect": float(shares[0]), "low": low, "high": high}


def matrix_of(table: pd.DataFrame, columns: str, order: Sequence[str]) -> pd.DataFrame:
    """The effects with a row for each layer and a column for each place or cut."""
    return table.pivot(index="layer", columns=columns, values="effect")[list(order)]
