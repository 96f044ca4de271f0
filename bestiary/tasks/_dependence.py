"""Random acyclic graphs of dependences, and orders that respect them, for each row at once."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.tasks._draw import uniform_below

MOST = 4  # dependences of a node, and nodes that depend on it


def draw_graph(size: Int[Tensor, " count"], nodes: int, rng: torch.Generator) -> Bool[Tensor, "count nodes nodes"]:
    """Whether a node (second) depends on another (third), among the first `size` nodes of each row (Allen-Zhu, 2025).

    The first few depend on nothing; each later one on 1 to 4 earlier ones that fewer than 4 depend on yet.
    """
    count = len(size)
    leaves = 1 + uniform_below((size - 1) // 4 + 1, rng)
    depends = torch.zeros(count, nodes, nodes, dtype=torch.bool, device=rng.device)
    burden = torch.zeros(count, nodes, dtype=torch.long, device=rng.device)
    for node in range(1, nodes):
        able = burden[:, :node] < MOST
        lottery = torch.rand(able.shape, generator=rng, device=rng.device).masked_fill(~able, 2.0)
        nearest = lottery.topk(min(MOST, node), dim=1, largest=False)
        number = 1 + uniform_below(able.sum(1).clamp(max=MOST), rng)
        taken = torch.arange(nearest.indices.shape[1], device=rng.device) < number[:, None]
        taken &= ((node >= leaves) & (node < size))[:, None]
        depends[:, node].scatter_(1, nearest.indices, taken)
        burden += depends[:, node]
    return depends


def dependences_of(
    depends: Bool[Tensor, "count nodes nodes"], node: Int[Tensor, " count"]
) -> Bool[Tensor, "count nodes"]:
    """All that one node of each row depends on, itself included, where nodes depend on earlier ones only."""
    found = F.one_hot(node, depends.shape[1]).bool()
    for later in reversed(range(1, depends.shape[1])):
        found |= depends[:, later] & found[:, later, None]
    return found


def topological_places(
    depends: Bool[Tensor, "count nodes nodes"], chosen: Bool[Tensor, "count nodes"], rng: torch.Generator
) -> Int[Tensor, "count nodes"]:
    """The place of each chosen node in a random order in which it stands after all that it depends on.

    The order is drawn from its end: one, each equally likely, of the nodes on which none of those left depends.
    """
    left, place = chosen.clone(), torch.full(chosen.shape, -1, dtype=torch.long, device=rng.device)
    burden = (depends & chosen[:, :, None]).sum(1)
    row = torch.arange(len(chosen), device=rng.device)
    for _ in range(chosen.shape[1]):
        lottery = torch.rand(chosen.shape, generator=rng, device=rng.device)
        last = lottery.masked_fill(~left | (burden > 0), -1.0).argmax(1)
        some = left[row, last]
        place[row, last] = torch.where(some, left.sum(1) - 1, place[row, last])
        burden -= (depends[row, last] & some[:, None]).long()
        left[row, last] = False
    return place


def legal_letters(
    legal: Bool[Tensor, "count steps nodes"],
    words: Int[Tensor, "count nodes letters"],
    answer: Int[Tensor, "count steps1 letters"],
    end: int,
) -> Bool[Tensor, "count answers tokens"]:
    """Which tokens, up to `end`, continue the right beginning of each answer to a node that may come next.

    `answer` spells the nodes in the order shown, filled up with 0, and `end` after them.
    """
    found = torch.zeros(*answer.shape, end + 1, dtype=torch.bool, device=answer.device)
    for place, letter in enumerate(words.unbind(2)):
        found[:, :-1, place].scatter_(2, letter[:, None].where(legal, 0), True)
        legal = legal & (letter[:, None] == answer[:, :-1, place, None])
    found[..., end] = answer == end
    found[..., 0] = False
    found &= answer[..., None] > 0
    asked_first = (answer.flatten(1) == 0).byte().argsort(dim=1, stable=True)
    return found.flatten(1, 2).gather(1, asked_first[:, :, None].expand(-1, -1, end + 1))
