"""Text to tokens and back: raw bytes, a byte-level BPE trained on the spot, or any tokenizer of the Hugging Face hub.

All three are a definition in the format of the library `tokenizers`, whose file is `tokenizer.json`. Nothing a hub
name points to is ever run: a repository without that file is refused.
The library encodes in threads, as many as `RAYON_NUM_THREADS` allows. A process that forks afterwards is told so on
stderr and its child encodes in one thread; `TOKENIZERS_PARALLELISM=false` does without threads and the notice.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bestiary.runs.store import write_file

if TYPE_CHECKING:
    import tokenizers

END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")  # looked for where no configuration names one
CONFIGURATION = "tokenizer_config.json"
POSSIBLE = "'bytes', 'bpe', a folder with a tokenizer.json, or the hub name of a repository with one"
SMALLEST = 257  # 256 bytes and the separator


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer by its full definition; `separator` is the token between documents.

    Names of special tokens within a text are text like any other, so that no document holds a separator.
    """

    definition: str  # the content of tokenizer.json
    name: str
    separator: int

    @cached_property
    def hash(self) -> str:
        """Equal exactly for tokenizers that are defined alike."""
        return hashlib.sha256(f"{self.separator} {self.definition}".encode()).hexdigest()[:12]

    def alike(self, other: "Tokenizer") -> bool:
        """Whether both make the same tokens of every text, whatever else their files say, as on padding."""
        parts = ("model", "normalizer", "pre_tokenizer", "added_tokens")
        one, two = (json.loads(each.definition) for each in (self, other))
        same = all(one.get(part) == two.get(part) for part in parts) and self.separator == other.separator
        return self.hash == other.hash or same

    @cached_property
    def vocab(self) -> int:
        """One more than the largest token."""
        return max(self.library.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def dtype(self) -> np.dtype:
        """The smallest kind of number that holds every token."""
        return np.dtype("<u2" if self.vocab <= 2**16 else "<u4")

    @cached_property
    def library(self) -> "tokenizers.Tokenizer":
        """The same tokenizer as an object of the library `tokenizers`."""
        import tokenizers

        made = tokenizers.Tokenizer.from_str(self.definition)
        made.no_padding()
        made.no_truncation()
        made.encode_special_tokens = True
        return made

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, without separators."""
        if self.name == "bytes":  # where a token is a byte, the library's way takes fifty times as long
            return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]
        encoded = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, self.dtype) for each in encoded]

    def decode(self, tokens: Iterable[int] | np.ndarray) -> str:
        """The text of tokens; bytes that are no whole character are shown as the replacement character."""
        tokens = [int(token) for token in tokens]
        if "ByteLevel" in decoders(self.definition):  # the library garbles added words that are not of ASCII alone
            return b"".join(self.raw[token] for token in tokens).decode(errors="replace")
        return self.library.decode(tokens, skip_special_tokens=False)

    def pieces(self, tokens: Iterable[int] | np.ndarray) -> list[str]:
        """The text of each token by itself."""
        return [self.raw[int(token)].decode(errors="replace") for token in tokens]

    @cached_property
    def raw(self) -> list[bytes]:
        """What each token stands for; the name of a special one."""
        added = self.library.get_added_tokens_decoder()
        spelled = spelling(decoders(self.definition))
        named = {token: name for name, token in self.library.get_vocab(with_added_tokens=True).items()}
        whole = [name.encode() if token in added else spelled(name) for token, name in sorted(named.items())]
        if len(whole) == self.vocab:
            return whole
        filled = dict(zip(sorted(named), whole, strict=True))
        return [filled.get(token, b"") for token in range(self.vocab)]

    @cached_property
    def sizes(self) -> np.ndarray:
        """The bytes of text that each token stands for, none for a special one.

        Over the tokens of a text they add up to its length in UTF-8 where the tokenizer is byte-level and changes
        nothing before it splits; for others, which add or fold white space, they come close.
        """
        sizes = np.array([len(raw) for raw in self.raw], np.int64)
        special = [token for token, each in self.library.get_added_tokens_decoder().items() if each.special]
        sizes[[*special, self.separator]] = 0
        return sizes

    def save(self, folder: Path) -> None:
        """Write it so that `open_tokenizer` finds it again, and AutoTokenizer of transformers too."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_bytes(self.definition.encode())
        end = self.library.id_to_token(self.separator)
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_file(folder / CONFIGURATION, {**kind, "eos_token": end, "bestiary": self.name})


@lru_cache(maxsize=8)
def decoders(definition: str) -> set[str]:
    """The kinds of the steps by which a tokenizer gets from the names of tokens to text."""
    decoder = json.loads(definition).get("decoder") or {"decoders": []}
    return {part["type"] for part in decoder.get("decoders", [decoder])}


def spelling(kinds: set[str]) -> Callable[[str], bytes]:
    """How the names of tokens spell bytes."""
    if "ByteLevel" in kinds:
        letters = alphabet()
        return lambda name: bytes(map(letters.__getitem__, name)) if letters.keys() >= set(name) else name.encode()
    if "WordPiece" in kinds:
        return lambda name: (name[2:] if name.startswith("##") else f" {name}").encode()
    byte = re.compile("<0x([0-9A-F]{2})>").fullmatch if "ByteFallback" in kinds else lambda _: None
    return lambda name: (
        bytes.fromhex(found[1]) if (found := byte(name)) else name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
    )


@cache
def alphabet() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes (Radford et al., 2019): printable ones as they are."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


@cache
def raw_bytes() -> Tokenizer:
    """Each byte of UTF-8 is a token of its own; 256 is the separator."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE(vocab={letter: byte for letter, byte in alphabet().items()}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return Tokenizer(library.to_str(), "bytes", 256)


def train_bpe(texts: Iterable[str], vocab: int) -> Tokenizer:
    """A byte-level BPE trained on texts, with at most `vocab` tokens, of which 0 is the separator."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab < SMALLEST:
        raise ValueError(
            f"a byte-level vocabulary has at least {SMALLEST} tokens (256 bytes, a separator), not {vocab}"
        )
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return Tokenizer(library.to_str(), f"bpe-{vocab}", 0)


def open_tokenizer(name: str | Path) -> Tokenizer:
    """What is meant by "bytes", a folder with a tokenizer.json, such a file, or a name on the Hugging Face hub.

    Raises LookupError if there is none.
    """
    if str(name) == "bytes":
        return raw_bytes()
    if str(name) == "bpe":
        raise ValueError("'bpe' is trained on a text: prepare a corpus with it, and open the corpus's tokenizer/")
    path = Path(name).expanduser()
    if path.is_dir():
        return read(path / "tokenizer.json", path / CONFIGURATION, str(name))
    if path.is_file():
        return read(path, path.with_name(CONFIGURATION), str(name))
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise LookupError(f"no tokenizer at {name}: give {POSSIBLE}")
    definition = download(str(name), "tokenizer.json")
    return read(definition, definition and download(str(name), CONFIGURATION), str(name))


def read(definition: Path | None, configuration: Path | None, name: str) -> Tokenizer:
    """A tokenizer from its file; the configuration beside it, if there is one, names the end of a text."""
    import tokenizers

    if definition is None:
        raise LookupError(f"no tokenizer {name!r} here or within reach on the hub: give {POSSIBLE}")
    if not definition.is_file():
        raise LookupError(
            f"{definition.parent} has no tokenizer.json; make one with transformers: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(definition.parent)!r})"
        )
    try:
        text = definition.read_bytes().decode()
        library = tokenizers.Tokenizer.from_str(text)
        known = json.loads(configuration.read_text()) if configuration and configuration.is_file() else {}
    except Exception as fault:  # the library raises nothing narrower
        raise ValueError(f"{definition} is no tokenizer: {str(fault).splitlines()[0]}") from None
    end = known.get("eos_token") or next((each for each in ENDS if library.token_to_id(each) is not None), END)
    end = end["content"] if isinstance(end, dict) else end
    if library.token_to_id(end) is None:
        library.add_special_tokens([end])
        text = library.to_str()
    separator = library.token_to_id(end)
    assert separator is not None
    return Tokenizer(text, known.get("bestiary", name), separator)


def download(name: str, file: str) -> Path | None:
    """A file of a repository on the hub, kept where the hub's own library keeps it; None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(name, file))
    except (HFValidationError, OSError):  # the library's errors about the network, the name and the file are all these
        return None
