"""Language models of either kind, opened by a run's folder, one of Hugging Face, a GGUF file, or a hub name."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from bestiary.lm.names import check_name, is_run


class LanguageModel(NamedTuple):
    """A model that is ready to be measured."""

    model: Any  # one of ours, or of transformers
    tokenizer: Any
    fingerprint: str  # equal exactly for the same weights, configuration and tokenizer


def open_model(name: str | Path, *, device: str = "cpu", trust: bool = False) -> LanguageModel:
    """A language model of either kind, in evaluation mode. Raises LookupError or ValueError.

    Code that comes with a model of Hugging Face runs only if `trust`.
    """
    from bestiary.training.train import find_device

    check_name(name)
    find_device(device)
    if is_run(name):
        from bestiary.corpus.tokenizers import open_tokenizer
        from bestiary.lm.pretraining import open_run

        recipe, model = open_run(name)
        tokenizer = open_tokenizer(Path(name) / "tokenizer")
        return LanguageModel(model.to(device), tokenizer, fingerprint(model, tokenizer.hash, recipe.key))
    from bestiary.lm.huggingface import open_causal

    model, tokenizer = open_causal(name, trust=trust, device=device)
    config = {field: value for field, value in model.config.to_diff_dict().items() if field[0] != "_"}
    config.pop("transformers_version", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    parts = (vocabulary, json.dumps(config, sort_keys=True, default=str))
    return LanguageModel(model, tokenizer, fingerprint(model, *parts))


def fingerprint(model: Any, *parts: str) -> str:
    """16 digits that tell a model's weights, and texts that belong to it, from others."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for part in parts:
        found.update(f"{len(part)} {part}".encode())
    return found.hexdigest()[:16]
