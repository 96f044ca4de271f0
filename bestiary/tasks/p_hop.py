"""The p-hop induction heads task (Sanford, Hsu & Telgarsky, 2024, section 4)."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import from_bits
from bestiary.tasks._draw import blocks
from bestiary.tasks._layout import earlier_occurrences
from bestiary.tasks._task import SILENT, Batch, Task


class PHop(Task):
    """Read letters; at each, jump `hops` times to what followed the letter when it last stood before; say that letter.

        tokens   h2  a  b  c  a  c  b  c     from the last c to the b after the c before it,
        targets   .  -  -  -  -  b  -  c     from that b to the c after the b before it

    One hop from position i goes to the position after the latest earlier occurrence of its letter; where there is none
    the answer is the token "none", here as from there on. No letter stands twice in a row; else all are equally likely.
    The first token says how many hops: `hops`, or any number from `least` to `hops`. Letters are tokens 0 to letters -
    1, then "none", then the tokens for each number of hops. `scored="all"` asks at every letter, `"last"` at the last
    one.

    Facets: `hops`, `distance` from the letter to where the hops end, and `none` (1 where that is the answer).

    Departs from the paper: its first target, a blank at the number of hops, is not scored. Where it trains on a
    mixture of 0 to 16 hops, the default is one number, and `p_hop.paper` the mixture.
    """

    family: ClassVar = "reasoning"
    variants: ClassVar = ("letters=3, length=40, hops=1", "letters=8, length=64, hops=2, least=1, scored='last'")
    presets: ClassVar = {"paper": "hops=16, least=0"}
    axes: ClassVar = {"hops": (1, 2, 4, 8, 16)}

    def __init__(
        self,
        *,
        letters: Positive = 4,
        length: Positive = 100,
        hops: Natural = 4,
        least: Natural | None = None,
        scored: Literal["all", "last"] = "all",
    ) -> None:
        self.letters, self.length, self.hops, self.scored = letters, length, hops, scored
        self.least = hops if least is None else least
        if letters < 3:
            raise ValueError(f"p_hop(letters={letters}): with no letter twice in a row it takes 3 to be random")
        if length < 2:
            raise ValueError(f"p_hop(length={length}): the number of hops and one letter need 2")
        if self.least > hops:
            raise ValueError(f"p_hop(least={least}): it must be at most hops={hops}")
        self.vocab = letters + 1 + hops - self.least + 1
        self.space = from_bits((length - 2) * math.log2(letters - 1))
        none = self.none_probability()
        self.chance = self.plateau = max(none, (1 - none) / letters)

    def none_probability(self) -> float:
        """How often "none" is the answer.

        Read backwards the letters are a random walk that next meets a given other letter with probability
        1 / (letters - 1) at each step, so i - 1 letters hold `hops` jumps if so many independent trials succeed.
        """
        success = 1 / (self.letters - 1)
        reached = [1.0] + [0.0] * (self.hops + 1)  # the law of the number of successes, large numbers taken together
        failing: list[float] = []
        for place in range(self.length - 1):
            if place > 1:
                stay = [share * (1 - success) for share in reached[:-1]] + [reached[-1]]
                reached = [stay[0]] + [stay[i] + success * reached[i - 1] for i in range(1, len(reached))]
            numbers = range(self.least, self.hops + 1)
            failing.append(sum(sum(reached[:hops]) for hops in numbers) / len(numbers))
        return failing[-1] if self.scored == "last" else sum(failing) / len(failing)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        tokens = torch.empty(count, self.length, dtype=torch.long, device=rng.device)
        targets = torch.full_like(tokens, SILENT)
        facets = {name: torch.zeros_like(tokens, dtype=torch.int32) for name in ("hops", "distance", "none")}
        for part in blocks(count, self.length):
            self.draw_into(tokens[part], targets[part], {name: facet[part] for name, facet in facets.items()}, rng)
        return Batch(tokens, targets, facets)

    def draw_into(self, tokens: Tensor, targets: Tensor, facets: dict[str, Tensor], rng: torch.Generator) -> None:
        """Draw some rows in place."""
        count, places = len(tokens), torch.arange(self.length - 1, device=rng.device)
        steps = torch.randint(1, self.letters, (count, self.length - 1), generator=rng, device=rng.device)
        steps[:, 0] = torch.randint(self.letters, (count,), generator=rng, device=rng.device)
        text = steps.cumsum(1) % self.letters
        hops = torch.randint(self.least, self.hops + 1, (count, 1), generator=rng, device=rng.device)
        found = earlier_occurrences(text).last
        jump, at = torch.where(found < 0, -1, found + 1), places.expand(count, -1).clone()
        for hop in range(self.hops):
            further = jump.gather(1, at.clamp(min=0)).masked_fill(at < 0, -1)
            at = torch.where(hop < hops, further, at)
        none = at < 0
        tokens[:, :1], tokens[:, 1:] = self.letters + 1 + hops - self.least, text
        targets[:, 1:] = text.gather(1, at.clamp(min=0)).masked_fill(none, self.letters)
        if self.scored == "last":
            targets[:, :-1] = SILENT
        facets["hops"][:] = hops
        facets["distance"][:, 1:] = (places - at).masked_fill(none, 0)
        facets["none"][:, 1:] = none

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, (number, *text) in enumerate(tokens.tolist()):
            jump: list[int | None] = []
            last: dict[int, int] = {}
            for place, letter in enumerate(text):
                jump.append(last[letter] + 1 if letter in last else None)
                last[letter] = place
                at: int | None = place
                for _ in range(number - self.letters - 1 + self.least):
                    at = None if at is None else jump[at]
                answers[row, place + 1] = self.letters if at is None else text[at]
        return answers
