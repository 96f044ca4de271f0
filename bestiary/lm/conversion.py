"""Trained models of ours written as folders of Hugging Face."""

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

from bestiary.lm.files import write_digests
from bestiary.lm.huggingface import SETTINGS, wrap_model
from bestiary.model import Model
from bestiary.runs.files import read_object, write_file
from bestiary.runs.tensors import disk_errors

if TYPE_CHECKING:
    from bestiary.corpus.tokenizers import Tokenizer

UNFINISHED = ".converting-"
CONVERTED = re.compile(
    r"(generation_|tokenizer_)?config\.json|tokenizer\.json|special_tokens_map\.json|recipe\.json|digests\.json"
    r"|modeling_bestiary\.py|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|\.converting-.*"
)  # names of files in a conversion
CODE = '''"""Lets `trust_remote_code=True` find the model in the package `bestiary`, which must be installed."""

from bestiary.lm.huggingface import BestiaryConfig, BestiaryForCausalLM

__all__ = ["BestiaryConfig", "BestiaryForCausalLM"]
'''


def save_pretrained(
    model: Model, settings: Mapping[str, Any], tokenizer: "Tokenizer | PreTrainedTokenizerFast", folder: Path | str
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` open; `settings` are what built the model.

    Raises ValueError if the tokenizer has more tokens than the model.
    """
    vocab, folder = settings["vocab"], Path(folder)
    fast = tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else to_fast_tokenizer(tokenizer)
    if len(fast) > vocab:
        raise ValueError(f"the tokenizer has {len(fast)} tokens, the model a vocabulary of {vocab}")
    wrapped = wrap_model(model, settings)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(wrapped.config, name, getattr(fast, name))
        setattr(wrapped.generation_config, name, getattr(fast, name))
    wrapped.config.auto_map = {"AutoConfig": "modeling_bestiary.BestiaryConfig",
                               "AutoModelForCausalLM": "modeling_bestiary.BestiaryForCausalLM"}  # fmt: skip
    wrapped.save_pretrained(folder)
    fast.save_pretrained(folder)
    write_file(folder / "modeling_bestiary.py", CODE)


def export_run(run: Path | str, folder: Path | str) -> None:
    """Write the model of a pretraining run as a Hugging Face folder, with its recipe and digests.

    The files are written in a hidden folder within and then renamed, `config.json` last, so that a full disk leaves
    no model that is half there. Raises LookupError if the run has no model, ValueError if the folder holds anything
    but an earlier conversion of the same run.
    """
    from bestiary.corpus.tokenizers import open_tokenizer
    from bestiary.lm.pretraining import open_run

    recipe, model = open_run(Path(run))
    tokenizer, folder = open_tokenizer(Path(run) / "tokenizer"), Path(folder).expanduser()
    check_target(folder, recipe.json(), run)
    new = not folder.exists()
    beside = folder / f"{UNFINISHED}{uuid.uuid4().hex}"
    try:
        beside.mkdir(parents=True)
        with disk_errors(folder):
            save_pretrained(model, {name: getattr(recipe, name) for name in SETTINGS}, tokenizer, beside)
        write_file(beside / "recipe.json", recipe.json())
        for file in beside.iterdir():
            file.chmod((beside / "recipe.json").stat().st_mode)  # safetensors lets only the owner read
        write_digests(beside, sorted(file.name for file in beside.iterdir()))
        for file in sorted(beside.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(folder / file.name)
    finally:
        for left in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        if new and not any(folder.glob("*")):
            with suppress(OSError):
                folder.rmdir()


def check_target(folder: Path, recipe: Mapping[str, Any], run: Path | str) -> None:
    """Raises ValueError unless a folder is not there, empty, or a conversion of the run with this recipe."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    there = folder / "recipe.json"
    if folder.is_dir() and all(CONVERTED.fullmatch(file.name) for file in folder.iterdir()):
        unfinished = not there.exists() and not (folder / "config.json").exists()
        if unfinished or (there.exists() and read_object(there) == json.loads(json.dumps(recipe))):
            return
    raise ValueError(f"{folder} is not empty and no conversion of {run}: name another folder, or remove it first")


def to_fast_tokenizer(tokenizer: "Tokenizer") -> PreTrainedTokenizerFast:
    """One of our tokenizers for transformers; the separator of documents becomes the end and the padding token."""
    from tokenizers import Tokenizer as Library

    library = Library.from_str(tokenizer.definition)
    end = library.id_to_token(tokenizer.separator)
    return PreTrainedTokenizerFast(tokenizer_object=library, eos_token=end, pad_token=end)
