"""Dyck words of bounded depth: which bracket is due (Hewitt et al., 2020)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import Positive
from bestiary.tasks._strings import StringBatch, Strings
from bestiary.tasks._task import SILENT


class Dyck(Strings):
    """Brackets of several kinds are opened and closed: where one is closed next, which?

        tokens   ( [ ( ) ] [ ] ) .
        targets  . . ) ] . ] ) . .

    Tokens 0 to kinds - 1 open, token kinds + k closes what token k opened, and the blank, the token after, fills up
    the row. No bracket is nested deeper than `depth`. Next comes an opening bracket of uniform kind or the closing
    one that is due, equally likely, unless the depth allows only one of them. The length of the string is uniform
    from `least` to `length`, wherever that leaves the brackets. A question stands at the token before each closing
    bracket: the target is that bracket, the last opened that is still open.

    Facets: `depth`, how many brackets are open at the question, `distance` back to the one to be closed, and `length`
    and `place` in the string. Departs from the paper in that a string may end with brackets open, and in that only
    closing brackets are scored, where a language model is trained on every token and judged by its closing ones.
    """

    variants: ClassVar = ("kinds=2, least=9, length=16", "kinds=40, depth=6, length=100", "kinds=2, depth=1")
    presets: ClassVar[Mapping[str, str]] = {
        "depth_3": "least=4, length=84, depth=3",
        "depth_3_test": "least=85, length=180, depth=3",
        "depth_5": "least=6, length=180, depth=5",
        "depth_5_test": "least=181, length=700, depth=5",
    }
    axes: ClassVar = {"depth": (1, 2, 4, 8), "kinds": (2, 8, 32, 128)}

    def __init__(self, *, least: Positive = 9, length: Positive = 64, kinds: Positive = 8, depth: Positive = 4) -> None:
        if kinds < 2:
            raise ValueError(f"dyck(kinds={kinds}): of one kind there is nothing to ask; take 2 or more")
        if least <= depth:
            raise ValueError(
                f"dyck(least={least}): none may close in {least} symbols at depth={depth}; take {depth + 1}"
            )
        self.kinds, self.depth, self.blank, self.running = kinds, depth, 2 * kinds, True
        super().__init__(least=least, length=length)

    def count_strings(self, size: int) -> int:
        return self.kinds ** (size // 2)

    def expected_counts(self, size: int) -> list[float]:
        return [0.0] * self.kinds + [1.0] * self.kinds

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        rows, kinds = len(sizes), self.uniform_symbols(len(sizes), self.kinds, rng)
        coin = torch.rand(rows, self.longest, generator=rng, device=rng.device) < 0.5
        stack = torch.zeros(rows, self.depth + 1, 2, dtype=torch.long, device=rng.device)  # kinds and where they opened
        height, symbols, depths, since = torch.zeros_like(sizes), [], [], []
        for time, (kind, closes) in enumerate(zip(kinds.unbind(1), coin.unbind(1), strict=True)):
            closes = (closes | (height == self.depth)) & (height > 0)
            top = stack.gather(1, (height - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, 2)).squeeze(1)
            new = torch.stack([kind, torch.full_like(kind, time)], 1)
            stack.scatter_(1, height.view(-1, 1, 1).expand(-1, 1, 2), new.unsqueeze(1))
            symbols.append(torch.where(closes, self.kinds + top[:, 0], kind))
            depths.append(height)
            since.append(torch.where(closes, time - 1 - top[:, 1], 0))
            height = torch.where(closes, height - 1, height + 1)
        return self.with_questions(sizes, torch.stack(symbols, 1), {"depth": depths, "distance": since})

    def with_questions(self, sizes: Tensor, symbols: Tensor, facets: dict[str, list[Tensor]]) -> StringBatch:
        """What is known of each symbol stands with the question before it."""
        after = F.pad(symbols[:, 1:], (0, 1))
        within = torch.arange(1, self.longest + 1, device=sizes.device) < sizes.unsqueeze(1)
        answers = after.masked_fill((after < self.kinds) | ~within, SILENT)
        moved = {name: F.pad(torch.stack(found[1:], 1), (0, 1)) for name, found in facets.items()}
        return StringBatch(symbols, sizes, answers, sizes, moved)

    def solve_string(self, string: list[int]) -> list[int]:
        opened: list[int] = []
        due: list[int] = []
        for symbol in string:
            if symbol < self.kinds:
                opened.append(symbol)
            else:
                opened.pop()
            due.append(self.kinds + opened[-1] if opened else SILENT)
        return due
