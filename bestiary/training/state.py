"""The state of a model in training: what the steps to come depend on beside the recipe."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bestiary.ops.precision import exact
from bestiary.training.whole import AnyModel


class TrainingState:
    """A model and its optimizers after some steps, and the sums since the last measurement.

    The batch of a step and its dropout depend on the seed and the number of the step alone, so nothing else is needed
    to go on.
    """

    def __init__(self, model: AnyModel, *optimizers: torch.optim.Optimizer, device: torch.device | str) -> None:
        self.model, self.optimizers, self.device = model, optimizers, device
        self.step = 0
        self.sums = exact(torch.zeros(3, device=device))  # loss in nats, right answers, answers

    def tensors(self) -> dict[str, Tensor]:
        """The state by names: `step`, `sums`, `model/<weight>` and `optimizer/<weight>/<slot>`. Not copies."""
        named = dict(self.model.named_parameters())
        found = {"step": torch.tensor(self.step), "sums": self.sums}
        found |= {f"model/{name}": weight.detach() for name, weight in self.model.state_dict().items()}
        for optimizer in self.optimizers:
            for name, weight in named.items():
                slots = optimizer.state.get(weight, {})
                found |= {f"optimizer/{name}/{slot}": tensor for slot, tensor in slots.items()}
        return found

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take over the tensors of another state. Raises ValueError, changing nothing, if its model is another."""
        owner = {w: part for part in self.optimizers for group in part.param_groups for w in group["params"]}
        self.check(saved)
        self.model.load_state_dict({name: saved[f"model/{name}"] for name in self.model.state_dict()})
        for name, weight in self.model.named_parameters():
            slots = {}
            for slot in slot_names(saved, name):
                tensor = saved[f"optimizer/{name}/{slot}"]
                like = weight if tensor.shape == weight.shape else tensor
                slots[slot] = torch.empty_like(like, dtype=tensor.dtype, device=weight.device).copy_(tensor)
            if slots:
                owner[weight].state[weight] = slots
        self.step = int(saved["step"])
        self.sums.copy_(saved["sums"])

    def check(self, saved: Mapping[str, Tensor]) -> None:
        """Raises ValueError unless the tensors are those of a state of this model."""
        weights = dict(self.model.named_parameters())
        expected = {f"model/{name}": weight for name, weight in self.model.state_dict().items()}
        expected |= {"step": torch.tensor(0), "sums": self.sums}
        for name, tensor in expected.items():
            if name not in saved or (saved[name].shape, saved[name].dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(f"it is the state of another model: its {name} is {describe(saved.get(name))}")
        for name in saved.keys() - expected.keys():
            weight = weights.get(name.removeprefix("optimizer/").rpartition("/")[0])
            if not name.startswith("optimizer/") or weight is None or not fits(saved[name], weight):
                raise ValueError(f"it is the state of another model: its {name} is {describe(saved[name])}")


def fits(slot: Tensor, weight: Tensor) -> bool:
    """Whether an optimizer may keep this of a weight: a number, as much as the weight, or its rows or columns."""
    sizes = list(zip(slot.shape, weight.shape, strict=False))
    return slot.ndim in (0, weight.ndim) and all(size in (1, whole) for size, whole in sizes)


def slot_names(saved: Mapping[str, Tensor], weight: str) -> list[str]:
    """What a state holds of the optimizer for one weight."""
    start = f"optimizer/{weight}/"
    return [name.removeprefix(start) for name in saved if name.startswith(start)]


def describe(tensor: Tensor | None) -> str:
    """Shape and type of a tensor in a few words."""
    return "missing" if tensor is None else f"{list(tensor.shape)} of {tensor.dtype}"
