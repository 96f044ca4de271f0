"""SelectivBench: hidden states of an ambiguous grammar, held through gaps (Bouhadjar et al., 2026)."""

import math
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._ambiguous import ambiguous_grammar
from bestiary.tasks._count import from_bits, measure_once
from bestiary.tasks._layout import pack_rows
from bestiary.tasks._task import SILENT, Batch, Task


class SelectiveGrammar(Task):
    """Read strings of one fixed automaton with gaps between their symbols, and tell its state at the end of each gap.

        tokens   a _ b _ _ a _ _ # _ c _ _ ...      (_ is a blank; the a's stand for different states here)
        targets  . 1 . . 7 . . 3 . 0 . . 9 ...

    Token 0 is "#", 1 to `symbols` are the other symbols, and symbols + 1 is the blank, which also pads the row. Every
    symbol but "#" is ambiguous between `depth` states: 1 + (s - 1) * depth + i is the i-th of symbol s, and 0 the state
    of "#". The grammar is drawn once, from `seed`: from every state, for every symbol, an edge goes to one of the
    states of the symbol with probability 0.4 (0.4 / depth for "#"); drawn again until "#" can be reached from
    everywhere. The edges of a state are equally likely, and a symbol read in a state leads to one state only. After
    "#", and at the beginning, one of up to four starts is drawn, with different symbols.

    A row has `elements` symbols, each followed by `least` to `gap` blanks. The last blank asks for the state. From
    element `clean` on, a symbol that cannot follow is drawn with probability `noise` where there is one; it changes
    no state, and its gap asks nothing.

    Facets: `element` (which of the row, from 0), `since` (how many symbols were read since "#") and `gap`.

    Departs from the paper: gaps are whole tokens and nothing is added to them; the answer is read at the end of the
    gap and not summed over it; starts have different symbols, so that the state is always known; training and test
    rows are different. The default is smaller, for a laptop.
    """

    family: ClassVar = "in-context rules"
    variants: ClassVar = (
        "symbols=4, depth=2, elements=20, gap=2",
        "noise=0.3, clean=5",
        "symbols=12, depth=1, elements=20, gap=1",
    )
    presets: ClassVar = {
        **{f"task1_{n}": f"symbols={n}, depth={n}, elements=200, gap=1" for n in (20, 24, 26, 30, 34, 38, 40)},
        "task2": "symbols=20, depth=20, elements=200, gap=10",
    }
    axes: ClassVar = {"depth": (1, 2, 4, 8), "gap": (1, 3, 10)}

    def __init__(
        self,
        *,
        symbols: Positive = 8,
        depth: Positive = 4,
        elements: Positive = 30,
        least: Positive = 1,
        gap: Positive = 3,
        noise: float = 0.0,
        clean: Natural = 0,
        seed: Natural = 0,
    ) -> None:
        if least > gap:
            raise ValueError(f"selective_grammar(least={least}): gaps have at most gap={gap} blanks")
        if not 0 <= noise < 1:
            raise ValueError(f"selective_grammar(noise={noise}): a probability from 0 to below 1")
        self.elements, self.least, self.gap, self.noise, self.clean = elements, least, gap, noise, clean
        self.blank, self.depth, self.length = symbols + 1, depth, elements * (gap + 1)
        self.onward = ambiguous_grammar(symbols, depth, seed)
        self.vocab = max(symbols + 2, len(self.onward))
        key = "selective_grammar", symbols, depth, elements, noise, clean, seed
        self.chance, self.plateau = measure_once(key, self.guesses)
        self.space = from_bits(self.bits() + elements * math.log2(gap - least + 1))

    def guesses(self) -> tuple[float, float]:
        """How often the commonest state is right, and the commonest of the symbol that was read."""
        there, source, target, edges = self.walk()
        asked = torch.zeros_like(there)
        for element in range(self.elements):
            stay = self.noise * (self.onward[:, 1:] < 0).any(1) * (element >= self.clean)
            came = torch.zeros_like(there).index_add(0, target, (there * (1 - stay) / edges)[source])
            asked, there = asked + came, came + there * stay
        share = asked / asked.sum()
        return share.max().item(), (share[0] + share[1:].view(-1, self.depth).amax(1).sum()).item()

    def bits(self) -> float:
        """How many bits a row has besides its gaps and noise, as the chance that two rows agree tells."""
        there, source, target, edges = self.walk()
        bits = 0.0
        for _ in range(self.elements):
            there = torch.zeros_like(there).index_add(0, target, (there / edges**2)[source])
            bits -= math.log2(there.sum().item())
            there = there / there.sum()
        return bits

    def walk(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where a row begins, the two ends of each edge, and how many edges leave each state."""
        there = torch.zeros(len(self.onward), dtype=torch.float64, device="cpu")
        there[0] = 1
        edges = self.onward >= 0
        return there, edges.nonzero()[:, 0], self.onward[edges], edges.sum(1)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        onward = self.onward.to(rng.device)
        shape = count, self.elements
        lottery, doubt = torch.rand(2, *shape, generator=rng, device=rng.device, dtype=torch.float64)
        state = torch.zeros(count, dtype=torch.long, device=rng.device)
        symbols, states, since = (torch.zeros(shape, dtype=torch.long, device=rng.device) for _ in range(3))
        for element in range(self.elements):
            legal = onward[state] >= 0
            odd = (doubt[:, element] < self.noise) & ~legal[:, 1:].all(1) & (element >= self.clean)
            able = legal ^ odd[:, None]
            able[:, 0] &= ~odd
            place = (lottery[:, element] * able.sum(1)).long()
            symbols[:, element] = (able.cumsum(1) > place[:, None]).byte().argmax(1)
            state = torch.where(odd, state, onward[state, symbols[:, element]])
            states[:, element] = state.masked_fill(odd, SILENT)
            ended = symbols[:, element] == 0
            since[:, element] = torch.where(ended, 0, 1 + (since[:, element - 1] if element else 0))
        return self.add_gaps(symbols, states, since, rng)

    def add_gaps(self, symbols: Tensor, states: Tensor, since: Tensor, rng: torch.Generator) -> Batch:
        """The symbols with gaps between them."""
        gap = torch.randint(self.least, self.gap + 1, (*symbols.shape, 1), generator=rng, device=rng.device)
        slots = torch.arange(self.gap + 1, device=rng.device).expand(*symbols.shape, -1)
        tokens = symbols[:, :, None].where(slots == 0, self.blank)
        targets = states[:, :, None].where(slots == gap, SILENT)
        element = torch.arange(self.elements, device=rng.device)[:, None].expand_as(slots)
        told = element, since[:, :, None].expand_as(slots), gap.expand_as(slots)
        parts = (tokens, self.blank), (targets, SILENT), *((part, 0) for part in told)
        tokens, targets, *told = pack_rows(slots <= gap, *parts, length=self.length)
        element, since, gap = (part.int() for part in told)
        return Batch(tokens, targets, {"element": element, "since": since, "gap": gap})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers, onward = torch.full_like(tokens, SILENT), self.onward.tolist()
        for row, sequence in enumerate(tokens.tolist()):
            state, answer = 0, SILENT
            for time, token in enumerate(sequence):
                if token == self.blank:
                    answers[row, time] = answer
                else:
                    answer = onward[state][token]
                    state = state if answer < 0 else answer
        return answers
