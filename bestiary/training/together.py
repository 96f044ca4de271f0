"""Many recipes of one shape trained as one program: the same measurements as one after another, in less time.

Recipes that differ in rate, weight decay and seed alone build models of the same shape. Their weights are stacked,
`torch.func.vmap` runs the model over the stack, and AdamW works on all members at once, each with its own rate, decay
and gradient norm. Small models are bound by the number of operations, not by arithmetic, and the stack needs as many
operations as one of them. Members that have solved their task or whose loss is no longer a number leave the stack.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from bestiary.model import SEGMENT, Model
from bestiary.ops.capture import CapturedFunction, capture_graph
from bestiary.ops.readout import cross_entropy
from bestiary.spec import Spec
from bestiary.tasks._task import SILENT, Batch, concatenate, stream
from bestiary.training.recipe import Recipe
from bestiary.training.train import (
    Answers,
    Diverged,
    Measurement,
    accuracy,
    batches,
    decayed,
    rate,
    scores,
)

Seen = Measurement | Diverged | Model


class Apart(Exception):
    """These recipes cannot be trained as one; one after another they can."""


def train_together(
    recipes: Sequence[Recipe], models: Sequence[Model] | None = None, *, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Seen]]:
    """What `train` yields for each recipe, with its place in `recipes`; the last of each is its model or Diverged.

    Raises Apart if the recipes are not of one shape or a part of the model knows no `torch.func.vmap`.
    """
    if len({recipe.company for recipe in recipes}) != 1:
        raise Apart("these recipes differ in more than rate, weight decay and seed")
    built = [recipe.build() for recipe in recipes] if models is None else models
    group = Group(recipes, [model.to(device) for model in built])
    first, sums, step = recipes[0], torch.zeros(len(recipes), 3, dtype=torch.float64, device=device), 0
    for step, batch in enumerate(shared_batches(group), start=1):
        sums += group.update(batch, step)
        if step % first.every and step != first.steps:
            continue
        leaving = []
        for place, (member, (loss, right, asked)) in enumerate(zip(group.members, sums.tolist(), strict=True)):
            yield member, Measurement(step, "train", -1, "", 0, loss, int(right), int(asked))
            if not math.isfinite(loss):
                yield member, Diverged(f"the loss is {loss} at step {step}")
                leaving.append(place)
        sums = group.without(leaving, sums).zero_()
        seen = group.score(first.select or first.test, first.steer, first.selection_rows)
        for place, looks in enumerate(seen):
            yield from ((group.members[place], x._replace(step=step, split="selection")) for x in looks if not x.facet)
        leaving = [
            place for place, looks in enumerate(seen) if first.stop is not None and accuracy(looks) >= first.stop
        ]
        if leaving and step < first.steps:
            yield from last_words(group.only(leaving), step)
            sums = group.without(leaving, sums)
        if not group.members:
            return
    yield from last_words(group, step)


def last_words(group: "Group", step: int) -> Iterator[tuple[int, Seen]]:
    """The test of each member, and its model."""
    if not group.members:
        return
    first = group.recipes[0]
    for place, looks in enumerate(group.score(first.test, "test", first.test_rows)):
        yield from ((group.members[place], look._replace(step=step)) for look in looks)
        yield group.members[place], group.model(place)


def shared_batches(group: "Group") -> Iterator["Shared"]:
    """The batches of all members; members of one seed share theirs."""
    streams = {recipe.seed: batches(recipe) for recipe in group.recipes}
    for _ in range(group.recipes[0].steps):
        seeds = [recipe.seed for recipe in group.recipes]
        drawn = {seed: next(streams[seed]) for seed in dict.fromkeys(seeds)}
        yield shared(list(drawn.values()), [list(drawn).index(seed) for seed in seeds])


class Shared(NamedTuple):
    """A batch for each member: (members, batch, ...)."""

    tokens: Tensor
    where: Tensor
    targets: Tensor  # at `where`


def shared(drawn: Sequence[Batch], whose: Sequence[int]) -> Shared:
    """The drawn batches with a new first axis, where member i has batch `whose[i]`."""
    plain = concatenate([batch._replace(facets={}, truth={}) for batch in drawn])
    where = plain.question_positions()
    parts = (plain.tokens, where, plain.targets.gather(1, where))
    return Shared(*(x.unflatten(0, (len(drawn), -1))[list(whose)] for x in parts))


class Group:
    """The members still at work: their stacked weights and what AdamW remembers."""

    def __init__(self, recipes: Sequence[Recipe], models: Sequence[Model]) -> None:
        self.members, self.recipes, self.shell = list(range(len(recipes))), list(recipes), Hidden(models[0])
        weights, self.buffers = stack_module_state([Hidden(model) for model in models])  # pyright: ignore[reportArgumentType]
        self.weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
        self.decayed = decayed(recipes[0], self.shell)
        self.randomness = "same" if len({recipe.seed for recipe in recipes}) == 1 else "error"
        self.adam, self.step = self.ready(sum(w[0].numel() for w in self.weights.values()), {})

    @property
    def like(self) -> Tensor:
        return next(iter(self.weights.values()))

    def ready(self, size: int, state: dict[str, Tensor]) -> tuple[torch.optim.AdamW, Callable[..., Tensor]]:
        """AdamW on a change of so many numbers for each member, and the step, captured where that is possible."""
        change, cuda = nn.Parameter(self.like.new_zeros(len(self.members), size)), self.like.is_cuda
        adam = torch.optim.AdamW([change], lr=1.0, weight_decay=0.0, fused=True, capturable=cuda)
        adam._warned_capturable_if_run_uncaptured = True  # pyright: ignore[reportAttributeAccessIssue]  # as at first
        if state:
            adam.state[change] = state
        return adam, CapturedFunction(
            self.descent, partial(capture_graph, device=self.like.device)
        ) if cuda else self.descent

    def update(self, batch: Shared, step: int) -> Tensor:
        """One step of gradient descent for every member; loss, right and asked of each, left on the device."""
        like = self.like
        rates = [rate(recipe, step) for recipe in self.recipes]
        keep = [1 - r * recipe.weight_decay for r, recipe in zip(rates, self.recipes, strict=True)]
        counts = (batch.targets != SILENT).flatten(1).sum(1)
        given = *batch, counts, torch.tensor([rates, keep], dtype=like.dtype)
        self.shell.train()
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            torch.manual_seed(stream("dropout", self.recipes[0].seed, step).initial_seed())
            return self.step(*(x.to(like.device, non_blocking=True) for x in given))

    def descent(self, tokens: Tensor, where: Tensor, targets: Tensor, counts: Tensor, pace: Tensor) -> Tensor:
        """`update` on the device; `pace` is the learning rate of each member, and what weight decay leaves."""
        hidden = self.hidden(tokens, where)
        loss, right = cross_entropy(hidden.flatten(1, 2), self.weights["model.embed.weight"], targets.flatten(1))
        grads = torch.autograd.grad((loss / counts).sum(), list(self.weights.values()), allow_unused=True)
        self.descend(grads, *pace)
        return torch.stack([loss.detach().double(), right.double(), counts.double()], dim=1)

    @torch.no_grad()
    def descend(self, grads: Sequence[Tensor | None], rates: Tensor, keep: Tensor) -> None:
        """AdamW, where the step of Adam itself is one tensor for all weights of all members."""
        (change,) = self.adam.param_groups[0]["params"]
        weights = list(self.weights.values())
        flat = [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)]
        change.grad = torch.cat([g.flatten(1) for g in flat], dim=1)
        if (clip := self.recipes[0].clip) is not None:
            change.grad *= (clip / (change.grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        change.zero_()
        self.adam.step()
        parts = change.split([w[0].numel() for w in weights], dim=1)
        for (name, w), part, grad in zip(self.weights.items(), parts, grads, strict=True):
            shape = (-1, *(1 for _ in w.shape[1:]))
            if name in self.decayed and grad is not None:
                w.mul_(keep.view(shape))
            w.addcmul_(part.view_as(w), rates.view(shape))

    def hidden(self, tokens: Tensor, where: Tensor) -> Tensor:
        """What the head reads: (members, batch, asked, dim)."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], tokens: Tensor, where: Tensor) -> Tensor:
            return functional_call(self.shell, (weights, buffers), (tokens, where))

        try:
            return vmap(one, randomness=self.randomness)(self.weights, self.buffers, tokens, where)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as fault:
            if self.like.is_cuda and torch.cuda.is_current_stream_capturing():
                raise  # then it is called as it is
            raise Apart(str(fault).splitlines()[0].partition(". ")[0]) from fault

    @torch.no_grad()
    def score(self, tasks: Sequence[Spec], name: str, rows: int) -> list[list[Measurement]]:
        """`training.score` of each member."""
        self.shell.eval()
        many = {"models": max(1, len(self.members)), "device": self.like.device}
        seen = list(scores(self.answers, tasks, name, rows, **many)) if self.members else []
        return [[looks[place] for looks in seen] for place in range(len(self.members))]

    def answers(self, batch: Batch) -> list[Answers]:
        """Logits and targets of each member."""
        if batch.targets.shape[1] > SEGMENT:
            return [self.model(place).answer(batch) for place in range(len(self.members))]
        where, count = batch.question_positions(), len(self.members)
        hidden = self.hidden(batch.tokens.expand(count, *batch.tokens.shape), where.expand(count, *where.shape))
        targets = batch.targets.gather(1, where)
        asked = targets != SILENT
        heads = self.weights["model.embed.weight"]
        return [(x[asked] @ head.T, targets[asked]) for x, head in zip(hidden, heads, strict=True)]

    def model(self, place: int) -> Model:
        """One member's model, with its weights as they are."""
        made = self.recipes[place].build().to(self.like)
        state = {name.removeprefix("model."): x[place] for name, x in (self.weights | self.buffers).items()}
        made.load_state_dict({name: state[name] for name in made.state_dict()})
        return made.eval()

    def only(self, places: Sequence[int]) -> "Group":
        """A group of these members, to be scored."""
        part = object.__new__(Group)
        part.__dict__.update(self.__dict__)
        part.members, part.recipes = ([x[p] for p in places] for x in (self.members, self.recipes))
        part.weights, part.buffers = (
            {n: x[list(places)].detach() for n, x in d.items()} for d in (self.weights, self.buffers)
        )
        return part

    def without(self, places: Sequence[int], sums: Tensor) -> Tensor:
        """Let these members leave; the rows of `sums` that stay."""
        if not places:
            return sums
        stay = [place for place in range(len(self.members)) if place not in places]
        part = self.only(stay)
        (change,) = self.adam.param_groups[0]["params"]
        state = self.adam.state[change]
        self.members, self.recipes, self.buffers = part.members, part.recipes, part.buffers
        self.weights = {name: w.requires_grad_() for name, w in part.weights.items()}
        kept = {name: x if name == "step" else x[stay] for name, x in state.items()}
        self.adam, self.step = self.ready(change.shape[1], kept)
        return sums[stay]


class Hidden(nn.Module):
    """A model whose call is what its head reads, so that `functional_call` reaches it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, where: Tensor) -> Tensor:
        return self.model.hidden(tokens, where)
