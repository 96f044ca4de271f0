"""One row token by token, as the page plays it: what is read, what the memory holds, where the answer comes from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bestiary.explain.blocks import take_apart
from bestiary.explain.cases import Cases
from bestiary.explain.memory import drive_by_token, mixer_inputs, weights_between_positions
from bestiary.mixers._mixer import FastWeight
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run

CELLS = 1024  # of a matrix, above which it is drawn coarser
TIME = 256  # tokens, above which a row is not played


@torch.no_grad()
def played_row(
    model: nn.Module, cases: Cases, decode: Callable[[list[int]], str] | None = None, *, number: int = 0
) -> dict[str, Any] | None:
    """What the page shows of one case, as JSON: None for rows that are too long to be played.

    `decode` turns tokens into the words that are shown instead of their numbers.

    `matrices` are the states of the last matrix memory after each token, head by head, scaled to whole numbers from
    -99 to 99 by the largest of all; `weights` are the shares that the last layer with weights reads from each position
    (absolute values, the mean over heads); `chance` of the right answer is the model's at each position.
    """
    tokens = cases.tokens[number : number + 1]
    if tokens.shape[1] > TIME:
        return None
    parts = take_apart(model)
    logits = parts.logits(tokens)[0]
    layers = list(enumerate(zip(parts.mixers, mixer_inputs(model, tokens), strict=True)))
    known = [(layer, weights_between_positions(mixer, x)) for layer, (mixer, x) in layers]
    read = [(layer, weights[0].abs()) for layer, weights in known if weights is not None]
    drives = [
        (layer, mixer, drive_by_token(mixer, x))
        for layer, (mixer, x) in layers
        if isinstance(mixer, FastWeight) and mixer.shape[1] * mixer.shape[2] <= CELLS
    ]
    memories = [(layer, matrices_of(mixer, drive)) for layer, mixer, drive in drives if drive is not None]
    found: dict[str, Any] = {
        "tokens": tokens[0].tolist(),
        "at": int(cases.at[number]),
        "key": int(cases.key[number]),
        "right": int(cases.right[number]),
        "says": logits.argmax(-1).tolist(),
        "chance": rounded(logits.softmax(-1)[:, cases.right[number]]),
        "words": {},
        "weights": None,
        "matrices": None,
    }
    if decode is not None:
        shown = {*found["tokens"], *found["says"], found["right"]}
        found["words"] = {token: decode([token]).strip() or "␣" for token in sorted(shown)}
    if read:
        layer, weights = read[-1]
        shares = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
        found["weights"] = {"layer": layer, "shares": rounded(shares.mean(0))}
    if memories:
        layer, matrices = memories[-1]
        found["matrices"] = {"layer": layer, "cells": whole_numbers(matrices)}
    return found


def matrices_of(mixer: FastWeight, drive: Drive) -> Tensor:
    """The matrix of each head after each token of one row: (time, heads, key, value)."""
    matrix, found = drive.v.new_zeros(1, *mixer.shape), []
    for step in range(drive.v.shape[1]):
        _, matrix = run(drive.map(lambda part, step=step: part[:, step : step + 1]), matrix)
        found.append(matrix[0])
    return torch.stack(found)


def rounded(x: Tensor) -> Any:
    """Numbers with three digits after the point."""
    return (x.double() * 1000).round().div(1000).tolist()


def whole_numbers(x: Tensor) -> Any:
    """Whole numbers from -99 to 99, by the largest absolute value."""
    return (x / x.abs().max().clamp(min=1e-12) * 99).round().int().tolist()
