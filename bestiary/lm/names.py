"""What the name of a language model means: the folder of a run, one of Hugging Face, a GGUF file, or the hub."""

import re
from pathlib import Path

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
RUN_KEY = re.compile(r"[0-9a-f]{12}")
FOLDERS = ("models", "runs", "corpora", "figures")  # where the verbs write unless told otherwise
FILES = (".npy", ".npz", ".json", ".jsonl", ".txt", ".csv", ".safetensors", ".gguf")


def is_run(folder: Path | str) -> bool:
    """Whether a folder is a run of ours, and not what was converted from one."""
    folder = Path(folder)
    return (folder / "recipe.json").is_file() and not (folder / "config.json").is_file()


def is_path(name: str | Path) -> bool:
    """Whether this names a file or a folder, not a model on the hub."""
    text = str(name)
    first, slash, last = text.partition("/")
    if isinstance(name, Path) or not HUB_NAME.fullmatch(text) or Path(text).exists():
        return True
    return (
        text.startswith(".")
        or text.endswith(FILES)
        or bool(slash and (first in FOLDERS or Path(first).is_dir() or RUN_KEY.fullmatch(last)))
    )


def check_name(name: str | Path) -> None:
    """Raises LookupError for the path of something that does not exist, before anybody asks the hub for it."""
    if is_path(name) and not Path(name).expanduser().exists():
        raise LookupError(f"there is no file or folder {name}, and a model of the hub is named like org/model")
