"""Chains of look-ups (Park et al., 2024), HashHop (Magic, 2024), and the chain of FactWorld (Barber, 2026)."""

from functools import cache
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, random_orders
from bestiary.tasks._task import SILENT, Batch, Task, stream

CYCLES = (*((hops, 6) for hops in range(2, 6)), *((hops, 2 * hops + 1) for hops in (16, 32, 64, 128)))


class MultiHop(Task):
    """Read what follows what; from a given start, follow it a number of times and say where that leads.

        tokens    b c  a b  x y  c d  y z    a h2     x h1
        targets   . .  . .  . .  . .  . .    .  c     .  y

    Symbols are tokens 0 to symbols - 1, each equally likely; then come the tokens for the numbers of hops, from `least`
    to `depth`, and a blank. The pairs stand in random order. With `graph="map"` there are `pairs` different keys and
    each value is any of them, as in a look-up table that is applied again and again. With `graph="chains"` the pairs
    make chains of `depth` hops each, with no symbol in two, as in HashHop, and every start is the first of a chain.
    With `graph="cycle"` they make one cycle through all keys, which `depth` hops do not close, as in FactWorld.
    Each of `questions` is another start and a number of hops, each equally likely (`least=None`: always `depth`).

    The answer is asked at the number of hops. With `path` all symbols on the way are asked as well, each after the
    ones before it have been given, and the blank fills up what remains to `depth`.

    Presets `factworld2` to `factworld128` are chain_v2 by hops; it trains on 2 and 3 and tests on 4 and more.

    Facets: `hops` (asked for), `hop` (of this answer, from 1) and `load` (how many pairs).

    Departs from the papers: where Park et al. answer a missing key by the first pair's value, values are always keys;
    a symbol is one token, in HashHop a random string of letters.
    """

    family: ClassVar = "reasoning"
    variants: ClassVar = (
        "symbols=40, pairs=6, depth=3, least=1, path=True, questions=2",
        "symbols=100, pairs=12, depth=3, graph='chains', questions=2",
        "symbols=12, pairs=10, depth=4, least=2, graph='cycle'",
    )
    presets: ClassVar = {
        "mambaformer": "symbols=128, pairs=128, depth=2, questions=1",
        "hash_hop": "symbols=1024, pairs=64, depth=4, least=1, graph='chains'",
        "hash_hop_path": "symbols=1024, pairs=64, depth=4, least=1, graph='chains', path=True",
        **{f"factworld{d}": f"symbols={n}, pairs={n}, depth={d}, graph='cycle', questions=1" for d, n in CYCLES},
    }
    axes: ClassVar = {"depth": (3, 4, 6)}

    def __init__(
        self,
        *,
        symbols: Positive = 128,
        pairs: Positive = 24,
        depth: Positive = 2,
        least: Positive | None = None,
        graph: Literal["map", "chains", "cycle"] = "map",
        path: bool = False,
        questions: Positive = 2,
    ) -> None:
        self.symbols, self.pairs, self.depth, self.graph, self.path = symbols, pairs, depth, graph, path
        self.least, self.questions = depth if least is None else least, questions
        if graph == "chains" and pairs % depth:
            raise ValueError(f"multi_hop(pairs={pairs}): chains of {depth} need a multiple, such as {pairs * depth}")
        if graph == "cycle" and pairs <= depth:
            raise ValueError(f"multi_hop(pairs={pairs}): a cycle that {depth} hops do not close needs {depth + 1}")
        self.chains = pairs // depth if graph == "chains" else 0
        if symbols < pairs + self.chains:
            raise ValueError(f"multi_hop(symbols={symbols}): {pairs} pairs need {pairs + self.chains} different ones")
        starts = self.chains or pairs
        if questions > starts:
            raise ValueError(f"multi_hop(questions={questions}): there are {starts} starts to ask")
        if self.least > depth:
            raise ValueError(f"multi_hop(least={least}): it must be at most depth={depth}")
        self.vocab = symbols + depth - self.least + 2
        self.width = 1 + (depth if path else 1)
        self.length = 2 * pairs + questions * self.width
        orders, one = choice_bits(pairs, pairs), choice_bits(pairs, 1)
        bits = {"map": pairs * one, "chains": choice_bits(pairs, pairs - self.chains), "cycle": orders - one}[graph]
        self.space = from_bits(bits + choice_bits(symbols, pairs + self.chains) + choice_bits(starts, questions))
        hops = range(self.least, depth + 1)
        level = most_common_shares(pairs, depth) if graph == "map" else [1 / max(1, pairs - self.chains)] * (depth - 1)
        level = [*level, 1 / max(1, self.chains)][:depth]  # of each hop; an end of a chain is known as one
        level = [1 / (pairs - 1)] * depth if graph == "cycle" else level
        asked = [level[hop - 1] for last in hops for hop in (range(1, last + 1) if path else [last])]
        self.chance, self.plateau = 1 / symbols, sum(asked) / len(asked)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        def draw(least: int, most: int, size: int) -> Tensor:
            return torch.randint(least, most + 1, (count, size), generator=rng, device=rng.device)

        names = distinct(count, self.pairs + self.chains, self.symbols, rng)
        if self.graph == "map":
            follows = draw(0, self.pairs - 1, self.pairs)
            starts = random_orders(count, self.pairs, rng)[:, : self.questions]
        elif self.graph == "cycle":
            follows = torch.arange(1, self.pairs + 1, device=rng.device).remainder(self.pairs).expand(count, -1)
            starts = random_orders(count, self.pairs, rng)[:, : self.questions]
        else:  # chain c is the nodes c, c + chains, c + 2 * chains, ...
            follows = (torch.arange(self.pairs, device=rng.device) + self.chains).expand(count, -1)
            starts = random_orders(count, self.chains, rng)[:, : self.questions]
        order = random_orders(count, self.pairs, rng)
        context = torch.stack([names.gather(1, order), names.gather(1, follows.gather(1, order))], dim=2).flatten(1)
        hops = draw(self.least, self.depth, self.questions)
        at, way = starts, [starts]
        for _ in range(self.depth):
            at = follows.gather(1, at.clamp(max=self.pairs - 1))
            way.append(at)
        reached = names.gather(1, torch.stack(way, dim=2).flatten(1)).view(count, self.questions, self.depth + 1)
        if not self.path:
            reached = reached.gather(2, torch.stack([torch.zeros_like(hops), hops], dim=2))
        number = torch.arange(1, self.depth + 1, device=rng.device) if self.path else hops.unsqueeze(2)
        answers, beyond = reached[:, :, 1:], number > hops.unsqueeze(2)
        blanks = answers.masked_fill(beyond, self.vocab - 1)
        marks = (self.symbols + hops - self.least).unsqueeze(2)
        questions = torch.cat([reached[:, :, :1], marks, blanks[:, :, :-1]], dim=2)
        tokens = torch.cat([context, questions.flatten(1)], dim=1)
        first = torch.full_like(marks, SILENT)
        silent = torch.full_like(context, SILENT)
        targets = torch.cat([silent, torch.cat([first, answers.masked_fill(beyond, SILENT)], dim=2).flatten(1)], dim=1)
        asked = targets != SILENT
        places = torch.cat([0 * first, number.expand_as(answers)], dim=2).flatten(1)
        facets = {"hops": hops.repeat_interleave(self.width, 1), "hop": places}
        facets = {name: torch.cat([0 * silent, x], 1).masked_fill(~asked, 0).int() for name, x in facets.items()}
        load = torch.tensor(self.pairs, dtype=torch.int32, device=rng.device).expand_as(tokens)
        return Batch(tokens, targets, {**facets, "load": load})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            context, body = sequence[: 2 * self.pairs], 2 * self.pairs
            follows = dict(zip(context[::2], context[1::2], strict=False))
            for start in range(body, len(sequence) - 1, self.width):
                hops, at = sequence[start + 1] - self.symbols + self.least, sequence[start]
                for hop in range(1, hops + 1):
                    at = follows[at]
                    time = start + hop if self.path else start + 1
                    if time < len(sequence) and (self.path or hop == hops):
                        answers[row, time] = at
        return answers


@cache
def most_common_shares(pairs: int, depth: int) -> list[float]:
    """For each number of hops, the mean share of starts that lead to the value to which most lead, in 200 maps."""
    rng = stream("multi_hop", "crowding")
    follows = torch.randint(pairs, (200, pairs), generator=rng, device=rng.device)
    at, found = follows, list[float]()
    for _ in range(depth):
        met = torch.zeros_like(at).scatter_add_(1, at, torch.ones_like(at))
        found.append(met.amax(1).double().mean().item() / pairs)
        at = follows.gather(1, at)
    return found
