"""Train many recipes of one shape as one program, with the same measurements as one after another, in less time.

Recipes that differ only in rate, weight decay and seed build models of the same shape. Their weights are stacked,
`torch.func.vmap` runs the model over the stack, and AdamW works on all members at once, each with its own rate, decay
and gradient norm. Small models are limited by the number of operations, not by arithmetic, and a stack needs as many
operations as one model. Members that have solved their task or whose loss is no longer finite leave the stack.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from bestiary.model import SEGMENT, Model
from bestiary.ops.capture import CapturedFunction, capture_graph
from bestiary.ops.precision import exact, upcast
from bestiary.ops.readout import cross_entropy
from bestiary.spec import Spec
from bestiary.tasks._task import SILENT, Batch, concatenate, stream
from bestiary.training.health import probe, stacked_signs, start_signs
from bestiary.training.recipe import Recipe
from bestiary.training.train import (
    PRODUCTS,
    Answers,
    Diverged,
    Measurement,
    accuracy,
    autocast,
    batches,
    decayed_weights,
    final_scores,
    learning_rate,
    score_models,
)

Progress = Measurement | Diverged | Model
MemberStates = Callable[[], Iterator[tuple[int, dict[str, Tensor]]]]  # the tensors of each member's state, by its index
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class CannotStack(Exception):
    """These recipes cannot be trained as one stack, only one after another."""


def train_together(
    recipes: Sequence[Recipe],
    models: Sequence[Model] | None = None,
    *,
    device: torch.device | str = "cpu",
    saved: Sequence[Mapping[str, Tensor]] | None = None,
    after_step: Callable[[MemberStates], None] = lambda _: None,
) -> Iterator[tuple[int, Progress]]:
    """What `train` yields for each recipe, with the recipe's index. The last item of each is its model, or Diverged.

    `after_step` is called with a function that gives the states of the members, once a step is over and measured. They
    are those of `train`, so a member can go on in a stack or alone. With `saved`, the states of all recipes after the
    same step, training goes on after it.

    Raises CannotStack if the recipes differ in shape, or if a part of the model does not work under `torch.func.vmap`.
    """
    if len({recipe.stack_key for recipe in recipes}) != 1:
        raise CannotStack("these recipes differ in more than rate, weight decay and seed")
    built = [recipe.build() for recipe in recipes] if models is None else models
    stack, first = Stack(recipes, [model.to(device) for model in built]), recipes[0]
    sums, start = exact(torch.zeros(len(recipes), 3, device=device)), 0
    if saved is not None:
        sums, start = stack.load(saved), int(saved[0]["step"])
    step = start
    for step, batch in enumerate(stacked_batches(stack, start=start), start=start + 1):
        sums += stack.update(batch, step)
        if step % first.every and step != first.steps:
            after_step(partial(member_states, stack, sums, step))
            continue
        leaving, health = [], stack.health_signs(step)
        for place, (member, (loss, right, asked)) in enumerate(zip(stack.members, sums.tolist(), strict=True)):
            signs = health[place] if math.isfinite(loss) else {}
            yield member, Measurement(step, "train", -1, "", 0, loss, int(right), int(asked), signs)
            if not math.isfinite(loss):
                yield member, Diverged(f"the loss is {loss} at step {step}")
                leaving.append(place)
        sums = stack.remove(leaving, sums).zero_()
        scored = stack.score(first.select or first.test, first.steer, first.selection_rows, mixed=True)
        for place, measurements in enumerate(scored):
            yield from (
                (stack.members[place], x._replace(step=step, split="selection")) for x in measurements if not x.facet
            )
        leaving = [
            place
            for place, measurements in enumerate(scored)
            if first.stop is not None and accuracy(measurements) >= first.stop
        ]
        if leaving and step < first.steps:
            yield from finish(stack.subset(leaving), step)
            sums = stack.remove(leaving, sums)
        if not stack.members:
            return
        after_step(partial(member_states, stack, sums, step))
    yield from finish(stack, step)


def member_states(stack: "Stack", sums: Tensor, step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The state of each member after a step."""
    for place, member in enumerate(stack.members):
        yield member, stack.state(place, sums[place], step)


def finish(stack: "Stack", step: int) -> Iterator[tuple[int, Progress]]:
    """The test measurements of each member, and then its model; or Diverged."""
    if not stack.members:
        return
    first = stack.recipes[0]
    for place, measurements in enumerate(stack.score(first.test, "test", first.test_rows)):
        try:
            scored = final_scores(measurements, step)
        except Diverged as diverged:
            yield stack.members[place], diverged
            continue
        yield from ((stack.members[place], x) for x in scored)
        yield stack.members[place], stack.model(place)


def stacked_batches(stack: "Stack", *, start: int = 0) -> Iterator["StackedBatch"]:
    """The batches of all members, without the first `start`; members with the same seed share them."""
    streams = {recipe.seed: batches(recipe, start=start) for recipe in stack.recipes}
    for _ in range(start, stack.recipes[0].steps):
        seeds = [recipe.seed for recipe in stack.recipes]
        drawn = {seed: next(streams[seed]) for seed in dict.fromkeys(seeds)}
        yield stack_batches(list(drawn.values()), [list(drawn).index(seed) for seed in seeds])


class StackedBatch(NamedTuple):
    """A batch for each member: (members, batch, ...)."""

    tokens: Tensor
    where: Tensor
    targets: Tensor  # at `where`


def stack_batches(drawn: Sequence[Batch], whose: Sequence[int]) -> StackedBatch:
    """The batches with a new first axis: member i gets batch `whose[i]`."""
    plain = concatenate([batch._replace(facets={}, truth={}) for batch in drawn])
    where = plain.question_positions()
    parts = (plain.tokens, where, plain.targets.gather(1, where))
    return StackedBatch(*(x.unflatten(0, (len(drawn), -1))[list(whose)] for x in parts))


class Stack:
    """The members that are still training: their stacked weights, and the state of AdamW."""

    def __init__(self, recipes: Sequence[Recipe], models: Sequence[Model]) -> None:
        if not all(weight.requires_grad for model in models for weight in model.parameters()):
            raise CannotStack("some of its weights are frozen")
        self.members, self.recipes, self.shell = list(range(len(recipes))), list(recipes), HiddenStates(models[0])
        weights, self.buffers = stack_module_state([HiddenStates(model) for model in models])  # pyright: ignore[reportArgumentType]
        self.weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
        self.begun = {name: w.detach().clone() for name, w in self.weights.items()}
        self.decayed = decayed_weights(recipes[0], self.shell)
        self.randomness = "same" if len({recipe.seed for recipe in recipes}) == 1 else "error"
        self.adam, self.step = self.make_optimizer(sum(w[0].numel() for w in self.weights.values()), {})

    @property
    def first_weight(self) -> Tensor:
        """One of the stacked weights, for their device and type."""
        return next(iter(self.weights.values()))

    def make_optimizer(self, size: int, state: dict[str, Tensor]) -> tuple[torch.optim.AdamW, Callable[..., Tensor]]:
        """AdamW on `size` numbers for each member, and the step function, a CUDA graph where that is possible."""
        change, cuda = nn.Parameter(self.first_weight.new_zeros(len(self.members), size)), self.first_weight.is_cuda
        adam = torch.optim.AdamW(
            [change], lr=1.0, betas=self.recipes[0].betas, weight_decay=0.0, fused=True, capturable=cuda
        )
        adam._warned_capturable_if_run_uncaptured = True  # pyright: ignore[reportAttributeAccessIssue]
        if state:
            adam.state[change] = state
        return adam, CapturedFunction(
            self.gradient_step, partial(capture_graph, device=self.first_weight.device)
        ) if cuda else self.gradient_step

    def update(self, batch: StackedBatch, step: int) -> Tensor:
        """One step of gradient descent for every member. Returns (members, 3): loss, right and asked, on the device."""
        like = self.first_weight
        rates = [learning_rate(recipe, step) for recipe in self.recipes]
        keep = [1 - r * recipe.weight_decay for r, recipe in zip(rates, self.recipes, strict=True)]
        counts = (batch.targets != SILENT).flatten(1).sum(1)
        given = *batch, counts, torch.tensor([rates, keep], dtype=like.dtype)
        self.shell.train()
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            torch.manual_seed(stream("dropout", self.recipes[0].seed, step).initial_seed())
            return self.step(*(x.to(like.device, non_blocking=True) for x in given))

    def gradient_step(self, tokens: Tensor, where: Tensor, targets: Tensor, counts: Tensor, pace: Tensor) -> Tensor:
        """`update` on the device. `pace` holds each member's learning rate, and the factor that weight decay leaves."""
        first = self.recipes[0]
        with autocast(first, tokens.device):
            hidden = self.hidden(tokens, where)
        heads, products = self.weights["model.embed.weight"], PRODUCTS[first.precision]
        loss, right = cross_entropy(upcast(hidden).flatten(1, 2), heads, targets.flatten(1), dtype=products)
        grads = torch.autograd.grad((loss / counts).sum(), list(self.weights.values()), allow_unused=True)
        self.adam_step(grads, *pace)
        return torch.stack([exact(x) for x in (loss.detach(), right, counts)], dim=1)

    @torch.no_grad()
    def adam_step(self, grads: Sequence[Tensor | None], rates: Tensor, keep: Tensor) -> None:
        """One step of AdamW. Adam itself works on one tensor that holds all weights of all members."""
        (change,) = self.adam.param_groups[0]["params"]
        weights = list(self.weights.values())
        flat = [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)]
        change.grad = torch.cat([g.reshape(len(g), -1) for g in flat], dim=1)
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
        """The hidden states that the output layer reads: (members, batch, asked, dim)."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], tokens: Tensor, where: Tensor) -> Tensor:
            numbers = weights | buffers  # in which a pass leaves what it replaces
            found = functional_call(self.shell, numbers, (tokens, where))
            if lost := [bare(name) for name, buffer in buffers.items() if numbers[name] is not buffer]:
                raise CannotStack(f"a pass replaces the buffer {lost[0]}")
            return found

        try:
            return vmap(one, randomness=self.randomness)(self.weights, self.buffers, tokens, where)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as fault:
            if self.first_weight.is_cuda and torch.cuda.is_current_stream_capturing():
                raise  # `Captured` then calls the step without a graph
            raise CannotStack(str(fault).splitlines()[0].partition(". ")[0]) from fault

    @torch.no_grad()
    def health_signs(self, step: int) -> list[dict[str, float]]:
        """The signs of each member, as `train.health_signs` gives them."""
        first, device = self.recipes[0], self.first_weight.device
        (change,) = self.adam.param_groups[0]["params"]
        gradients = change.grad.split([w[0].numel() for w in self.weights.values()], dim=1)
        names = [bare(name) for name in self.weights]
        signs = stacked_signs(names, gradients, list(self.weights.values()), list(self.begun.values()))
        if step == min(first.every, first.steps):
            for place, recipe in enumerate(self.recipes):
                begun = {bare(name): weight[place] for name, weight in self.begun.items()}
                signs[place] |= start_signs(begun) | probe(recipe, self.model(place), device=device)
        return signs

    @torch.no_grad()
    def score(self, tasks: Sequence[Spec], name: str, rows: int, *, mixed: bool = False) -> list[list[Measurement]]:
        """The measurements of each member, as `train.score` yields them."""
        self.shell.eval()
        options = {"models": max(1, len(self.members)), "device": self.first_weight.device, "mixed": mixed}
        scored = list(score_models(self.answers, tasks, name, rows, **options)) if self.members else []
        return [[measurements[place] for measurements in scored] for place in range(len(self.members))]

    def answers(self, batch: Batch) -> list[Answers]:
        """Logits and targets of each member, at the asked positions."""
        if batch.targets.shape[1] > SEGMENT:
            return [self.model(place).answer(batch) for place in range(len(self.members))]
        where, count = batch.question_positions(), len(self.members)
        hidden = self.hidden(batch.tokens.expand(count, *batch.tokens.shape), where.expand(count, *where.shape))
        targets = batch.targets.gather(1, where)
        asked = targets != SILENT
        heads = self.weights["model.embed.weight"]
        return [(x[asked] @ head.T, targets[asked]) for x, head in zip(hidden, heads, strict=True)]

    def model(self, place: int) -> Model:
        """The model of one member, with its current weights."""
        model = self.recipes[place].build().to(self.first_weight)
        state = {bare(name): x[place] for name, x in (self.weights | self.buffers).items()}
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        return model.eval()

    def state(self, place: int, sums: Tensor, step: int) -> dict[str, Tensor]:
        """The state of one member, with the names that `TrainingState` gives to its tensors."""
        found = {"step": torch.tensor(step), "sums": sums}
        numbers = self.weights | self.buffers
        found |= {f"model/{bare(name)}": numbers[name][place].detach() for name in self.shell.state_dict()}
        (change,) = self.adam.param_groups[0]["params"]
        for slot, tensor in self.adam.state[change].items():
            parts = [tensor] * len(self.weights) if slot == "step" else self.split(tensor[place])
            found |= {f"optimizer/{bare(name)}/{slot}": x for name, x in zip(self.weights, parts, strict=True)}
        return found

    def split(self, numbers: Tensor) -> list[Tensor]:
        """The part of each weight in what holds one number for each number of a member's weights."""
        parts = numbers.split([w[0].numel() for w in self.weights.values()])
        return [part.view_as(w[0]) for part, w in zip(parts, self.weights.values(), strict=True)]

    @torch.no_grad()
    def load(self, saved: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Take over the states of all members, which are those after one step. Returns their sums."""
        device = self.first_weight.device
        for name, stacked in (self.weights | self.buffers).items():
            if f"model/{bare(name)}" in saved[0]:  # what a model can compute is not stored
                stacked.copy_(torch.stack([state[f"model/{bare(name)}"] for state in saved]))
        state = {slot: torch.stack([self.join(one, slot) for one in saved]).to(device) for slot in MOMENTS}
        steps = (one for name, one in saved[0].items() if name.startswith("optimizer/") and name.endswith("/step"))
        state["step"] = next(steps).clone().to(device)
        self.adam, self.step = self.make_optimizer(state[MOMENTS[0]].shape[1], state)
        return torch.stack([one["sums"] for one in saved]).to(device)

    def join(self, state: Mapping[str, Tensor], slot: str) -> Tensor:
        """What the state of one member holds of all its weights, in one row."""
        named = ((f"optimizer/{bare(name)}/{slot}", w[0]) for name, w in self.weights.items())
        return torch.cat([state.get(name, torch.zeros_like(w, device="cpu")).flatten() for name, w in named])

    def subset(self, places: Sequence[int]) -> "Stack":
        """A stack of these members, for scoring."""
        part = object.__new__(Stack)
        part.__dict__.update(self.__dict__)
        part.members, part.recipes = ([x[p] for p in places] for x in (self.members, self.recipes))
        part.weights, part.buffers, part.begun = (
            {n: x[list(places)].detach() for n, x in d.items()} for d in (self.weights, self.buffers, self.begun)
        )
        return part

    def remove(self, places: Sequence[int], sums: Tensor) -> Tensor:
        """Remove these members. Returns the rows of `sums` of those that stay."""
        if not places:
            return sums
        stay = [place for place in range(len(self.members)) if place not in places]
        part = self.subset(stay)
        (change,) = self.adam.param_groups[0]["params"]
        state = self.adam.state[change]
        self.members, self.recipes, self.buffers, self.begun = part.members, part.recipes, part.buffers, part.begun
        self.weights = {name: w.requires_grad_() for name, w in part.weights.items()}
        kept = {name: x if name == "step" else x[stay] for name, x in state.items()}
        self.adam, self.step = self.make_optimizer(change.shape[1], kept)
        return sums[stay]


def bare(name: str) -> str:
    """The name of a weight in the model, without that of the shell around it."""
    return name.removeprefix("model.")


class HiddenStates(nn.Module):
    """A model whose `forward` gives its hidden states, so that `functional_call` can be used."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, where: Tensor) -> Tensor:
        return self.model.hidden(tokens, where)
