"""The UNDO flip-flop: a written bit can be taken back (Zhou, 2026; after Liu et al., 2023)."""

from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Lt
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._draw import draw_in_blocks
from bestiary.tasks._task import SILENT, Batch, Task

WRITE, READ, IGNORE, UNDO, PADDING = range(2, 7)  # 0 and 1 are the bits


class UndoFlipFlop(Task):
    """Write bits, ignore bits, take the last bit back, and when told to read say the bit that stands.

        tokens   w 1 i 0 w 0 r w 0 u u i 1 r      (the second undo takes back the first 0: the 1 stands again)
        targets  . . . . . . 0 . . . . . . 1

    Tokens 0 and 1 are the bits, 2 to 5 the instructions write, read, ignore and undo, and 6 is padding. A bit follows
    each write and each ignore, none a read or an undo. A write puts its bit on a stack, an undo takes the topmost off,
    and a read asks for the topmost. Bits are uniform. The row begins with a write and ends with a read; each
    instruction between is ignore with probability `ignore`, undo with `undo`, read with (1 - ignore) / 2, and
    otherwise write. With one bit on the stack, a write is drawn instead of an undo. Where one token is left before the
    last read, it is a read or an undo. Rows have `shortest` to `length` tokens (None: always `length`), each number
    equally likely, and padding on the right.

    `form="pressure"` is the paper's retraction pressure test: d + 1 writes, d undos, ignored bits, and a read. d is
    uniform from 1 to the most that fit. Where an odd number of tokens is left, a read follows the undos. All answers of
    a row are its token 1: a test for models that were trained on the random form, and nothing to train on.

    Presets `train` and `longer` have the lengths on which the paper trains and tests, `pressure` is its pressure test.

    Facets: `distance` back to the write that is asked for, `undos` (since the last write) and `toggle`, 1 where a
    reader is right who flips the bit at each undo instead of remembering what stood before.

    Departs from the paper: rows of fewer than 3 tokens are not drawn; there they are rows of 3.
    """

    family: ClassVar = "copying"
    variants: ClassVar = ("length=20, undo=0.15, ignore=0.5", "length=40, form='pressure'", "shortest=9, length=30")
    presets: ClassVar = {
        "train": "length=50, shortest=3",
        "longer": "length=100, shortest=51",
        "pressure": "length=50, form='pressure'",
    }
    axes: ClassVar = {"length": (20, 50, 100, 200), "undo": (0.0, 0.02, 0.05, 0.1)}

    def __init__(
        self,
        *,
        length: Positive = 64,
        shortest: Positive | None = None,
        ignore: Annotated[float, Ge(0), Lt(1)] = 0.8,
        undo: Annotated[float, Ge(0), Lt(1)] = 0.05,
        form: Literal["random", "pressure"] = "random",
    ) -> None:
        self.shortest = length if shortest is None else shortest
        least = 6 if form == "pressure" else 3
        if not least <= self.shortest <= length:
            raise ValueError(f"undo_flip_flop(shortest={self.shortest}): from {least} to length={length} are possible")
        if undo > (1 - ignore) / 2 + 1e-9:
            raise ValueError(f"undo_flip_flop(undo={undo}): at most (1 - ignore) / 2 = {(1 - ignore) / 2:g}")
        if form == "pressure" and self.shortest < length:
            raise ValueError("undo_flip_flop(form='pressure'): all rows have the same length; leave out shortest")
        self.ignore, self.undo, self.form = ignore, undo, form
        self.vocab, self.length, self.chance, self.plateau = 7, length, 0.5, 0.5
        self.space = self.count_rows()

    def count_rows(self) -> float:
        """How many rows of the pressure test there are; otherwise the inverse of how often two rows are alike."""
        if self.form == "pressure":
            depths = range(1, (self.length - 3) // 3 + 1)
            return float(sum(2.0 ** (depth + 1 + (self.length - 3 * depth - 3) // 2) for depth in depths))
        read = (1 - self.ignore) / 2
        one, two = read**2 + self.undo**2, (self.ignore**2 + (read - self.undo) ** 2) / 2
        alike = [1.0, 1.0]  # how likely two ways to fill so many tokens are the same
        for _ in range(2, self.length):
            alike.append(one * alike[-1] + two * alike[-2])
        sizes = range(self.shortest, self.length + 1)
        return 2 * len(sizes) ** 2 / max(1e-300, sum(alike[size - 3] for size in sizes))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        draw = self.draw_pressure if self.form == "pressure" else self.draw_random
        return draw_in_blocks(lambda rows, rng: self.read_rows(draw(rows, rng)), count, self.length, rng)

    def draw_pressure(self, count: int, rng: torch.Generator) -> Int[Tensor, "count time"]:
        """Writes, as many undos but one, perhaps a read, ignored bits, and a read."""
        depth = 1 + torch.randint((self.length - 3) // 3, (count, 1), generator=rng, device=rng.device)
        bits = torch.randint(2, (count, self.length), generator=rng, device=rng.device)
        time = torch.arange(self.length, device=rng.device).expand_as(bits)
        written, undone = 2 * depth + 2, 3 * depth + 2
        tail = undone + (self.length - undone - 1) % 2
        tokens = torch.where((time - tail) % 2 == 0, IGNORE, bits)
        tokens = torch.where(time < tail, READ, tokens)
        tokens = torch.where(time < undone, UNDO, tokens)
        tokens = torch.where(time < written, torch.where(time % 2 == 0, WRITE, bits), tokens)
        return torch.where(time == self.length - 1, READ, tokens)

    def draw_random(self, count: int, rng: torch.Generator) -> Int[Tensor, "count time"]:
        """Instructions one after another, each as likely as told."""
        tokens = torch.randint(2, (count, self.length), generator=rng, device=rng.device)
        sizes = torch.randint(self.shortest, self.length + 1, (count,), generator=rng, device=rng.device)
        drawn = torch.rand(count, self.length, generator=rng, device=rng.device)
        read = (1 - self.ignore) / 2
        tokens[:, 0] = WRITE
        depth, free = torch.ones_like(sizes), 2 * torch.ones_like(sizes)  # free: where the next instruction stands
        for time in range(2, self.length):
            begins, single = free == time, sizes - 1 - time == 1
            undoes = depth > 1
            kind = torch.where(drawn[:, time] < 1 - self.undo, WRITE, torch.where(undoes, UNDO, WRITE))
            kind = torch.where(drawn[:, time] < self.ignore + read, READ, kind)
            kind = torch.where(drawn[:, time] < self.ignore, IGNORE, kind)
            last = torch.where(undoes & (drawn[:, time] * (read + self.undo) >= read), UNDO, READ)
            kind = torch.where(single, last, kind).where(time < sizes - 1, READ).where(time < sizes, PADDING)
            tokens[:, time] = torch.where(begins, kind, tokens[:, time])
            depth += begins * ((kind == WRITE).long() - (kind == UNDO).long())
            free += begins * (1 + ((kind == WRITE) | (kind == IGNORE)).long())
        return tokens

    def read_rows(self, tokens: Int[Tensor, "count time"]) -> Batch:
        """The rows with their answers, by following all their stacks at once."""
        rows = torch.arange(len(tokens), device=tokens.device)
        bits, places = (torch.zeros_like(tokens) for _ in range(2))  # the stacks, from the bottom
        depth, undos, toggled = (torch.zeros_like(tokens[:, 0]) for _ in range(3))
        targets = torch.full_like(tokens, SILENT)
        facets = {name: torch.zeros_like(tokens, dtype=torch.int32) for name in ("distance", "undos", "toggle")}
        for time, token in enumerate(tokens.unbind(1)):
            writes, reads, undoes = token == WRITE, token == READ, token == UNDO
            if time + 1 < self.length:
                depth += writes.long()
                top = depth.sub(1).clamp(min=0)
                bits[rows[writes], top[writes]] = tokens[writes, time + 1]
                places[rows[writes], top[writes]] = time
                toggled = torch.where(writes, tokens[:, time + 1], toggled)
            depth, undos = depth - undoes.long(), (undos + undoes.long()) * ~writes
            toggled = torch.where(undoes, 1 - toggled, toggled)
            top = depth.sub(1).clamp(min=0)
            answer = bits[rows, top]
            targets[:, time] = torch.where(reads, answer, SILENT)
            found = {"distance": time - places[rows, top], "undos": undos, "toggle": (toggled == answer).long()}
            for name, facet in found.items():
                facets[name][:, time] = (facet * reads).int()
        return Batch(tokens, targets, facets)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            stack: list[int] = []
            for time, token in enumerate(sequence):
                if time and sequence[time - 1] == WRITE:
                    stack.append(token)
                elif token == UNDO:
                    stack.pop()
                elif token == READ:
                    answers[row, time] = stack[-1]
        return answers
