"""What a task is: a seeded source of sequences with questions in them."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bestiary.spec import nearest

SILENT = -100  # the target where nothing is asked
LARGE_SPACE = 2.0**40  # with this many sequences, independent streams practically never share a row
TRAINING = range(2, 8)
SPLIT_EIGHTHS = {  # of the rows of a smaller space: what falls to each split
    "test": (0,),
    "selection": (1,),
    **dict.fromkeys(("train", "laws", "show"), TRAINING),
}

Scored = Literal["answer", "all"]  # what is scored in a sequence: its answers, or each next token
OPEN_REASONS: dict[Scored, str] = {"answer": "", "all": "with scored='all', which token comes next is not always known"}

Tokens = Int[Tensor, "batch time"] | Float[Tensor, "batch time features"]


class Batch(NamedTuple):
    """Predict `targets` from `tokens` wherever a target is not SILENT; `facets` say what was asked there.

    `truth` is what the scorer knows and the model does not (such as the legal moves), with one entry for each row.
    """

    tokens: Tokens
    targets: Int[Tensor, "batch time"]
    facets: dict[str, Int[Tensor, "batch time"]]
    truth: dict[str, Tensor] = {}

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return self.map(lambda x: x.to(device))

    def rows(self, chosen: slice | Tensor) -> "Batch":
        """The batch with only the chosen rows."""
        return self.map(lambda x: x[chosen])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with each of its tensors changed."""
        tokens, targets = change(self.tokens), change(self.targets)
        facets, truth = ({name: change(x) for name, x in part.items()} for part in (self.facets, self.truth))
        return Batch(tokens, targets, facets, truth)

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch, in a fixed order."""
        return [self.tokens, self.targets, *self.facets.values(), *self.truth.values()]

    def arrays(self) -> dict[str, np.ndarray]:
        """NumPy arrays by name, for JAX and other libraries: `tokens`, `targets`, `facet_...` and `truth_...`."""
        named = {"tokens": self.tokens, "targets": self.targets}
        named |= {f"facet_{name}": x for name, x in self.facets.items()}
        named |= {f"truth_{name}": x for name, x in self.truth.items()}
        return {name: x.cpu().numpy() for name, x in named.items()}

    def question_positions(self) -> Int[Tensor, "batch asked"]:
        """The positions of the questions of each row, in order; rows with fewer are padded with others."""
        silent = self.targets == SILENT
        most = int((~silent).sum(1).max()) if silent.numel() else 0
        return silent.byte().argsort(dim=1, stable=True)[:, :most]


class Task(ABC):
    """A distribution over sequences, with an exact solver and the scores that need no recall.

    A subclass takes keyword options, each with a type and a default, checks them in its constructor, and sets:

    - `vocab`: the number of tokens,
    - `length`: of a sequence, in tokens,
    - `chance`: the accuracy of the best single answer to everything, given without reading,
    - `plateau`: the accuracy of the best guess that knows which answers occur in the sequence but not which answer
      belongs to which question (`chance` where that means nothing; where a simple rule does better, its accuracy),
    - `space`: how many sequences there are, if fewer than LARGE_SPACE,
    - `open`: why `solve` cannot answer every question, if it cannot (OPEN_REASONS),
    - `features`: the width of the vectors, if the task reads vectors. Then `tokens` are real numbers; targets are
      still symbols,
    - `bottleneck`: whether everything is answered from the model's output at the last position alone.
    """

    family: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ()  # two or more sets of options under which the laws are checked
    presets: ClassVar[Mapping[str, str]] = {}  # named sets of options, as in papers: "mqar.mamba2" in a spec
    axes: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # values of an option, from easy to hard
    bottleneck: ClassVar[bool] = False

    vocab: int
    length: int
    chance: float
    plateau: float
    space: float = math.inf
    open: str = ""
    features: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A task written for version 0.1 may still call its `extra_scores` by the old name `further`."""
        super().__init_subclass__(**kwargs)
        if "further" in cls.__dict__ and "extra_scores" not in cls.__dict__:
            warnings.warn(f"{cls.__name__}.further is now called extra_scores", FutureWarning, stacklevel=2)
            cls.extra_scores = cls.__dict__["further"]

    @abstractmethod
    def sample(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` fresh sequences on the generator's device; a pure function of the generator's state."""

    @abstractmethod
    def solve(self, tokens: Tokens) -> Int[Tensor, "batch time"]:
        """The right answer at every position that may be a question, found by reading from the left in plain Python."""

    def right(self, batch: Batch, answers: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
        """Which answers are right. A task overrides this where several answers to a question are right."""
        return answers == batch.targets

    def extra_scores(
        self, batch: Batch, logits: Float[Tensor, "answers vocab"]
    ) -> dict[str, Float[Tensor, " answers"]]:
        """Further scores of each answer by name, from the logits at all questions, row by row."""
        del batch, logits
        return {}

    def draw(self, count: int, split: str, *path: str | int) -> Batch:
        """`count` rows of the stream (split, *path), none of which occurs in another split.

        Where there are few sequences, a hash assigns each to one split: an eighth to "selection", an eighth to "test",
        the rest to "train". Raises LookupError for a split that there is not, and ValueError if one has next to none.
        """
        if split not in SPLIT_EIGHTHS:
            raise LookupError(f"there is no split {split!r} {nearest(split, SPLIT_EIGHTHS)}")
        rng = stream(split, *path)
        if self.space >= LARGE_SPACE:
            return self.sample(count, rng)
        kept: list[Batch] = []
        for _ in range(100):
            batch = self.sample(count, rng)
            eighth = hash_rows(batch.tokens) % 8
            mine = [eighth == share for share in SPLIT_EIGHTHS[split]]
            kept.append(batch.rows(torch.stack(mine).any(0)))
            if sum(len(part.targets) for part in kept) >= count:
                return concatenate(kept).rows(slice(count))
        raise ValueError(f"of about {self.space:g} sequences hardly any falls to the {split} rows; make them longer")


def stream(*path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random generator of a name. Batch 7 of ("train", 0) is the same whatever was drawn before."""
    digest = sha256(repr(path).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def concatenate(parts: Sequence[Batch]) -> Batch:
    """The rows of several batches of one task as one batch."""
    columns = iter([torch.cat(column) for column in zip(*(part.tensors() for part in parts), strict=True)])
    return parts[0].map(lambda _: next(columns))


def hash_rows(rows: Tensor) -> Int[Tensor, " batch"]:
    """A number below 2^31 for each row that depends on the whole row and is the same on every machine."""
    rows = rows.flatten(1)
    digits = rows.float().view(torch.int32).long() if rows.is_floating_point() else rows.long()
    found = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for column in digits.unbind(1):
        found = (found ^ column) * 0x1E3779B97F4A7C15 - (found >> 29)
        found = found ^ (found >> 32)
    return (found >> 33) & 0x7FFFFFFF
