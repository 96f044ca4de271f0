"""Text to tokens and back: bytes, a byte-level BPE trained here, or any tokenizer of the Hugging Face hub.

All three are definitions in the format of the library `tokenizers`, stored in `tokenizer.json`. Code from the hub is
never run: a repository without that file is refused.
The library encodes in threads, as many as `RAYON_NUM_THREADS` allows. If the process forks afterwards, the library
prints a notice on stderr and the child encodes in one thread; `TOKENIZERS_PARALLELISM=false` avoids both.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bestiary.corpus.gguf import end_token, first_line, is_gguf, open_gguf_tokenizer
from bestiary.corpus.hub import skip_without_network
from bestiary.runs.store import write_file

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
COMMON_ENDS = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[SEP]",
)  # tried in this order if no configuration names one
CONFIG_FILE = "tokenizer_config.json"
DEFINITION_FILE = "tokenizer.json"
CHOICES = "'bytes', 'bpe', a folder with a tokenizer.json, a GGUF file, or the hub name of a repository with one"
MIN_VOCAB = 257  # of a byte-level tokenizer: 256 bytes and the separator


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer by its full definition; `separator` is the token between documents.

    The names of special tokens within a text are encoded as ordinary text, so that no document contains a separator.
    """

    definition: str  # the content of tokenizer.json
    name: str
    separator: int
    files: ClassVar = (DEFINITION_FILE, CONFIG_FILE)  # that `save` writes

    @cached_property
    def hash(self) -> str:
        """12 hex digits, equal exactly for tokenizers with the same definition and separator."""
        return hashlib.sha256(f"{self.separator} {self.definition}".encode()).hexdigest()[:12]

    def is_equivalent(self, other: "Tokenizer") -> bool:
        """Whether both encode every text alike, even if their files differ in other settings such as padding."""
        parts = ("model", "normalizer", "pre_tokenizer", "added_tokens")
        one, two = (json.loads(tokenizer.definition) for tokenizer in (self, other))
        same = all(one.get(part) == two.get(part) for part in parts) and self.separator == other.separator
        return self.hash == other.hash or same

    @cached_property
    def vocab(self) -> int:
        """One more than the largest token id."""
        return max(self.library.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def dtype(self) -> np.dtype:
        """The smallest integer type that holds every token id."""
        return np.dtype("<u2" if self.vocab <= 2**16 else "<u4")

    @cached_property
    def library(self) -> "tokenizers.Tokenizer":
        """The same tokenizer as an object of the library `tokenizers`, without padding and truncation."""
        import tokenizers

        library = tokenizers.Tokenizer.from_str(self.definition)
        library.no_padding()
        library.no_truncation()
        library.encode_special_tokens = True
        return library

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, without separators."""
        if self.name == "bytes":  # the library takes fifty times as long
            return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]
        encoded = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, self.dtype) for each in encoded]

    def decode(self, tokens: Iterable[int] | np.ndarray) -> str:
        """The text of tokens; incomplete characters become the replacement character."""
        tokens = [int(token) for token in tokens]
        if "ByteLevel" in decoder_types(self.definition):  # the library garbles added words that are not pure ASCII
            return b"".join(self.token_bytes[token] for token in tokens).decode(errors="replace")
        return self.library.decode(tokens, skip_special_tokens=False)

    def pieces(self, tokens: Iterable[int] | np.ndarray) -> list[str]:
        """The text of each token by itself."""
        return [self.token_bytes[int(token)].decode(errors="replace") for token in tokens]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each token stands for; for a special token, those of its name."""
        added = self.library.get_added_tokens_decoder()
        decode_name = token_decoder(decoder_types(self.definition))
        names = {token: name for name, token in self.library.get_vocab(with_added_tokens=True).items()}
        known = {token: name.encode() if token in added else decode_name(name) for token, name in names.items()}
        return [known.get(token, b"") for token in range(self.vocab)]

    @cached_property
    def token_sizes(self) -> np.ndarray:
        """The bytes of text that each token stands for, of shape (vocab,); 0 for special tokens.

        Only if the tokenizer `is_byte_exact` are these the bytes of the text itself; else see `encode_with_ends`.
        """
        sizes = np.array([len(content) for content in self.token_bytes], np.int64)
        special = [token for token, added in self.library.get_added_tokens_decoder().items() if added.special]
        sizes[[*special, self.separator]] = 0
        return sizes

    @cached_property
    def is_byte_exact(self) -> bool:
        """Whether the bytes of the tokens of a text are, one after the other, the bytes of the text."""
        given = json.loads(self.definition)
        model, first, added = given["model"], given.get("pre_tokenizer") or {}, given.get("added_tokens") or []
        steps = first.get("pretokenizers", [first])
        splits = all(
            not step.get("add_prefix_space")
            if step.get("type") == "ByteLevel"
            else step.get("type") in ("Split", "Digits") and step.get("behavior") != "Removed"
            for step in steps
        )
        return (
            given.get("normalizer") is None
            and splits
            and any(step.get("type") == "ByteLevel" for step in steps)
            and "ByteLevel" in decoder_types(self.definition)
            and model.get("type") == "BPE"
            and byte_alphabet().keys() <= model["vocab"].keys()
            and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
            and not any(token.get("lstrip") or token.get("rstrip") for token in added)
        )

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The tokens of each text, and where in its UTF-8 bytes each token ends; both of shape (tokens,).

        What the tokenizer leaves out, such as a space between words, belongs to the token after it, and what follows
        the last token to the last: all tokens together stand for the whole text.
        """
        if self.is_byte_exact:
            return [(tokens, self.token_sizes[tokens].cumsum()) for tokens in self.encode(texts)]
        encoded = self.library.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(each.ids, self.dtype), byte_ends(text, [end for _, end in each.offsets]))
            for text, each in zip(texts, encoded, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write a folder that `open_tokenizer`, and AutoTokenizer of transformers, can open."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DEFINITION_FILE).write_bytes(self.definition.encode())
        end = self.library.id_to_token(self.separator)
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_file(folder / CONFIG_FILE, {**kind, "eos_token": end, "bestiary": self.name})


def byte_ends(text: str, ends: Sequence[int]) -> np.ndarray:
    """Positions in the characters of a text as positions in its bytes, in order, the last of them its end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    places = np.maximum.accumulate(np.array(ends, np.int64))
    places[-1:] = len(points)
    return np.concatenate([[0], sizes.cumsum()])[places]


@lru_cache(maxsize=8)
def decoder_types(definition: str) -> set[str]:
    """The types of the steps by which a tokenizer turns the names of tokens into text."""
    decoder = json.loads(definition).get("decoder") or {"decoders": []}
    return {part["type"] for part in decoder.get("decoders", [decoder])}


def token_decoder(kinds: set[str]) -> Callable[[str], bytes]:
    """A function from the name of a token to its bytes, for a decoder with these steps."""
    if "ByteLevel" in kinds:
        letters = byte_alphabet()
        return lambda name: bytes(map(letters.__getitem__, name)) if letters.keys() >= set(name) else name.encode()
    if "WordPiece" in kinds:
        return lambda name: (name[2:] if name.startswith("##") else f" {name}").encode()
    byte = re.compile("<0x([0-9A-F]{2})>").fullmatch if "ByteFallback" in kinds else lambda _: None
    return lambda name: (
        bytes.fromhex(found[1]) if (found := byte(name)) else name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
    )


@cache
def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes (Radford et al., 2019): printable ones as they are."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


@cache
def byte_tokenizer() -> Tokenizer:
    """The tokenizer whose tokens are the bytes of UTF-8; 256 is the separator."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE(vocab={letter: byte for letter, byte in byte_alphabet().items()}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return Tokenizer(library.to_str(), "bytes", 256)


def train_bpe(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Train a byte-level BPE with at most `vocab` tokens, of which 0 is the separator. Raises ValueError below 257."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab < MIN_VOCAB:
        raise ValueError(
            f"a byte-level vocabulary has at least {MIN_VOCAB} tokens (256 bytes, a separator), not {vocab}"
        )
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return Tokenizer(library.to_str(), f"bpe-{vocab}", 0)


def open_tokenizer(name: str | Path) -> Tokenizer:
    """Open a tokenizer: "bytes", a folder with a tokenizer.json, such a file, a GGUF file, or a name on the hub.

    Raises LookupError if there is none, ValueError if it cannot be read.
    """
    if str(name) == "bytes":
        return byte_tokenizer()
    if str(name) == "bpe":
        raise ValueError("'bpe' is trained on a text: prepare a corpus with it, and open the corpus's tokenizer/")
    path = Path(name).expanduser()
    if path.is_dir():
        return read_tokenizer(path / DEFINITION_FILE, path / CONFIG_FILE, str(name))
    if is_gguf(path):
        return from_gguf(path, str(name))
    if path.is_file():
        return read_tokenizer(path, path.with_name(CONFIG_FILE), str(name))
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise LookupError(f"no tokenizer at {name}: give {CHOICES}")
    definition = download(str(name), DEFINITION_FILE)
    return read_tokenizer(definition, definition and download(str(name), CONFIG_FILE), str(name))


def from_gguf(path: Path, name: str) -> Tokenizer:
    """The tokenizer of a GGUF file; its separator ended documents in pretraining, where a chat ends otherwise."""
    definition, end = open_gguf_tokenizer(path).backend_tokenizer, end_token(path, COMMON_ENDS)
    if end is None:
        raise ValueError(
            f"{path} names no token that ends a text, and has none of {', '.join(COMMON_ENDS)} as a control token: "
            "use the model's folder of Hugging Face"
        )
    return Tokenizer(definition.to_str(), name, end)


def read_tokenizer(definition: Path | None, configuration: Path | None, name: str) -> Tokenizer:
    """Read a tokenizer from its file; the configuration beside it, if there is one, names the end of a text."""
    import tokenizers

    if definition is None:
        raise LookupError(f"no tokenizer {name!r} here or within reach on the hub: give {CHOICES}")
    if not definition.is_file():
        raise LookupError(
            f"{definition.parent} has no tokenizer.json; make one with transformers: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(definition.parent)!r})"
        )
    try:
        text = definition.read_bytes().decode()
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as fault:  # the library raises nothing narrower
        raise ValueError(f"{definition} is no tokenizer: {first_line(fault)}") from None
    known = read_config(configuration) if configuration and configuration.is_file() else {}
    markup = {token.content for token in library.get_added_tokens_decoder().values() if not token.special}
    end = known.get("eos_token") or next(
        (name for name in COMMON_ENDS if library.token_to_id(name) is not None and name not in markup), END_OF_TEXT
    )
    end = end["content"] if isinstance(end, dict) else end
    if library.token_to_id(end) is None:
        library.add_special_tokens([end])
        text = library.to_str()
    separator = library.token_to_id(end)
    assert separator is not None
    return Tokenizer(text, known.get("bestiary", name), separator)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration beside a tokenizer. Raises ValueError if it is damaged."""
    try:
        known = json.loads(path.read_text())
        end = known.get("eos_token")
        if not isinstance(end["content"] if isinstance(end, dict) else end, str | None):
            raise TypeError(f"an eos_token of {end!r}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
        raise ValueError(f"{path} is no configuration of a tokenizer: {first_line(fault)}") from None
    return known


def download(name: str, file: str) -> Path | None:
    """A file of a repository on the hub, kept in the cache of the hub's library; None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    skip_without_network()
    try:
        return Path(hf_hub_download(name, file))
    except (HFValidationError, OSError):  # all its errors about the network, the name and the file
        return None
