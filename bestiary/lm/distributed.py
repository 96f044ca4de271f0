"""Training in several processes, as torchrun starts them: with copies of the model (DDP) or shards of it (FSDP2).

The checkpoint of sharded training is one of torch.distributed.checkpoint, written by every process at once; any other
is a file of plain tensors. Each can be resumed by any number of processes, in any of the three ways. The first has an
index (`.metadata`) that torch keeps as a pickle: resume only from shards that your own processes wrote.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from bestiary.lm.pretraining import Parallel
from bestiary.model import Model
from bestiary.training.train import find_device

FULL = StateDictOptions(full_state_dict=True)


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

    def full_weights(self, model: nn.Module) -> dict[str, Any]:
        """All weights of the model, on the CPU; complete in the first process only."""
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        """Write weights and optimizer into a new folder, complete when this returns in the first process."""
        sharded = self.parallel == "fsdp"
        weights, moments = get_state_dict(model, optimizer, options=None if sharded else FULL)
        state = {"model": weights, "optimizer": moments}
        if sharded:
            save(state, checkpoint_id=folder)
        elif self.rank == 0:
            folder.mkdir()
            with (folder / "state.pt").open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        """Read weights and optimizer back from a folder, however many processes wrote it."""
        if (plain := folder / "state.pt").is_file():
            state, options = torch.load(plain, map_location="cpu", weights_only=True), FULL
        else:
            weights, moments = get_state_dict(model, optimizer)
            state, options = {"model": weights, "optimizer": moments}, None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it should be, alone
                load(state, checkpoint_id=folder)
        states = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(model, optimizer, **cast(Any, states), options=options)


@contextmanager
def training_group(parallel: Parallel, device: str) -> Iterator[TrainingGroup]:
    """The group of processes in which torchrun has started this one, or this process alone. Raises ValueError."""
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
    try:
        yield TrainingGroup(local, parallel, rank=distributed.get_rank(), size=distributed.get_world_size())
    finally:
        if started_here:
            distributed.destroy_process_group()
