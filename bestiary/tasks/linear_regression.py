"""Linear regression in context (Garg et al., 2022, section 3), with the answer in bins."""

from statistics import NormalDist
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._layout import add_filler
from bestiary.tasks._task import SILENT, Batch, Task


class LinearRegression(Task):
    """Read points and their values under a linear function that is new in each row, then tell the value of a point.

        vectors  x1 y1 x2 y2 ... xk yk xk+1 yk+1 xk+2 ...      (k = dim; y = w . x, w of length 1)
        targets   .  .  .  . ...  .  .    b    .    b ...      (b: the bin of the value of this point)

    Points are normal with unit variance in `dim` dimensions and w is uniform on the unit sphere. A value stands in
    the first entry of a vector whose others are 0. Values are standard normal whatever w is, and the answers are
    `bins` intervals of equal probability, 0 the lowest.

    `scored="certain"` asks about points after the first `dim`, for which least squares gives the value without error;
    "all" asks about every point, and `solve` knows no answer to the first `dim`.

    Facet: `examples` (how many values were shown). `bins_off` is the distance from the right bin.

    Departs from the paper: the answer is a bin and not a number, as in prior-data fitted networks (Müller et al.,
    2022), so that accuracy means something; w has length 1, and is not normal, so that no bin is likelier for any w.
    The default is smaller, for a laptop; the paper's size is a preset.
    """

    family: ClassVar = "in-context rules"
    variants: ClassVar = ("dim=1, points=9, bins=4", "dim=3, points=10", "dim=8, points=12, bins=32", "scored='all'")
    presets: ClassVar = {"paper": "dim=20, points=41"}
    axes: ClassVar = {"dim": (1, 2, 4, 8), "bins": (4, 8, 16, 32)}

    def __init__(
        self,
        *,
        dim: Positive = 4,
        points: Positive = 17,
        bins: Positive = 16,
        scored: Literal["certain", "all"] = "certain",
    ) -> None:
        if points <= dim:
            raise ValueError(f"linear_regression(points={points}): {dim} dimensions need {dim + 1} points")
        if bins < 2:
            raise ValueError(f"linear_regression(bins={bins}): a question needs 2 bins")
        self.features, self.dim, self.points, self.scored = dim, dim, points, scored
        self.vocab, self.length = bins, 2 * points
        self.open = "" if scored == "certain" else f"fewer than {dim} points do not fix the function"
        self.chance = self.plateau = 1 / bins
        self.edges = [NormalDist().inv_cdf(i / bins) for i in range(1, bins)]

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        def draw(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=rng, device=rng.device, dtype=torch.float64)

        weight, x = draw(self.dim, 1), draw(self.points, self.dim).float()
        y = x.double() @ (weight / weight.norm(dim=1, keepdim=True))
        value = torch.cat([y, torch.zeros_like(x[:, :, 1:])], dim=2).float()
        bins = torch.bucketize(y[:, :, 0], torch.tensor(self.edges, device=rng.device, dtype=torch.float64))
        if self.scored == "certain":
            bins[:, : self.dim] = SILENT
        targets = add_filler(bins, 0, 1, SILENT)
        shown = torch.arange(self.points, device=rng.device, dtype=torch.int32).repeat_interleave(2)
        return Batch(torch.stack([x, value], dim=2).flatten(1, 2), targets, {"examples": shown.expand_as(targets)})

    def extra_scores(
        self, batch: Batch, logits: Float[Tensor, "answers vocab"]
    ) -> dict[str, Float[Tensor, " answers"]]:
        return {"bins_off": (logits.argmax(1) - batch.targets[batch.targets != SILENT]).abs().float()}

    def solve(self, tokens: Float[Tensor, "batch time features"]) -> Int[Tensor, "batch time"]:
        answers = torch.full(tokens.shape[:2], SILENT, device=tokens.device)
        for row, sequence in enumerate(tokens.double().cpu().numpy()):
            for time in range(2 * self.dim, len(sequence), 2):
                points, values = sequence[:time:2], sequence[1:time:2, 0]
                weight = np.linalg.lstsq(points, values, rcond=None)[0]
                answers[row, time] = int(np.searchsorted(self.edges, sequence[time] @ weight))
        return answers
