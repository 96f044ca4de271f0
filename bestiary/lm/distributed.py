"""Training in several processes, as torchrun starts them: with copies of the model (DDP) or shards of it (FSDP2)."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from bestiary.lm.pretraining import Parallel
from bestiary.model import Model
from bestiary.training.train import find_device

OPENED: list[Any] = []  # the process groups of this process, kept until it ends: see `training_group`


class TrainingGroup:
    """The processes that train one model together; a single process is a group too."""

    def __init__(self, device: torch.device, parallel: Parallel = "none", *, rank: int = 0, size: int = 1) -> None:
        self.device, self.parallel, self.rank, self.size = device, parallel, rank, size

    def wrap(self, objective: nn.Module, model: Model) -> nn.Module:
        """The objective with its gradients synchronised, and under "fsdp" its weights and those of `model` sharded."""
        if self.parallel == "ddp":
            devices = [self.device] if self.device.type == "cuda" else None
            return DistributedDataParallel(objective, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
        if self.parallel == "fsdp":
            mesh = init_device_mesh(self.device.type, (self.size,))
            for layer in model.layers:
                fully_shard(layer, mesh=mesh)
                register_fsdp_forward_method(layer, "parallel")
            fully_shard(objective, mesh=mesh, reshard_after_forward=False)
        return objective

    def no_sync(self, objective: nn.Module) -> AbstractContextManager[Any]:
        """A context in which gradients are added up locally and not yet synchronised."""
        return objective.no_sync() if isinstance(objective, DistributedDataParallel) else nullcontext()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        x = x.clone()
        if self.parallel != "none":
            distributed.all_reduce(x)
        return x

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        values = [value]
        if self.parallel != "none":
            distributed.broadcast_object_list(values, device=self.device)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in all of them."""
        values = [value]
        if self.parallel != "none":
            values = [None] * self.size
            distributed.all_gather_object(values, value)
        return values

    def full_weights(self, model: nn.Module) -> dict[str, Any]:
        """All weights of the model, on the CPU; complete in the first process only."""
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


@contextmanager
def training_group(parallel: Parallel, device: str) -> Iterator[TrainingGroup]:
    """The group of processes in which torchrun has started this one, or this process alone. Raises ValueError.

    A model under DDP must not be the last owner of its process group: it would wait for the group's threads without
    letting go of the interpreter, for which such a thread may be waiting to free a tensor. So the group is kept.
    """
    if parallel == "none":
        yield TrainingGroup(find_device(device))
        return
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]:
        raise ValueError(f"parallel={parallel!r} needs processes started by torchrun: {missing} are not set")
    local = find_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device)
    if local.type == "cuda":
        torch.cuda.set_device(local)
    started_here = not distributed.is_initialized()
    if started_here:
        distributed.init_process_group("nccl" if local.type == "cuda" else "gloo")
        OPENED.append(distributed.group.WORLD)
    try:
        yield TrainingGroup(local, parallel, rank=distributed.get_rank(), size=distributed.get_world_size())
    finally:
        if started_here:
            distributed.destroy_process_group()
