"""Many stacks at once (Kimi Team, 2025, section 5.1)."""

from math import log2
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Lt
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, mean_inverse_distinct, measure_once
from bestiary.tasks._draw import draw_in_blocks
from bestiary.tasks._layout import add_filler
from bestiary.tasks._task import SILENT, Batch, Task, stream


class Stacks(Task):
    """Push elements on many stacks, and say what comes off when one is popped.

        tokens   push s3 e7 push s1 e4 push s3 e5 pop s3 e5 pop s3 e7 pop s1 e4
        targets    .  .  .    .  .  .    .  .  .   . e5  .   . e7  .   . e4  .

    Token 0 is push and 1 pop, the next `stacks` name the stacks, and the last `elements` are what they hold. With
    probability `pops` an operation takes the newest element off one of the stacks that are not empty, each equally
    likely; otherwise, or if all are empty, it puts an element on any of the stacks, both uniform. If nothing was popped
    before, the last operation pops. The answer to a pop is shown after it.

    Popping as often as pushing keeps the stacks low: at the defaults 3.8 elements are held when one is asked for, and
    the newest that was not popped, on whatever stack, is right 0.46 of the time, which is the `plateau`. With fewer
    `pops` more is held (13 elements at 0.2).

    Facets: `distance` from a question back to where the stack was named in pushing the answer, `height` (elements on
    that stack) and `load` (on all).

    Departs from the paper: it states neither how often to pop, nor which stack, nor how many elements there are. Its
    lengths from 256 to 2048 are those of the presets but for a token or two, operations being three tokens long.
    """

    family: ClassVar = "copying"
    variants: ClassVar = (
        "stacks=1, elements=5, operations=30",
        "stacks=8, elements=16, operations=40, pops=0.8",
        "stacks=4, operations=14, pops=0.1",
    )
    presets: ClassVar = {"kimi": "operations=85", "kimi_long": "operations=682"}
    axes: ClassVar = {"operations": (21, 42, 85, 170, 341, 682), "stacks": (1, 4, 16, 64), "pops": (0.5, 0.4, 0.3, 0.2)}

    def __init__(
        self,
        *,
        stacks: Positive = 64,
        elements: Positive = 64,
        operations: Positive = 42,
        pops: Annotated[float, Gt(0), Lt(1)] = 0.5,
    ) -> None:
        if operations < 2:
            raise ValueError(f"stacks(operations={operations}): to push and to pop takes 2")
        if elements < 2:
            raise ValueError(f"stacks(elements={elements}): with one element there is nothing to tell; try 2")
        self.stacks, self.elements, self.operations, self.pops = stacks, elements, operations, pops
        self.vocab, self.length = 2 + stacks + elements, 3 * operations
        self.chance, self.plateau = measure_once(("stacks", stacks, elements, operations, pops), self.guesses)
        self.space = from_bits((operations + 1) // 2 * log2(stacks * elements))

    def guesses(self) -> tuple[float, float]:
        """Chance, and the better of a guess among what was pushed and of the newest element that was not popped."""
        right, asked = 0, 0
        for tokens in self.sample(max(1, 2**17 // self.length), stream("stacks")).tokens.tolist():
            held: list[tuple[int, int]] = []
            for act, stack, element in zip(tokens[::3], tokens[1::3], tokens[2::3], strict=True):
                if act == 0:
                    held.append((stack, element))
                    continue
                right, asked = right + (held[-1][1] == element), asked + 1
                held.pop(max(place for place, (of, _) in enumerate(held) if of == stack))
        pushed = mean_inverse_distinct(self.operations * max(0.5, 1 - self.pops), self.elements)
        return 1 / self.elements, max(pushed, right / asked)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        shape, device = (count, self.operations), rng.device
        wanted, lottery = (torch.rand(shape, generator=rng, device=device) for _ in range(2))
        which = torch.randint(self.stacks, shape, generator=rng, device=device)
        element = torch.randint(self.elements, shape, generator=rng, device=device)
        under = torch.full_like(which, -1)  # the push whose element lies below, or is popped
        top = torch.full((count, self.stacks), -1, device=device)  # the push of the newest element
        height = torch.zeros_like(top)
        popped, found = torch.zeros_like(wanted, dtype=torch.bool), []
        for now in range(self.operations):
            due = now == self.operations - 1 and ~popped.any(1)
            load = height.sum(1)
            pop = (load > 0) & ((wanted[:, now] < self.pops) | due)
            filled = (height > 0).cumsum(1)
            chosen = (filled <= (lottery[:, now] * filled[:, -1]).long().unsqueeze(1)).sum(1)
            stack = torch.where(pop, chosen, which[:, now]).unsqueeze(1)
            last = top.gather(1, stack)
            below = under.gather(1, last.clamp(min=0))
            answer = element.gather(1, last.clamp(min=0))[:, 0]
            element[:, now] = torch.where(pop, answer, element[:, now])
            which[:, now], under[:, now], popped[:, now] = stack[:, 0], last[:, 0], pop
            found.append((height.gather(1, stack)[:, 0], load))
            top.scatter_(1, stack, torch.where(pop.unsqueeze(1), below, now))
            height.scatter_add_(1, stack, 1 - 2 * pop.long().unsqueeze(1))
        element = element + 2 + self.stacks
        tokens = torch.stack([popped.long(), which + 2, element], dim=2).flatten(1)
        heights, loads = (torch.stack(x, dim=1) for x in zip(*found, strict=True))
        distance = 3 * (torch.arange(self.operations, device=device) - under)
        facets = {"distance": distance, "height": heights, "load": loads}
        told = {name: add_filler(x * popped, 1, 1, 0).int() for name, x in facets.items()}
        return Batch(tokens, add_filler(element.masked_fill(~popped, SILENT), 1, 1, SILENT), told)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            stacks: list[list[int]] = [[] for _ in range(self.stacks)]
            for time in range(1, len(sequence), 3):
                stack = stacks[sequence[time] - 2]
                if sequence[time - 1] == 1:
                    answers[row, time] = stack.pop()
                elif time + 1 < len(sequence):
                    stack.append(sequence[time + 1])
        return answers
