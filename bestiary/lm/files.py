"""The folder of a trained model: the digests of its files, recorded in `digests.json`, and its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.runs.digests import check, digest
from bestiary.runs.files import read_record, write_record
from bestiary.runs.tensors import read_tensors

if TYPE_CHECKING:
    from torch import nn

DIGESTS = "digests.json"


def write_digests(folder: Path, names: Sequence[str]) -> None:
    """Record the digests of files in a folder."""
    write_record(folder / DIGESTS, {"files": {name: digest(folder / name) for name in names}})


def check_digests(folder: Path) -> bool:
    """Whether the folder records digests. Raises ValueError, naming the file, if one that it records is not right."""
    if not (folder / DIGESTS).is_file():
        return False
    files = read_record(folder / DIGESTS).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{folder / DIGESTS} is damaged: it names no files")
    for name, expected in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{folder / DIGESTS} is damaged: it names {name}, a file elsewhere")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, but {folder / DIGESTS} records it")
        check(folder / name, expected)
    return True


def load_weights(model: "nn.Module", path: Path) -> None:
    """Read the weights of a model from its file. Raises ValueError if they are damaged or those of another model."""
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as fault:
        first = next((line.strip() for line in str(fault).splitlines()[1:]), str(fault))
        raise ValueError(f"{path} holds the weights of another model ({first})") from None
