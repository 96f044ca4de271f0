"""What tasks like MQAR share: presets, where questions stand, what stands between them, and who reads the pairs."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._draw import random_orders
from bestiary.tasks._task import SILENT

Kind = Literal["zero", "paper", "clean"]  # of filler

SIZES = ((64, 4), (64, 9), (128, 9), (128, 16), (256, 16), (256, 25), (256, 36), (512, 64), (1024, 144), (2048, 256))


def preset_options(length: int, pairs: int) -> str:
    """The options of a preset."""
    return f"mode='paper', length={length}, pairs={pairs}"


ZOOLOGY = {f"zoology{length}_{pairs}": preset_options(length, pairs) for length, pairs in SIZES}


def draw_slots(count: int, taken: int, among: int, *, power: float, paper: bool, rng: torch.Generator) -> Tensor:
    """For each row the slots of `taken` questions, of which slot g has the weight (g + 1)^(power - 1).

    A weighted draw without replacement, in its order if `paper`, otherwise in random order. Sorting log(u) / weight
    with u uniform is that draw (Efraimidis & Spirakis, 2006).
    """
    if not paper and among == taken:
        return random_orders(count, among, rng)
    weight = torch.arange(1, among + 1, device=rng.device, dtype=torch.float64) ** (power - 1)
    race = torch.rand(count, among, generator=rng, device=rng.device, dtype=torch.float64).log() / weight
    drawn = race.topk(taken, dim=1).indices
    return drawn if paper else drawn.gather(1, random_orders(count, taken, rng))


def draw_filler(
    kind: Kind,
    keys: Int[Tensor, "rows keys"],
    width: int,
    vocab: int,
    rng: torch.Generator,
) -> Int[Tensor, "rows width"]:
    """Token 0, any tokens, or tokens that are none of the (distinct) keys of their row."""
    shape = len(keys), width
    if kind == "zero":
        return torch.zeros(shape, dtype=torch.long, device=rng.device)
    if kind == "paper":
        return torch.randint(vocab, shape, generator=rng, device=rng.device)
    drawn = torch.randint(vocab - keys.shape[1], shape, generator=rng, device=rng.device)
    gaps = keys.sort(dim=1).values - torch.arange(keys.shape[1], device=rng.device)
    return drawn + torch.searchsorted(gaps, drawn, right=True)  # the drawn-th token that is not a key


def solve_recall(tokens: Int[Tensor, "batch time"], context: int) -> Int[Tensor, "batch time"]:
    """The answers to keys that follow a context of pairs, in plain Python: the value that each was given last."""
    answers = torch.full_like(tokens, SILENT)
    for row, sequence in enumerate(tokens.tolist()):
        value_of: dict[int, int] = {}
        for time, token in enumerate(sequence):
            if time >= context:
                answers[row, time] = value_of.get(token, SILENT)
            elif time % 2:
                value_of[sequence[time - 1]] = token
    return answers
