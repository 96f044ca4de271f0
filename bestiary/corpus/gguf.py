"""Tokenizers of GGUF files, the format of llama.cpp, read through transformers. Needs `bestiary[gguf]`.

transformers takes the vocabulary and the merges of a file, but not how text is split before they are applied. The file
names this split (`tokenizer.ggml.pre`); SPLITS has those of llama.cpp (src/llama-vocab.cpp) that most models use.
With the wrong split a model reads other tokens than it was trained on: SmolLM2, for one, before numbers.
The name says more in llama.cpp: by those of LLAMA3_NAMES, a text begins with BOS unless the file says otherwise, and a
word of the vocabulary is one token, whatever the merges make of it.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
CONTROL = 3  # the type of a token that no text spells, in `tokenizer.ggml.token_type`
DIGIT = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", DIGIT)
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (DIGIT, GPT2)),
    **dict.fromkeys((*LLAMA3_NAMES, "dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (QWEN2,)),
}


def is_gguf(name: str | Path) -> bool:
    """Whether this is a GGUF file, by its first bytes, or is called one."""
    path = Path(name).expanduser()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"


def check_gguf(path: Path) -> None:
    """Raises ValueError for a file that is none, or ImportError if the library that reads them is missing."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no GGUF file: it does not begin with GGUF")
    if None in map(find_spec, ("gguf", "transformers", "accelerate")):
        raise ImportError(f"reading {path} needs gguf: pip install 'bestiary[gguf]'")


def gguf_fields(path: Path, *names: str) -> list[Any]:
    """What a file's header says of its tokenizer under these names; None where it says nothing."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    found = [fields.get(f"tokenizer.ggml.{name}") for name in names]
    return [None if field is None else field.contents() for field in found]


def end_token(path: Path, names: Sequence[str]) -> int | None:
    """The first of `names` that is a control token of the file itself; without any, the end that the file names.

    transformers may add tokens that the file lacks, and what looks like an end may be markup that texts contain.
    """
    tokens, kinds, end = gguf_fields(path, "tokens", "token_type", "eos_token_id")
    control = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds or (), strict=False)) if kind == CONTROL}
    return next((control[name] for name in names if name in control), end)


def open_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of transformers for a GGUF file, splitting text as llama.cpp does.

    Raises ImportError or ValueError, also for a split that is not in SPLITS, and for a BPE of bytes without one.
    """
    from transformers import AutoTokenizer

    check_gguf(path)
    try:
        kind, split, begins = gguf_fields(path, "model", "pre", "add_bos_token")
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as fault:  # what damaged files fail with is not documented
        raise ValueError(f"the tokenizer of {path} cannot be read ({first_line(fault)})") from None
    if kind == "gpt2" or split not in (None, "default"):  # vocabularies of SentencePiece are not split
        if split not in SPLITS:
            what = f"splits text as {split!r}, which is not known here" if split else "does not say how it splits text"
            raise ValueError(f"{path} {what}: use the model's folder of Hugging Face")
        tokenizer.backend_tokenizer.pre_tokenizer = splitter(SPLITS[split])
    if split in LLAMA3_NAMES:
        tokenizer.backend_tokenizer.model.ignore_merges = True
        tokenizer.add_bos_token = True if begins is None else begins
    return tokenizer


def splitter(patterns: tuple[str, ...]) -> Any:
    """A pre-tokenizer of `tokenizers` that isolates what matches each regular expression, then goes to bytes."""
    from tokenizers import Regex, pre_tokenizers

    isolated = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*isolated, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def first_line(fault: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0][:200]
