"""Training in several processes, as torchrun starts them: copies of the model (DDP) or shares of it (FSDP2).

The checkpoint of shares is one of torch.distributed.checkpoint, written by every process at once, and any other is a
file of plain tensors. Each can be gone on with by any number of processes, in any of the three ways. The first has an
index (`.metadata`) that torch keeps as a pickle: go on only with shares that your own processes wrote.
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


class Team:
    """The processes that train one model together; one process alone is a team too."""

    def __init__(self, device: torch.device, parallel: Parallel = "none", *, rank: int = 0, size: int = 1) -> None:
        self.device, self.parallel, self.rank, self.size = device, parallel, rank, size

    def wrapped(self, objective: nn.Module, model: Model) -> nn.Module:
        """The objective, made to share its gradients, and under "fsdp" the weights of the model within it."""
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

    def quiet(self, objective: nn.Module) -> AbstractContextManager[Any]:
        """Within it gradients are summed here and not yet shared."""
        return objective.no_sync() if isinstance(objective, DistributedDataParallel) else nullcontext()

    def total(self, x: Tensor) -> Tensor:
        """The sum over all processes."""
        x = x.clone()
        if self.parallel != "none":
            distributed.all_reduce(x)
        return x

    def told(self, value: Any) -> Any:
        """What the first process says; the others wait for it."""
        said = [value]
        if self.parallel != "none":
            distributed.broadcast_object_list(said, device=self.device)
        return said[0]

    def weights(self, model: nn.Module) -> dict[str, Any]:
        """All of the model's weights; of use in the first process only."""
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        """Write weights and optimizer into a folder, which is there when this returns in the first process."""
        shares = self.parallel == "fsdp"
        weights, moments = get_state_dict(model, optimizer, options=None if shares else FULL)
        state = {"model": weights, "optimizer": moments}
        if shares:
            save(state, checkpoint_id=folder)
        elif self.rank == 0:
            folder.mkdir()
            with (folder / "state.pt").open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        """Take weights and optimizer back from a folder, however many processes wrote it."""
        if (plain := folder / "state.pt").is_file():
            state, options = torch.load(plain, map_location="cpu", weights_only=True), FULL
        else:
            weights, moments = get_state_dict(model, optimizer)
            state, options = {"model": weights, "optimizer": moments}, None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it should be, alone
                load(state, checkpoint_id=folder)
        given = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(model, optimizer, **cast(Any, given), options=options)


@contextmanager
def gathered(parallel: Parallel, device: str) -> Iterator[Team]:
    """The team that torchrun has started this process for, or this process alone."""
    if parallel == "none":
        yield Team(find_device(device))
        return
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]:
        raise ValueError(f"parallel={parallel!r} needs processes started by torchrun: {missing} are not set")
    place = find_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    ours = not distributed.is_initialized()
    if ours:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Team(place, parallel, rank=distributed.get_rank(), size=distributed.get_world_size())
    finally:
        if ours:
            distributed.destroy_process_group()
