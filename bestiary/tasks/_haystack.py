"""Haystacks: where sentences lie in them, how they are written, and prose to fill them."""

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._draw import random_orders


def sentence_starts(
    count: int, room: int, *, groups: int, size: int, width: int, rng: torch.Generator
) -> Int[Tensor, "count groups size"]:
    """Where each of groups * size sentences of `width` tokens begins among `room` tokens, none upon another.

    The sentences of a group come in order. Every depth is equally likely: that is the place among the other tokens,
    drawn independently for each sentence.
    """
    sentences = groups * size
    gaps = torch.randint(room - sentences * width + 1, (count, sentences), generator=rng, device=rng.device)
    starts = gaps.sort(dim=1).values + width * torch.arange(sentences, device=rng.device)
    turns = random_orders(count, sentences, rng).view(count, groups, size).sort(dim=2).values
    return starts.gather(1, turns.flatten(1)).view(count, groups, size)


def insert_sentences(haystack: Tensor, sentences: Int[Tensor, "count sentences width"], starts: Tensor) -> None:
    """Write each sentence into its row of the haystack, from where it begins; the rest keeps its order around them."""
    where = (starts.flatten(1).unsqueeze(2) + torch.arange(sentences.shape[2], device=starts.device)).flatten(1)
    free = torch.ones_like(haystack, dtype=torch.bool).scatter_(1, where, False)
    haystack.masked_scatter_(free, haystack[:, : haystack.shape[1] - where.shape[1]].clone())
    haystack.scatter_(1, where, sentences.flatten(1))


def draw_prose(count: int, size: int, words: int, rng: torch.Generator) -> Int[Tensor, "count size"]:
    """Words by Zipf's law: number i, from 0, is drawn with a weight of 1 / (i + 1)."""
    shares = (1 / torch.arange(1, words + 1, device=rng.device)).cumsum(0)
    drawn = torch.rand(count, size, generator=rng, device=rng.device) * shares[-1]
    return torch.searchsorted(shares, drawn, right=True).clamp(max=words - 1)
