"""Recall on top of state tracking: the value of whoever holds an object (Barber, 2026, FactWorld)."""

from math import log2
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, draw_in_blocks
from bestiary.tasks._layout import place_values
from bestiary.tasks._task import SILENT, Batch, Task


class CompositeCopy(Task):
    """Read the values of agents and who is given which object; say who holds an object, and the value of that agent.

        tokens   a v3  b v1  c v7   o b  p a  o c  p b  p a   ? o c       asks="value"   ... ? o
        targets  .  .  .  .  .  .   . .  . .  . .  . .  . .   . c v7                     ... . v7

    Tokens 0 to agents - 1 are agents, and then come objects, values and the mark `?`. `pool` different agents have a
    value each, all different. Then come `events` gifts of an object to an agent of the pool, and the question: the
    object asked for is drawn first; the last gift of it is uniform among the gifts from number floor(events / 10) to
    the last but one; later gifts are of other objects, earlier ones of any, and all agents are uniform. So neither the
    last gift of all nor the place of a gift tells the answer.

    The answer is the holder and then its value, each asked, the second after the first has been given.
    `asks="value"` asks for the value at once, so that the hop over the holder is silent. `asks="holder"` asks for the
    holder only and gives no values: state tracking alone, the last gift counts.

    `plateau` is the accuracy of one who takes any gift of the object for its last, and the value of that agent.

    Presets `v2_16` to `v2_64` are composite_copy_v2 by the number of gifts; it trains on 4, 8 and 16, `v2_4`, `v2_8`
    and `v2_16`, and tests on 16, 32 and 64. `binding_16` to `binding_64` are binding_v2, its state tracking alone.

    Facets: `hop` (1 for the holder, 2 for the value), `distance` (how many gifts came after the one that counts) and
    `gifts` (how often the object was given).

    Departs from the source: agents, objects and values are tokens and not English sentences; values come in the order
    of a uniform draw of the agents, as there.
    """

    family: ClassVar = "state tracking"
    variants: ClassVar = (
        "agents=6, pool=3, objects=2, values=20, events=5",
        "asks='value', events=12",
        "asks='holder', agents=5, pool=5, events=20",
    )
    presets: ClassVar = {
        **{f"v2_{events}": f"events={events}" for events in (4, 8, 16, 32, 64)},
        **{f"binding_{events}": f"agents=5, pool=5, events={events}, asks='holder'" for events in (4, 8, 16, 32, 64)},
    }
    axes: ClassVar = {"events": (4, 8, 16, 32, 64, 128), "pool": (2, 4, 8, 16, 32), "objects": (2, 4, 8)}

    def __init__(
        self,
        *,
        agents: Positive = 32,
        pool: Positive = 16,
        objects: Positive = 4,
        values: Positive = 128,
        events: Positive = 16,
        asks: Literal["both", "holder", "value"] = "both",
    ) -> None:
        if not 2 <= pool <= min(agents, values):
            raise ValueError(
                f"composite_copy(pool={pool}): from 2 to {min(agents, values)}, as many as agents and values"
            )
        if objects < 2 or events < 2:
            raise ValueError("composite_copy: there are 2 objects and 2 events or more")
        self.agents, self.pool, self.objects, self.values, self.events = agents, pool, objects, values, events
        self.asks, self.told = asks, 0 if asks == "holder" else 2 * pool
        self.first = agents + objects  # of the values
        self.vocab = self.first + values + 1
        self.length = self.told + 2 * events + 2 + (asks == "both")
        self.chance = {"both": max(1 / agents, 1 / values) / 2, "holder": 1 / agents, "value": 1 / values}[asks]
        before = range(events // 10, events - 1)  # how many gifts come before the one that counts
        newest = sum((1 - (1 - 1 / objects) ** (n + 1)) * objects / (n + 1) for n in before) / len(before)
        self.plateau = newest + (1 - newest) / pool
        bits = choice_bits(agents, pool) + events * log2(pool) + (events - 1) * log2(max(objects - 1, 1))
        self.space = from_bits(bits + (choice_bits(values, pool) if self.told else 0))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""

        def draw(least: int, end: int, size: int) -> Tensor:
            return torch.randint(least, end, (count, size), generator=rng, device=rng.device)

        agents, values = distinct(count, self.pool, self.agents, rng), distinct(count, self.pool, self.values, rng)
        asked, counts = draw(0, self.objects, 1), draw(self.events // 10, self.events - 1, 1)
        event = torch.arange(self.events, device=rng.device).expand(count, -1)
        others = (asked + draw(1, self.objects, self.events)) % self.objects
        given = torch.where(event > counts, others, draw(0, self.objects, self.events))
        given = torch.where(event == counts, asked, given)
        to = draw(0, self.pool, self.events)
        holder = to.gather(1, counts)
        answers = torch.cat([agents.gather(1, holder), self.first + values.gather(1, holder)], dim=1)
        facts = torch.stack([agents, self.first + values], dim=2).flatten(1)[:, : self.told]
        gifts = torch.stack([self.agents + given, agents.gather(1, to)], dim=2).flatten(1)
        question = torch.cat([torch.full_like(asked, self.vocab - 1), self.agents + asked, answers[:, :1]], dim=1)
        tokens = torch.cat([facts, gifts, question], dim=1)[:, : self.length]
        hops = {"both": slice(0, 2), "holder": slice(0, 1), "value": slice(1, 2)}[self.asks]
        answers = answers[:, hops]
        where = torch.arange(self.length - answers.shape[1], self.length, device=rng.device).expand_as(answers)
        facets = {"hop": torch.arange(1, 3, device=rng.device)[hops], "distance": self.events - 1 - counts}
        facets["gifts"] = (given == asked).sum(1, keepdim=True)
        return Batch(
            tokens,
            place_values(where, answers, self.length, SILENT),
            {name: place_values(where, facet.expand_as(where).int(), self.length) for name, facet in facets.items()},
        )

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            value_of = dict(zip(sequence[: self.told : 2], sequence[1 : self.told : 2], strict=True))
            holder_of: dict[int, int] = {}
            end = self.told + 2 * self.events
            for time in range(self.told, min(end, len(sequence) - 1), 2):
                holder_of[sequence[time]] = sequence[time + 1]
            if len(sequence) > end + 1:
                holder = holder_of[sequence[end + 1]]
                answers[row, end + 1] = value_of[holder] if self.asks == "value" else holder
            if len(sequence) > end + 2:
                answers[row, end + 2] = value_of[sequence[end + 2]]
        return answers
