"""Path-star graphs, whose first step must be planned (Bachmann & Nagarajan, 2024, section 4)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, random_orders
from bestiary.tasks._layout import gather_vectors
from bestiary.tasks._task import SILENT, Batch, Task

PAPER = ((2, 5), (5, 5), (10, 5), (20, 5), (2, 20))  # branches, and nodes of each with the centre


class PathStar(Task):
    """Read the edges of a star of paths in random order, then write the path from its centre to a given end.

        tokens   b c a b e f a e ? a f = e       (from the centre a go a b c and a e f)
        targets  . . . . . . . . . . . e f

    `branches` paths of `steps` edges leave the centre; nodes are different tokens, drawn from `nodes`, and after those
    come "?" and "=". An edge is written from the centre outward, or, unless `directed`, either way at random. After "?"
    stand the centre and the end of one branch, each equally likely, and after "=" the path between them, without the
    centre. `backwards=True` asks for it from the end, without the end: then each step is one look-up.

    With `shown` the path is given as it is asked for, token by token, and all steps but the first can be read off
    the edges one by one, which is how models come to fail at the first ("Clever Hans"). Without it "=" stands at all
    its places, as in the paper's teacherless training.

    Facet: `step` (from 0).

    Departs from the paper: edges have no mark between them, and the centre, which is always the first node of the
    path, is not asked for, nor, going backwards, the end.
    """

    family: ClassVar = "reasoning"
    variants: ClassVar = (
        "branches=2, steps=1, nodes=20",
        "branches=3, steps=3, nodes=30, directed=False",
        "branches=2, steps=3, shown=False",
        "steps=2, backwards=True, directed=False",
    )
    presets: ClassVar = {
        **{f"g{d}_{k}": f"branches={d}, steps={k - 1}, nodes={max(50, d * k)}" for d, k in PAPER},
        "x_transformers": "branches=3, steps=3, nodes=100, directed=False",
    }
    axes: ClassVar = {"branches": (1, 2, 3, 5, 8), "steps": (1, 2, 4, 8)}

    def __init__(
        self,
        *,
        branches: Positive = 5,
        steps: Positive = 4,
        nodes: Positive = 50,
        directed: bool = True,
        backwards: bool = False,
        shown: bool = True,
    ) -> None:
        self.branches, self.steps, self.nodes = branches, steps, nodes
        self.directed, self.backwards, self.shown = directed, backwards, shown
        self.edges = branches * steps
        if nodes <= self.edges:
            raise ValueError(
                f"path_star(nodes={nodes}): {branches} branches of {steps} steps have {self.edges + 1} nodes"
            )
        self.vocab, self.length = nodes + 2, 2 * self.edges + 3 + steps
        self.chance = 1 / nodes
        first = 1 / branches
        self.plateau = 1 / steps if backwards else (first if not shown else (first + steps - 1) / steps)
        self.space = from_bits(choice_bits(nodes, self.edges + 1))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        drawn = distinct(count, self.edges + 1, self.nodes, rng)
        centre, paths = drawn[:, :1], drawn[:, 1:].view(count, self.branches, self.steps)
        tails = torch.cat([centre[:, None].expand(-1, self.branches, 1), paths[:, :, :-1]], dim=2)
        edges = torch.stack([tails, paths], dim=3).view(count, self.edges, 2)
        edges = gather_vectors(edges, random_orders(count, self.edges, rng))
        if not self.directed:
            turned = torch.randint(2, (count, self.edges, 1), generator=rng, device=rng.device).bool()
            edges = torch.where(turned, edges.flip(2), edges)
        branch = torch.randint(self.branches, (count, 1, 1), generator=rng, device=rng.device)
        path = paths.gather(1, branch.expand(-1, 1, self.steps))[:, 0]
        asked = torch.cat([path[:, :-1].flip(1), centre], 1) if self.backwards else path
        query, equals = torch.full_like(centre, self.nodes), torch.full_like(asked, self.nodes + 1)
        if self.shown:
            equals[:, 1:] = asked[:, :-1]
        tokens = torch.cat([edges.flatten(1), query, centre, path[:, -1:], equals], dim=1)
        targets, step = torch.full_like(tokens, SILENT), torch.zeros_like(tokens, dtype=torch.int32)
        targets[:, -self.steps :] = asked
        step[:, -self.steps :] = torch.arange(self.steps, dtype=torch.int32, device=rng.device)
        return Batch(tokens, targets, {"step": step})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        first = 2 * self.edges + 3
        for row, sequence in enumerate(tokens.tolist()):
            if len(sequence) <= first:
                continue
            near: dict[int, list[int]] = {}
            for a, b in zip(sequence[: 2 * self.edges : 2], sequence[1 : 2 * self.edges : 2], strict=True):
                near.setdefault(a, []).append(b)
                near.setdefault(b, []).append(a)
            centre, end = sequence[first - 2 : first]
            back = [end]
            while back[-1] != centre:  # the way to the centre is the only one that does not turn round
                (onward,) = set(near[back[-1]]) - set(back[-2:-1])
                back.append(onward)
            path = back[1:] if self.backwards else back[-2::-1]
            for time in range(first, len(sequence)):
                answers[row, time] = path[time - first]
        return answers
