"""Two maps that are read through one another: swaps of pointers and gifts of objects (Barber, 2026, FactWorld)."""

from math import log2
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Bool, Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, draw_in_blocks, random_orders
from bestiary.tasks._layout import place_values
from bestiary.tasks._task import SILENT, Batch, Task


class S5Binding(Task):
    """Follow whom each agent points to and to whom each object belongs, while events name agents by these two maps.

        tokens   a b  b c  c a  o b  p a    S a o    G p a    b     S swaps the pointers of a and of o's owner b:
        targets  . .  . .  . .  . .  . .    . . .    . . .    b     a -> c, b -> b; G gives p to c, to whom a points

    Tokens 0 to agents - 1 are agents, and then come objects (None: as many) and the marks S, G. A row states whom each
    agent points to (every agent is pointed to once, none by itself) and to whom each object belongs (different agents),
    as pairs in random order. Then `events` of three tokens: the mark, what changes (an agent for S, an object for G),
    whose agent is meant: an agent stands for the one it points to now, an object for its owner now. S swaps the
    pointers of the named agent and the one meant; G makes the one meant the owner. An event is S with probability
    `swaps`, and reads the map that it does not change with probability `cross`. What changes is uniform, and the
    reference is uniform among those that change something; where the chosen map has none, the other one is read. Then
    `questions` different agents or objects (`asks`) are asked for.

    The components name the agent meant by itself and state one map: `named="swaps"` has S only, products of
    transpositions as in `group_words`, and `named="gifts"` has G only, where the last gift counts.

    Presets by events: `v3_` is s5_bind_v3, `state_` and `bind_` are its components, `local_` is its smaller cell.

    Facets: `changes` (how often what is asked for was changed) and `distance` (events since then, or all of them).

    Departs from the source: tokens in place of sentences; and its further rules on which events and questions are
    drawn (nothing that one map alone could tell, equally old readings of both, late changes) are left out. Recall of
    what was stated first is therefore right 0.64 of the time at `events=4`, 0.26 at 16 and 0.17 at 48 (plateau 0.17).
    """

    family: ClassVar = "state tracking"
    variants: ClassVar = (
        "agents=4, objects=2, events=6, cross=1.0",
        "agents=5, events=20, named='swaps', questions=2",
        "agents=5, objects=3, events=12, named='gifts', asks='objects'",
    )
    presets: ClassVar = {
        **{f"v3_{n}": f"agents=12, events={n}" for n in (128, 192, 256)},
        **{f"state_{n}": f"agents=12, events={n}, named='swaps'" for n in (43, 64, 85)},
        **{f"bind_{n}": f"agents=12, events={n}, named='gifts', asks='objects'" for n in (85, 128, 171)},
        **{f"local_{n}": f"events={n}" for n in (16, 32, 48, 64, 96)},
    }
    axes: ClassVar = {"events": (16, 32, 64, 128), "agents": (3, 6, 12)}

    def __init__(
        self,
        *,
        agents: Positive = 6,
        objects: Positive | None = None,
        events: Positive = 16,
        swaps: Annotated[float, Ge(0), Le(1)] = 1 / 3,
        cross: Annotated[float, Ge(0), Le(1)] = 0.5,
        named: Literal["none", "swaps", "gifts"] = "none",
        asks: Literal["agents", "objects"] = "agents",
        questions: Positive = 1,
    ) -> None:
        objects = agents if objects is None else objects
        if agents < 3 or objects > agents:
            raise ValueError(f"s5_binding(agents={agents}): at least 3, and as many as there are objects, {objects}")
        self.pointers, self.owners = named != "gifts", named != "swaps"
        if not (self.pointers if asks == "agents" else self.owners):
            raise ValueError(f"s5_binding(asks={asks!r}): with named={named!r} no event changes them")
        if questions > (most := agents if asks == "agents" else objects):
            raise ValueError(f"s5_binding(questions={questions}): there are {most} {asks} to ask for")
        self.agents, self.objects, self.events, self.named = agents, objects, events, named
        self.swaps, self.cross = {"none": swaps, "swaps": 1.0, "gifts": 0.0}[named], cross
        self.asks, self.questions, self.both = asks, questions, agents + objects
        self.told = 2 * (agents * self.pointers + objects * self.owners)
        self.vocab, self.length = self.both + 2, self.told + 3 * events + questions
        self.chance = self.plateau = 1 / agents
        stated = choice_bits(agents, agents) * self.pointers + choice_bits(agents, objects) * self.owners
        self.space = from_bits(stated + events * log2(min(agents, objects)))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once; a map goes from agents and then objects to agents."""
        meant = torch.cat([derangements(count, self.agents, rng), distinct(count, self.objects, self.agents, rng)], 1)
        order = random_orders(count, self.both, rng)
        order = order.gather(1, (order >= self.agents).byte().argsort(dim=1, stable=True))  # agents before objects
        kept = slice(0 if self.pointers else self.agents, self.both if self.owners else self.agents)
        stated = torch.stack([order, meant.gather(1, order)], dim=2)[:, kept].flatten(1)
        parts, last, changes = [stated], torch.full_like(meant, -1), torch.zeros_like(meant)
        for event in range(self.events):
            mark, what, reference, agent = self.draw_event(meant, rng)
            parts.append(torch.stack([mark, what, reference], dim=1))
            changed = self.apply(meant, mark, what, agent)
            last, changes = last.masked_fill(changed, event), changes + changed.long()
        first, most = (0, self.agents) if self.asks == "agents" else (self.agents, self.objects)
        asked = first + random_orders(count, most, rng)[:, : self.questions]
        where = torch.arange(self.length - self.questions, self.length, device=rng.device).expand_as(asked)
        since = torch.where(last < 0, self.events, self.events - 1 - last)
        facets = {"changes": changes.gather(1, asked), "distance": since.gather(1, asked)}
        return Batch(
            torch.cat([*parts, asked], dim=1),
            place_values(where, meant.gather(1, asked), self.length, SILENT),
            {name: place_values(where, facet.int(), self.length) for name, facet in facets.items()},
        )

    def draw_event(self, meant: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next event of each row: its mark, what changes, the reference, and the agent meant by it."""
        count, everyone = len(meant), torch.arange(self.both, device=rng.device)
        coins = torch.rand(count, 4, generator=rng, device=rng.device, dtype=torch.float64)
        swap, cross = coins[:, 0] < self.swaps, coins[:, 1] < self.cross
        agent, thing = (coins[:, 2] * self.agents).long(), self.agents + (coins[:, 3] * self.objects).long()
        what = torch.where(swap, agent, thing)
        now = torch.where(swap, what, meant.gather(1, what[:, None])[:, 0])  # whom to mean would change nothing
        means = meant if self.named == "none" else everyone.expand_as(meant)
        reads = swap == cross if self.named == "none" else torch.zeros_like(swap)  # the map of objects
        able = means != now[:, None]
        chosen = able & ((everyone >= self.agents) == reads[:, None])
        chosen = torch.where(chosen.any(1, keepdim=True), chosen, able & (everyone < self.agents))
        reference = torch.rand(chosen.shape, generator=rng, device=rng.device).masked_fill(~chosen, -1).argmax(1)
        return self.both + (~swap).long(), what, reference, means.gather(1, reference[:, None])[:, 0]

    def apply(self, meant: Tensor, mark: Tensor, what: Tensor, agent: Tensor) -> Bool[Tensor, "count both"]:
        """Carry out an event in place; whose entry it changed."""
        swap, what, agent = (mark == self.both)[:, None], what[:, None], agent[:, None]
        mine, theirs = meant.gather(1, what), meant.gather(1, agent)
        meant.scatter_(1, what, torch.where(swap, theirs, agent)).scatter_(1, agent, torch.where(swap, mine, theirs))
        return torch.zeros_like(meant, dtype=torch.bool).scatter_(1, agent, swap).scatter_(1, what, True)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            means = dict(zip(sequence[: self.told : 2], sequence[1 : self.told : 2], strict=True))
            for time in range(self.told, self.told + 3 * self.events, 3):
                mark, what, reference = sequence[time : time + 3]
                agent = means[reference] if self.named == "none" else reference
                if mark == self.both:
                    means[what], means[agent] = means[agent], means[what]
                else:
                    means[what] = agent
            for time in range(self.told + 3 * self.events, len(sequence)):
                answers[row, time] = means[sequence[time]]
        return answers


def derangements(count: int, size: int, rng: torch.Generator) -> Int[Tensor, "count size"]:
    """For each row an order of so many numbers in which none stands at its own place."""
    drawn, places = random_orders(count, size, rng), torch.arange(size, device=rng.device)
    while (fixed := (drawn == places).any(1)).any():
        drawn[fixed] = random_orders(int(fixed.sum()), size, rng)
    return drawn
