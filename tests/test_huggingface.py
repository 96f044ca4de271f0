"""Our models as Hugging Face models: the same numbers, with and without the state, through a folder and back."""

import errno
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import command
from small_models import SMALL_MODELS, small_gpt2, small_llama, small_tokenizer
from torch.nn import functional as F

from bestiary.model import Model
from bestiary.spec import names, parse

pytest.importorskip("transformers")
pytestmark = [pytest.mark.hf, pytest.mark.slow]

SHAPE: dict[str, Any] = {"vocab": 720, "dim": 16, "depth": 2, "channel": "mlp", "positions": 64}
PATTERNS = ("attention(heads=2, window=5), gated_delta", "hyena(taps=64), based(features=4)", "mamba2, log_linear")
TEXT = "The swan: a tiger, and 42 öre."


def build_model(pattern: str) -> tuple[Model, dict[str, Any]]:
    settings = SHAPE | {"pattern": parse("mixers", pattern)}
    vocab = settings["vocab"]
    model = Model(vocab, **{name: value for name, value in settings.items() if name != "vocab"})
    return model.double().eval(), settings


def save_model(pattern: str, folder: Path) -> Model:
    from bestiary.lm.conversion import save_pretrained

    model, settings = build_model(pattern)
    save_pretrained(model, settings, small_tokenizer(), folder)
    return model


@pytest.mark.parametrize("pattern", PATTERNS)
def test_generating_with_the_state_is_generating_without(pattern: str) -> None:
    from bestiary.lm.huggingface import wrap_model

    model = wrap_model(*build_model(pattern))
    with torch.no_grad():
        model.model.positions.weight.mul_(30)  # else a random model repeats one token
    tokens = torch.randint(1, 720, (3, 9))  # 0 would be taken for padding
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        given = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, **options}
        found = model.generate(tokens, use_cache=True, **given)
        assert torch.equal(found, model.generate(tokens, use_cache=False, **given))
        assert all(len(row[9:].unique()) > 4 for row in found)


def test_the_state_of_chosen_rows_is_that_of_reading_them() -> None:
    from bestiary.lm.huggingface import StateCache, wrap_model

    model, tokens, rows = (
        wrap_model(*build_model(PATTERNS[0])),
        torch.randint(0, 720, (3, 11)),
        torch.tensor([2, 0, 0, 1]),
    )
    past = model(tokens[:, :7], use_cache=True).past_key_values
    assert (past.get_seq_length(), StateCache().get_seq_length()) == (7, 0)
    past.reorder_cache(rows)
    found = model(tokens[rows, 7:], past_key_values=past).logits
    torch.testing.assert_close(found, model(tokens[rows]).logits[:, 7:])
    past = model(tokens[:, :7], use_cache=True).past_key_values
    past.batch_repeat_interleave(2)
    found = model(tokens[:, 7:].repeat_interleave(2, 0), past_key_values=past).logits
    torch.testing.assert_close(found, model(tokens).logits[:, 7:].repeat_interleave(2, 0))
    with pytest.raises(ValueError, match="cannot forget"):
        past.crop(1)


@pytest.mark.parametrize("mixer", names("mixers"))
def test_the_state_of_every_mixer_is_generated_with(mixer: str) -> None:
    from bestiary.lm.huggingface import wrap_model

    model, tokens = wrap_model(*build_model(mixer)), torch.randint(1, 720, (2, 5))  # 0 would be taken for padding
    given = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "num_beams": 2}
    assert torch.equal(*(model.generate(tokens, use_cache=cached, **given) for cached in (True, False)))


@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_a_saved_model_is_the_model(pattern: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    from bestiary.lm.huggingface import open_causal

    model, tokens = save_model(pattern, tmp_path), torch.randint(0, 720, (2, 30))
    opened, tokenizer = open_causal(tmp_path)
    assert opened.dtype == torch.float64
    assert not opened.training
    found = opened(tokens, labels=tokens)
    wanted = model.parallel(tokens)
    torch.testing.assert_close(found.logits, wanted, rtol=1e-6, atol=1e-7)
    loss = F.cross_entropy(wanted[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(found.loss, loss, check_dtype=False)
    torch.testing.assert_close(opened(tokens, logits_to_keep=2).logits, found.logits[:, -2:])
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode(TEXT) == small_tokenizer().encode(TEXT)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    assert shapes.count([720, 16]) == 1, "the head is the embedding, stored once"


def test_padding_is_refused_where_it_would_change_the_numbers() -> None:
    from bestiary.lm.huggingface import wrap_model

    model, tokens = wrap_model(*build_model(PATTERNS[0])), torch.randint(0, 720, (2, 8))
    mask = torch.ones_like(tokens)
    mask[0, 6:] = 0
    short = model(tokens[:1, :6]).logits
    torch.testing.assert_close(model(tokens, attention_mask=mask).logits[:1, :6], short)
    for given in ({"attention_mask": mask.flip(1)}, {"attention_mask": mask, "use_cache": True}):
        with pytest.raises(ValueError, match="attention_mask must be all ones"):
            model(tokens, **given)
    with pytest.raises(ValueError, match="attention_mask must be all ones"):
        model.generate(tokens, attention_mask=mask.flip(1), max_new_tokens=1, pad_token_id=0)
    with pytest.raises(ValueError, match="take no inputs_embeds"):
        model(tokens, inputs_embeds=torch.zeros(1))


@pytest.mark.parametrize("build", SMALL_MODELS)
def test_the_loss_of_each_token_is_the_cross_entropy(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bestiary.lm.huggingface import open_causal, token_losses

    tokenizer = small_tokenizer()
    build(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = open_causal(str(tmp_path))
    contexts = np.random.default_rng(0).integers(0, len(tokenizer), (5, 13))
    found = token_losses(model, contexts, numbers=2 * 13 * len(tokenizer))
    with torch.no_grad():
        chances = model(torch.from_numpy(contexts)).logits.double().softmax(-1).numpy()
    wanted = [[-np.log(chances[i, t, contexts[i, t + 1]]) for t in range(12)] for i in range(5)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    with pytest.raises(ValueError, match="the text has token 9999"):
        token_losses(model, np.full((1, 3), 9999))
    assert token_losses(model, contexts[:0]).shape == (0, 12)
    for rows in (1, 5):
        monkeypatch.setattr("bestiary.lm.huggingface.BLOCK", rows * len(tokenizer))
        np.testing.assert_array_equal(token_losses(model, contexts, numbers=2 * 13 * len(tokenizer)), found)


def test_a_slice_gives_a_model_the_token_that_its_tokenizer_puts_in_front(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from bestiary.cli._slicing import open_source
    from bestiary.lm.huggingface import open_causal, token_losses

    made = Tokenizer.from_str(small_tokenizer().backend_tokenizer.to_str())
    model, contexts = small_llama(made.get_vocab_size()), np.random.default_rng(0).integers(1, 700, (3, 9))
    sources = {}
    for kind in ("plain", "with"):
        model.save_pretrained(tmp_path / kind)
        PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<end>", eos_token="<end>").save_pretrained(
            tmp_path / kind
        )
        sources[kind] = open_source(str(tmp_path / kind), device="cpu", trust=False, shape=(3, 8))
        made.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    opened, _ = open_causal(tmp_path / "with")
    longer = np.concatenate([np.zeros((3, 1), int), contexts], axis=1)
    np.testing.assert_allclose(sources["with"].losses(contexts), token_losses(opened, longer)[:, 1:], rtol=1e-5)
    np.testing.assert_allclose(sources["plain"].losses(contexts), token_losses(opened, contexts), rtol=1e-5)
    assert sources["with"].identity[-1] == "after token 0"
    assert len(sources["plain"].identity) < len(sources["with"].identity)


def test_what_cannot_be_opened_is_told_in_one_line(tmp_path: Path) -> None:
    from bestiary.lm.conversion import save_pretrained
    from bestiary.lm.huggingface import open_causal

    with pytest.raises(LookupError, match="there is no file or folder"):
        open_causal(tmp_path / "none")
    with pytest.raises(LookupError, match="no config.json"):
        open_causal(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(LookupError, match="a run of ours, which must be exported"):
        open_causal(tmp_path)
    config = {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "strange.Strange"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LookupError, match=r"no weights: model\.safetensors is missing"):
        open_causal(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="--trust-remote-code") as told:
        open_causal(tmp_path)
    assert "\n" not in str(told.value)
    (tmp_path / "strange.py").write_text("raise RuntimeError('ran')")
    with pytest.raises(ValueError, match="--trust-remote-code"):
        open_causal(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has .* the model a vocabulary of 300"):
        save_pretrained(build_model("attention")[0], SHAPE | {"vocab": 300, "pattern": ()}, small_tokenizer(), tmp_path)


def test_a_run_on_text_becomes_a_folder_and_its_tokenizer_encodes_as_before(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from bestiary.corpus.tokenizers import open_tokenizer, train_bpe
    from bestiary.lm.conversion import export_run
    from bestiary.lm.generation import continue_text
    from bestiary.lm.huggingface import open_causal
    from bestiary.lm.pretraining import Pretraining
    from bestiary.runs.store import write_file

    for i, tokenizer in enumerate((open_tokenizer("bytes"), train_bpe([TEXT, "a swan"], 270))):
        run, folder = tmp_path / f"run{i}", tmp_path / f"folder{i}"
        recipe = Pretraining(corpus="0" * 12, vocab=tokenizer.vocab, pattern="gated_delta", dim=16, depth=1)
        model = recipe.build().eval()
        tokenizer.save(run / "tokenizer")
        write_file(run / "recipe.json", recipe.json())
        save_file(model.state_dict(), run / "weights.safetensors")
        export_run(run, folder)
        opened, theirs = open_causal(folder)
        tokens = tokenizer.encode([TEXT])[0].astype(np.int64)
        assert theirs.encode(TEXT) == tokens.tolist()
        assert theirs.decode(tokens) == TEXT
        assert theirs.eos_token_id == theirs.pad_token_id == opened.config.eos_token_id == tokenizer.separator
        given = torch.from_numpy(tokens).unsqueeze(0)
        torch.testing.assert_close(opened(given).logits, model.parallel(given))
        for prompt, first in (("", [tokenizer.separator]), (TEXT, tokens.tolist())):
            read, written = [], []
            for of, encoder in ((model, tokenizer), (opened, theirs)):
                embed = of.get_submodule("model.embed" if of is opened else "embed")
                hook = embed.register_forward_hook(lambda _, given, __, read=read: read.append(given[0].tolist()))
                written.append(continue_text(of, encoder, prompt, 1, temperature=0.0))
                hook.remove()
            assert read[0] == read[-1] == [first]
            assert written[0] == written[1]
        assert Pretraining(**json.loads((folder / "recipe.json").read_text())) == recipe


def train_step(pattern: str, rows: list[dict[str, Any]], folder: Path, *, batch: int, parts: int) -> dict[str, Any]:
    """What one step of plain gradient descent by the Trainer leaves of the weights."""
    from transformers import Trainer, TrainingArguments

    from bestiary.lm.huggingface import wrap_model

    torch.manual_seed(0)
    model = wrap_model(*build_model(pattern)).train()
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=parts, max_steps=1,
        optim="sgd", learning_rate=1.0, max_grad_norm=0.0, lr_scheduler_type="constant", report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows).train()  # pyright: ignore
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("pattern", "ignored"),
    [("gated_delta", False), ("gated_delta", True), ("selected(select='learned', penalty=3.0)", False)],
)
def test_a_batch_read_in_parts_by_the_trainer_has_the_gradient_of_the_whole(
    pattern: str, tmp_path: Path, *, ignored: bool
) -> None:
    pytest.importorskip("accelerate")
    rng, rows = np.random.default_rng(0), []
    for i in range(8):
        tokens = rng.integers(0, 720, 12)
        labels = np.where(np.arange(12) < i, -100, tokens) if ignored else tokens
        rows.append({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    whole = train_step(pattern, rows, tmp_path, batch=8, parts=1)
    parts = train_step(pattern, rows, tmp_path, batch=2, parts=4)
    start = dict(build_and_wrap(pattern).named_parameters())
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in whole.items())


def build_and_wrap(pattern: str) -> Any:
    from bestiary.lm.huggingface import wrap_model

    torch.manual_seed(0)
    return wrap_model(*build_model(pattern))


def run_folder(folder: Path, **changes: Any) -> Path:
    """A run on text that was trained for no step at all."""
    from bestiary.corpus.tokenizers import open_tokenizer
    from bestiary.lm.pretraining import Pretraining
    from bestiary.runs.store import write_file
    from bestiary.runs.tensors import write_tensors

    fields = {"corpus": "0" * 12, "vocab": 257, "pattern": "gated_delta", "dim": 16, "depth": 1} | changes
    recipe = Pretraining(**fields)
    open_tokenizer("bytes").save(folder / "tokenizer")
    write_file(folder / "recipe.json", recipe.json())
    write_tensors(folder / "weights.safetensors", recipe.build().state_dict())
    return folder


def test_a_conversion_replaces_itself_and_nothing_else(tmp_path: Path) -> None:
    from bestiary.lm.conversion import export_run
    from bestiary.lm.huggingface import open_causal

    one, other = run_folder(tmp_path / "one"), run_folder(tmp_path / "other", dim=8)
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(2):
        export_run(one, out)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"config.json", "digests.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    mode = (tmp_path / "one" / "recipe.json").stat().st_mode
    assert {path.stat().st_mode for path in out.iterdir()} == {mode}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "file").touch()
    for place in (out, tmp_path / "mine", one, tmp_path / "file"):
        with pytest.raises(ValueError, match="is not empty and no conversion of"):
            export_run(other, place)
    (out / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty and no conversion of"):
        export_run(one, out)
    (out / "notes.txt").unlink()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    open_causal(out)


def test_a_full_disk_leaves_nothing_of_a_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    from bestiary.lm.conversion import export_run

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    run = run_folder(tmp_path / "run")
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left") as told:
        export_run(run, tmp_path / "out")
    assert told.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "empty", "half", "null", "deep"])
def test_a_damaged_folder_is_one_line(file: str, damage: str, tmp_path: Path) -> None:
    from bestiary.lm.conversion import export_run
    from bestiary.lm.huggingface import open_causal

    export_run(run_folder(tmp_path / "run"), tmp_path / "out")
    path = tmp_path / "out" / file
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(
        {"flip": bytes(flipped), "empty": b"", "half": content[: len(content) // 2], "null": b"null",
         "deep": b"[" * 100_000}[damage]
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"damaged") as told:
        open_causal(tmp_path / "out")
    assert str(path) in str(told.value)
    (tmp_path / "out" / "digests.json").unlink()
    if damage != "flip":
        with pytest.raises((ValueError, LookupError)) as told:
            open_causal(tmp_path / "out")
        assert "\n" not in str(told.value)
        assert str(tmp_path / "out") in str(told.value)


def test_weights_of_eight_bits_are_read(tmp_path: Path) -> None:
    """FP8 in blocks, as DeepSeek-V3 and others publish it: each block is stored as numbers of 8 bits and a scale."""
    from safetensors.torch import load_file, save_file

    from bestiary.lm.huggingface import open_causal, token_losses

    tokenizer = small_tokenizer()
    small_llama(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    contexts = np.random.default_rng(0).integers(0, len(tokenizer), (3, 9))
    exact = token_losses(open_causal(tmp_path)[0], contexts)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:
        blocks = [rows.split(8, dim=1) for rows in weights[name].split(8)]
        scales = torch.stack([torch.stack([block.abs().max() / 448 for block in row]) for row in blocks])
        divided = weights[name] / scales.repeat_interleave(8, 0).repeat_interleave(8, 1)
        weights |= {name: divided.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = token_losses(open_causal(tmp_path)[0], contexts)
    assert 1e-6 < np.abs(found - exact).max() < 0.05


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from bestiary.lm.huggingface import open_causal

    save_model("attention", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack model\.norm\.weight: they are of another model"):
        open_causal(tmp_path)


def test_code_is_run_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT-2 under a name that transformers does not know."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    from bestiary.lm.huggingface import open_causal

    folder, tokenizer = tmp_path / "model", small_tokenizer()
    small_gpt2(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "own.py").write_text(
        "import transformers\n"
        "class Config(transformers.GPT2Config):\n    model_type = 'own'\n"
        "class Own(transformers.GPT2LMHeadModel):\n    config_class = Config\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="--trust-remote-code"):
        open_causal(folder)
    model, _ = open_causal(folder, trust=True)
    assert type(model).__name__ == "Own"


@pytest.mark.slow
def test_a_folder_opens_in_a_process_that_has_not_imported_this(tmp_path: Path) -> None:
    model, tokens = save_model(PATTERNS[1], tmp_path / "model"), torch.arange(12).unsqueeze(0)
    code = f"""
import os, sys, torch
os.environ["HF_HOME"] = {str(tmp_path / "home")!r}
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "bestiary" not in sys.modules
if sys.argv[1] == "import":
    import bestiary.lm.huggingface
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=sys.argv[1] == "trust")
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "model")!r})
assert tokenizer.decode(tokenizer.encode({TEXT!r})) == {TEXT!r}
print(model(torch.arange(12).unsqueeze(0)).logits.sum().item())
"""
    for options in ("import", "trust"):
        run = subprocess.run([sys.executable, "-c", code, options], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert float(run.stdout) == pytest.approx(model.parallel(tokens).sum().item())


def write_task(folder: Path, asked: list[tuple[str, int]]) -> None:
    """A task of the harness named `mine` that chooses between two words after each text."""
    rows = [{"text": text, "choices": ["apple", "wolf"], "label": label} for text, label in asked]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "mine.yaml").write_text(f"""task: mine
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder / "rows.jsonl"}}}
  cache_dir: {folder / "cache"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}]
""")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("positions", [0, 64])
def test_a_long_text_is_read_whole_or_said_to_be_cut_and_no_request_is_run_twice(
    positions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    from bestiary.lm.harness import evaluate
    from bestiary.lm.huggingface import wrap_model
    from bestiary.lm.journal import Journal
    from bestiary.lm.reader import make_reader

    monkeypatch.setitem(SHAPE, "positions", positions)
    model, tokenizer = wrap_model(*build_model("gated_delta")), small_tokenizer()
    asked = [("The swan: a tiger. " * 600 + "An apple", 0), ("The oak is", 1)]
    write_task(tmp_path, asked)
    journal, seen = Journal(tmp_path / "journal.jsonl", {}), []
    options = {"include": tmp_path / "tasks", "journal": journal, "progress": lambda *counts: seen.append(counts)}
    (result,) = evaluate((model, tokenizer), ["mine"], **options)
    assert result.cut == (0 if positions == 0 else 2)
    assert (seen[0], seen[-1]) == ((0, 4), (4, 4))
    if positions == 0:
        read = make_reader(model, tokenizer)
        wanted = [read([(text, word)])[0].log_likelihood for text, _ in asked for word in (" apple", " wolf")]
        found = sorted(kept["answer"][0] for kept in journal.results.values())
        assert found == pytest.approx(sorted(wanted), rel=1e-4)
    monkeypatch.setattr(model, "forward", None)
    again = Journal(tmp_path / "journal.jsonl", {})
    assert evaluate((model, tokenizer), ["mine"], **options | {"journal": again}) == [result]
    for kept in (journal, again):
        kept.__exit__(None, None, None)


@pytest.mark.filterwarnings("default")
def test_repeats_of_a_sampled_request_are_samples_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from bestiary.lm.harness_model import HarnessModel
    from bestiary.lm.journal import Journal

    def ask(count: int, **how: Any) -> list[str]:
        options = {"until": ["\n\n\n"], "max_gen_toks": 6, **how}
        one = Instance("generate_until", {}, ("The swan:", options), 0, metadata=("mine", 0, count))
        with Journal(tmp_path / "journal.jsonl", {}) as journal:
            model = HarnessModel(journal, None, pretrained=gpt2, tokenizer=tokenizer, batch_size=1)
            torch.manual_seed(0)  # as the harness does
            return model.generate_until(count * [one])

    tokenizer = small_tokenizer()
    gpt2 = small_gpt2(len(tokenizer))
    for how in ({"do_sample": True, "temperature": 1.0}, {"temperature": 0.9}):
        few = ask(3, **how)
        more = ask(8, **how)  # goes on where it was stopped
        assert len(set(more)) == 8
        assert more[:3] == few
    size = (tmp_path / "journal.jsonl").read_text().count("\n")
    assert len(set(ask(8, do_sample=False))) == 1
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == size + 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_harness_measures_what_is_counted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from bestiary.lm.harness import evaluate
    from bestiary.lm.reader import make_reader

    save_model(PATTERNS[0], tmp_path / "model")
    asked = [("The swan: tiger", i % 2) for i in range(6)] + [("a piano", 1), ("an oak", 0)]
    write_task(tmp_path, asked)
    written = (tmp_path / "tasks" / "mine.yaml").read_text().replace("multiple_choice", "generate_until")
    written = written.replace("task: mine", "task: said").replace("metric: acc", "metric: exact_match")
    written = written.replace("doc_to_target: label", "doc_to_target: '{{choices[label]}}'").replace(
        "doc_to_choice", "#"
    )
    written += "generation_kwargs: {until: ['.'], max_gen_toks: 5}\n"
    (tmp_path / "tasks" / "said.yaml").write_text(written)
    said, found = evaluate(tmp_path / "model", ["said", "mine"], include=tmp_path / "tasks", limit=7)
    assert (said.task, said.metric, said.asked, said.value) == ("said", "exact_match", 7, 0.0)
    from bestiary.lm.huggingface import open_causal

    read = make_reader(*open_causal(tmp_path / "model"))
    right = 0
    for text, label in asked[:7]:
        apple, wolf = (score.log_likelihood for score in read([(text, " apple"), (text, " wolf")]))
        right += (wolf > apple) == bool(label)
    assert (found.task, found.metric, found.asked, found.shots) == ("mine", "acc", 7, 0)
    assert found.value == pytest.approx(right / 7)
    monkeypatch.setattr("bestiary.lm.harness.evaluate", partial(evaluate, include=tmp_path / "tasks"))
    told = command("evaluate", tmp_path / "model", "--tasks", "mine", "--limit", "7", folder=tmp_path)
    assert (told.status, told.trace) == (0, "")
    assert re.search(rf"\bmine .*\b{right / 7:.3f}\b", told.out)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(LookupError, match="the data of mine cannot be had"):
        evaluate(tmp_path / "model", ["mine"], include=tmp_path / "tasks")
    with pytest.raises(LookupError, match="no task 'swdee'.*did you mean 'swde'"):
        evaluate(tmp_path / "model", ["swdee"])
