"""What a stopped run resumes from: its weights and optimizer in safetensors files, which hold numbers and no code.

checkpoint/last.json                        the record: step, log, files and their digests; written last
           step-500/shard-0.safetensors     the tensors of process 0, whole or, of sharded ones, its rows

Any number of processes can resume from it, in any way of training in parallel.

Version 0.1 wrote `state.pt`, which is still read as plain tensors, and for sharded training a folder with the file
`.metadata`. The latter is a pickle, which can run code, so it is read only if the user says that it can be trusted.
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor

from bestiary.lm.distributed import TrainingGroup
from bestiary.runs.digests import check
from bestiary.runs.files import read_object, unseal
from bestiary.runs.resuming import RECORD, check_record
from bestiary.runs.tensors import disk_errors, write_tensors

OLD_FIELDS = {"step", "log", "sum"}  # of a record of version 0.1


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The record of a checkpoint, None if there is none; one of version 0.1 has no `files`. Raises ValueError."""
    path = folder / RECORD
    if not path.is_file():
        return None
    content = read_object(path)
    record = content if content.keys() == OLD_FIELDS else unseal(content, str(path))
    check_record(record, path)
    return record


def save_state(
    group: TrainingGroup, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path
) -> dict[str, str]:
    """Write weights and optimizer into a folder, each process its own part; the files with their digests."""
    sharded = group.parallel == "fsdp"
    written = {}
    if sharded or group.rank == 0:
        parts, rows = {}, {}
        for name, tensor in flatten(*get_state_dict(model, optimizer)).items():
            local, start = local_rows(tensor)
            if isinstance(tensor, DTensor):
                rows[name] = start
            elif group.rank > 0:
                continue  # equal in all processes
            parts[name] = local.detach().to("cpu", copy=True)
        name = f"shard-{group.rank}.safetensors"
        written = {name: write_tensors(folder / name, parts, {"rows": json.dumps(rows)})}
    return {name: digest for files in group.gather(written) for name, digest in files.items()}


def load_state(
    group: TrainingGroup,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    record: Mapping[str, Any],
    *,
    trust: bool = False,
) -> None:
    """Read weights and optimizer back, however many processes wrote them.

    Raises ValueError, naming the file, if one is damaged or would have to be unpickled and there is no `trust`.
    """
    if "files" not in record:
        load_old_state(model, optimizer, folder, trust=trust)
        return
    fault = next(filter(None, group.gather(check_files(folder, record["files"], group))), None)
    if fault:
        raise ValueError(fault)
    weights, moments = get_state_dict(model, optimizer)
    read_shards(folder, list(record["files"]), flatten(weights, moments))
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


def check_files(folder: Path, files: Mapping[str, str], group: TrainingGroup) -> str:
    """What is wrong with those files of a checkpoint that this process checks; each is checked by one."""
    for name in sorted(files)[group.rank :: group.size]:
        try:
            check(folder / name, files[name])
        except (OSError, ValueError) as fault:
            return f"{fault}; remove {folder.parent} to start the run over"
    return ""


def flatten(weights: Mapping[str, Any], moments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a model and its optimizer by one name each; both are keyed by the names of parameters."""
    found = {f"model/{name}": tensor for name, tensor in weights.items()}
    for name, slots in moments["state"].items():
        found |= {f"optimizer/{name}/{slot}": tensor for slot, tensor in slots.items()}
    return found


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of a tensor that this process holds, and the number of the first; all of one that is not sharded."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    mesh = tensor.device_mesh
    rows = -(-len(tensor) // mesh.size())
    return tensor.to_local(), min(mesh.get_local_rank() * rows, len(tensor))


@torch.no_grad()
def read_shards(folder: Path, files: list[str], targets: Mapping[str, Tensor]) -> None:
    """Fill tensors, or the rows of them that this process holds, from shards.

    The optimizer has no state there of a weight that had no gradient yet: it becomes 0, which is how it begins.
    """
    with ExitStack() as stack:
        parts: dict[str, list[tuple[int, Any]]] = {}
        for name in files:
            try:
                shard = stack.enter_context(safe_open(folder / name, "pt"))
            except SafetensorError as fault:
                raise ValueError(f"{folder / name} is damaged ({fault})") from None
            rows = json.loads(shard.metadata()["rows"])
            for key in shard.keys():  # noqa: SIM118
                parts.setdefault(key, []).append((rows.get(key, 0), shard.get_slice(key)))
        stepped = {key.rpartition("/")[0] for key in parts if key.startswith("optimizer/")}
        for key, target in targets.items():
            local, start = local_rows(target)
            if key.startswith("optimizer/") and key.rpartition("/")[0] not in stepped:
                local.zero_()
                continue
            if key not in parts:
                raise ValueError(f"{folder} is the checkpoint of another model: it holds no {key}")
            fill_rows(local, start, parts[key], f"{key} in {folder}")


def fill_rows(local: Tensor, start: int, parts: list[tuple[int, Any]], name: str) -> None:
    """Copy rows from `start` on out of parts of a tensor, each with the number of its first row."""
    if local.dim() == 0:
        local.copy_(parts[0][1][...])
        return
    filled = 0
    for first, part in parts:
        shape = part.get_shape()
        if shape[1:] != list(local.shape[1:]):
            raise ValueError(f"{name} has rows of shape {shape[1:]}, the model of {list(local.shape[1:])}")
        low, high = max(start, first), min(start + len(local), first + shape[0])
        if low < high:
            local[low - start : high - start].copy_(part[low - first : high - first])
            filled += high - low
    if filled != len(local):
        raise ValueError(f"{name} holds {filled} of the {len(local)} rows that the model has")


def load_old_state(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, *, trust: bool) -> None:
    """Read a checkpoint of version 0.1. Raises ValueError."""
    plain, options = folder / "state.pt", None
    if plain.is_file():
        options = StateDictOptions(full_state_dict=True)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected pickle protocol")  # of what is refused anyway
                state = torch.load(plain, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as fault:
            reason = (str(fault).splitlines() or [type(fault).__name__])[0]
            raise ValueError(f"{plain} is damaged or holds more than tensors ({reason})") from None
    elif not (folder / ".metadata").is_file():
        raise ValueError(f"{folder} holds no checkpoint; remove {folder.parent} to start the run over")
    elif not trust:
        raise ValueError(
            f"{folder / '.metadata'} is a pickle, which can run code when it is read: resume with --trust-checkpoint "
            f"if your own processes wrote it, or remove {folder.parent} to start the run over"
        )
    else:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        with warnings.catch_warnings(), disk_errors(folder):
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # it is, in a single process
            load(state, checkpoint_id=folder)
    try:
        states = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(model, optimizer, **cast(Any, states), options=options)
    except (KeyError, TypeError, RuntimeError) as fault:
        raise ValueError(f"{folder} is the checkpoint of another model ({str(fault).splitlines()[0]})") from None
