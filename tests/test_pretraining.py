"""Training on text: what is read when, what a run leaves, and that it goes on exactly where it was stopped."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from in_process import command
from small_text import loss_rows, read_log, read_until, small_recipe, write_corpus
from torch.nn import functional as F

from bestiary.corpus.corpus import Corpus, open_corpus
from bestiary.corpus.tokenizers import open_tokenizer
from bestiary.lm.distributed import TrainingGroup, training_group
from bestiary.lm.generation import continue_text, generate
from bestiary.lm.loop import ExecutionConfig, TrainingLoop, learning_rate, pretrain, read_sequences
from bestiary.lm.pretraining import Pretraining, open_run
from bestiary.lm.suites import SIZES, count_parameters, suite
from bestiary.model import Model, SwiGLU
from bestiary.spec import parse


@pytest.fixture
def text(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus")


def test_a_recipe_of_a_pretraining_survives_its_file_and_is_named_by_what_it_says() -> None:
    given = small_recipe(pattern="2*base_conv, attention(heads=2)")
    assert Pretraining(**json.loads(json.dumps(given.json()))) == given
    assert given.json()["kind"] == "pretraining"
    assert given.tokens == 20 * 4 * 16
    assert len({given.key, small_recipe().key, small_recipe(floor=0.2).key, small_recipe(corpus="x").key}) == 4
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        small_recipe(step=3)
    for betas in (0.9, None, "89"):
        with pytest.raises(ValueError, match=r"give a list, as in betas=\[0.9, 0.95\]"):
            small_recipe(betas=betas)


def test_an_epoch_reads_every_context_once_from_an_offset_and_in_an_order_of_its_own() -> None:
    given, text = small_recipe(), np.arange(1000, dtype=np.uint16)
    count = len(text) // given.context - 1
    starts = []
    for epoch in range(2):
        read = read_sequences(text, given, range(epoch * count, (epoch + 1) * count))
        assert (read.diff(dim=1) == 1).all()
        assert read.shape == (count, given.context + 1)
        starts.append(read[:, 0].tolist())
        assert sorted(starts[-1]) == list(range(min(starts[-1]), min(starts[-1]) + count * 16, 16))
    orders = [[start - min(read) for start in read] for read in starts]
    assert orders[0] != orders[1]
    assert min(starts[0]) != min(starts[1])
    whole = read_sequences(text, given, range(50, 90))
    assert torch.equal(
        torch.cat([read_sequences(text, given, range(50, 63)), read_sequences(text, given, range(63, 90))]), whole
    )
    assert not torch.equal(read_sequences(text, small_recipe(seed=1), range(50, 90)), whole)


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine_to_its_floor() -> None:
    given = small_recipe(steps=104, warmup=4, rate=1.0, floor=0.1)
    assert [learning_rate(given, step) for step in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert learning_rate(given, 54) == pytest.approx(0.55)
    assert learning_rate(given, 104) == pytest.approx(0.1)


def test_swiglu_is_its_formula() -> None:
    made, x = SwiGLU(20).double(), torch.randn(3, 5, 20, dtype=torch.float64)
    gate, up = made.gate_up.weight.split(56)
    assert torch.allclose(made(x), (F.silu(x @ gate.T) * (x @ up.T)) @ made.out.weight.T)
    assert not [name for name, _ in made.named_parameters() if "bias" in name]


def test_a_trained_model_opens_and_has_the_loss_that_its_log_says(text: Corpus, tmp_path: Path) -> None:
    rows = list(pretrain(small_recipe(), text, tmp_path))
    place = tmp_path / small_recipe().key
    assert rows == read_log(place)
    assert [(row["step"], row["split"]) for row in rows[-3:]] == [(20, "train"), (20, "selection"), (20, "test")]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    assert list(pretrain(small_recipe(), text, tmp_path)) == []
    opened, model = open_run(place)
    assert opened == small_recipe()
    assert not model.training
    given = torch.from_numpy(text.contexts("test", 16, 20))
    loss = F.cross_entropy(model(given[:, :-1])[0].flatten(0, 1), given[:, 1:].flatten())
    assert rows[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (place / "tokenizer" / "tokenizer.json").is_file()
    assert not (place / "checkpoint").exists()


def test_a_step_is_that_of_a_plain_loop(text: Corpus, tmp_path: Path) -> None:
    made = small_recipe(steps=4, clip=0.5, weight_decay=0.5, betas=[0.6, 0.9])
    theirs = made.build()
    weights = list(theirs.parameters())
    groups = [{"params": [w for w in weights if w.ndim >= 2], "weight_decay": 0.5}]
    groups += [{"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1.0, betas=(0.6, 0.9))
    with training_group("none", "cpu") as group:
        ours = TrainingLoop(made, text, tmp_path, run=None, group=group, config=ExecutionConfig())
        for step in range(1, 5):
            ours.step = step
            ours.train_step()
            tokens = read_sequences(text.tokens("train"), made, range(4 * step - 4, 4 * step))
            plain.zero_grad()
            logits, _ = theirs(tokens[:, :-1])
            F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            assert torch.nn.utils.clip_grad_norm_(weights, 0.5) > 0.5
            for parameters in plain.param_groups:
                parameters["lr"] = learning_rate(made, step)
            plain.step()
    for one, two in zip(ours.model.parameters(), weights, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_the_speed_counts_the_steps_that_the_device_has_yet_to_carry_out(
    text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here they take 8 seconds whenever they are waited for, and nothing else takes any time."""
    now, add = [0.0], TrainingGroup.all_reduce

    def wait(self: TrainingGroup, x: torch.Tensor) -> torch.Tensor:
        now[0] += 8
        return add(self, x)

    monkeypatch.setattr(TrainingGroup, "all_reduce", wait)
    monkeypatch.setattr("bestiary.lm.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))
    recipe = small_recipe(steps=6, every=3)
    rows = list(pretrain(recipe, text, tmp_path, save_every=2))
    speeds = [row["tokens_per_second"] for row in rows if row["split"] == "train"]
    assert speeds == pytest.approx([3 * recipe.batch * recipe.context / 16] * 2)


def test_parts_of_a_batch_change_rounding_alone(text: Corpus, tmp_path: Path) -> None:
    few = small_recipe(steps=8, every=4)
    whole = loss_rows(list(pretrain(few, text, tmp_path / "whole")))
    parts = loss_rows(list(pretrain(few, text, tmp_path / "parts", accumulate=4)))
    assert [loss for *_, loss in parts] == pytest.approx([loss for *_, loss in whole], rel=1e-4)
    with pytest.raises(ValueError, match="4 sequences a step do not fall into 3"):
        list(pretrain(small_recipe(), text, tmp_path / "thirds", accumulate=3))


def test_a_router_that_counts_passes_is_not_trained_in_parts(text: Corpus, tmp_path: Path) -> None:
    given = {"steps": 1, "every": 1, "dim": 8, "depth": 1}
    opening = small_recipe(pattern="serial('short_conv, selected(open=4, ramp=7)')", **given)
    for how in ({"accumulate": 2}, {"parallel": "ddp"}, {"parallel": "fsdp", "accumulate": 2}):
        with pytest.raises(ValueError, match="counts training passes"):
            next(pretrain(opening, text, tmp_path / "runs", **how))
    done = command(
        *("pretrain", "selected(open=4, ramp=7)", "dim=8", "depth=1", "context=16", "batch=4"),
        *("--accumulate", 2, "--corpus", text.folder, "--store", "runs"),
        folder=tmp_path,
    )
    assert done.status == 2
    assert "counts training passes" in done.err
    assert not (tmp_path / "runs").exists()
    wrong = command("pretrain", "attention", "--parallel", "dpp", "--corpus", text.folder, folder=tmp_path)
    assert (wrong.status, wrong.err) == (2, "bestiary: parallel='dpp': it is none, ddp, fsdp\n")
    assert list(pretrain(opening, text, tmp_path / "runs"))
    assert list(pretrain(small_recipe(pattern="selected", **given), text, tmp_path / "runs", accumulate=2))


@pytest.mark.parametrize("pattern", ["attention(heads=2)", "gated_delta(heads=2), base_conv"])
def test_a_stopped_run_goes_on_to_the_bit_and_has_no_row_twice(text: Corpus, tmp_path: Path, pattern: str) -> None:
    given = small_recipe(pattern=pattern, dropout=0.1)
    whole = loss_rows(list(pretrain(given, text, tmp_path / "whole")))
    read_until(pretrain(given, text, tmp_path / "cut", save_every=7), 10)
    read_until(pretrain(given, text, tmp_path / "cut", save_every=7), 15)
    rest = list(pretrain(given, text, tmp_path / "cut", save_every=7))
    assert rest[0]["step"] == 15
    assert loss_rows(read_log(tmp_path / "cut" / given.key)) == whole


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from bestiary.corpus.corpus import open_corpus
from bestiary.lm.loop import pretrain
from small_text import loss_rows, read_log, read_until, small_recipe, write_corpus
for row in pretrain(small_recipe(), open_corpus({corpus!r}), {folder!r}, save_every=7):
    if row["step"] == 15:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(text: Corpus, tmp_path: Path) -> None:
    whole = loss_rows(list(pretrain(small_recipe(), text, tmp_path / "whole")))
    names = {"tests": str(Path(__file__).parent), "corpus": str(text.folder), "folder": str(tmp_path / "cut")}
    done = subprocess.run([sys.executable, "-c", KILLED.format(**names)], check=False)
    assert done.returncode == -signal.SIGKILL
    place = tmp_path / "cut" / small_recipe().key
    assert max(row["step"] for row in read_log(place)) == 15
    list(pretrain(small_recipe(), text, tmp_path / "cut"))
    assert loss_rows(read_log(place)) == whole


def test_a_run_that_goes_on_has_no_weights_of_the_attempt_before(text: Corpus, tmp_path: Path) -> None:
    place = tmp_path / small_recipe().key
    for attempt in range(2):
        rows = pretrain(small_recipe(), text, tmp_path)
        next(rows)
        assert not (place / "weights.safetensors").exists()
        if attempt == 0:
            (place / "weights.safetensors").write_bytes(b"as if it had been killed before it was done")
        rows.close()
    with pytest.raises(LookupError, match="holds no weights: the run is not done"):
        open_run(place)


def test_a_diverged_run_ends_as_such_and_does_not_open(text: Corpus, tmp_path: Path) -> None:
    given = small_recipe(rate=1e30, clip=None, warmup=0)
    rows = list(pretrain(given, text, tmp_path))
    assert math.isnan(rows[-1]["loss"])
    assert json.loads((tmp_path / given.key / "done").read_text())["outcome"] == "diverged"
    with pytest.raises(LookupError, match="holds no weights: the run is diverged"):
        open_run(tmp_path / given.key)


def test_a_run_belongs_to_one_worker_and_one_corpus(text: Corpus, tmp_path: Path) -> None:
    rows = pretrain(small_recipe(), text, tmp_path)
    next(rows)
    with pytest.raises(ValueError, match="is being carried out by .* process"):
        next(pretrain(small_recipe(), text, tmp_path))
    rows.close()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="the recipe is for corpus other"):
        next(pretrain(small_recipe(corpus="other"), text, tmp_path))
    with pytest.raises(ValueError, match="5 tokens are fewer than the 60"):
        next(pretrain(small_recipe(vocab=5), text, tmp_path))
    with pytest.raises(LookupError, match="is no run"):
        open_run(tmp_path)


@pytest.mark.parametrize("split", ["selection", "test"])
def test_what_could_not_be_scored_is_refused_before_it_is_trained(text: Corpus, tmp_path: Path, split: str) -> None:
    short = {**text.manifest, "splits": text.manifest["splits"] | {split: {"tokens": 16}}}
    np.zeros(16, np.uint16).tofile(text.folder / f"{split}.bin")
    (text.folder / "manifest.json").write_text(json.dumps(short))
    given = open_corpus(text.folder)
    with pytest.raises(ValueError, match=f"{split} of .* has 16 tokens: one context of 16 needs 17"):
        next(pretrain(small_recipe(), given, tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_corpus_without_its_tokenizer_is_refused_before_training(text: Corpus, tmp_path: Path) -> None:
    (text.folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        next(pretrain(small_recipe(), text, tmp_path / "models"))


def test_bfloat16_trains_to_about_the_same_loss(text: Corpus, tmp_path: Path) -> None:
    exact, rough = (
        list(pretrain(small_recipe(precision=p, steps=8), text, tmp_path))[-1] for p in ("float32", "bfloat16")
    )
    assert rough["loss"] != exact["loss"]
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.02)


PATTERN = "attention(heads=2, window=6), gated_delta(heads=2), hyena(taps=32), selected(select='repeat')"


def test_a_state_goes_on_as_reading_everything_again_does() -> None:
    model = Model(40, dim=16, depth=4, pattern=parse("mixers", PATTERN), channel="swiglu").double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that what is likeliest depends on what was read
    prompt = torch.randint(40, (2, 9))
    again = prompt
    for _ in range(20):
        with torch.no_grad():
            again = torch.cat([again, model.parallel(again)[:, -1:].argmax(-1)], dim=1)
    found = generate(model, prompt, 20, temperature=0.0)
    assert torch.equal(found, again)
    assert len(found[:, 9:].unique()) > 3


def test_drawn_tokens_follow_the_seed_and_are_among_the_likeliest() -> None:
    model = Model(40, dim=16, depth=1, pattern=parse("mixers", "attention"), channel="swiglu")
    prompt = torch.randint(40, (1, 600))
    one, same, other = (generate(model, prompt, 12, top_k=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    logits = model.parallel(one)[:, 599:-1]
    rank = (logits > logits.gather(-1, one[:, 600:, None])).sum(-1)
    assert rank.max() == 2
    with pytest.raises(ValueError, match="an empty prompt"):
        generate(model, prompt[:, :0], 1)


def test_the_smallest_temperature_is_greedy_and_one_that_is_no_number_is_refused() -> None:
    model, prompt = Model(40, dim=16, depth=1, pattern=parse("mixers", "attention")), torch.randint(40, (2, 9))
    greedy = generate(model, prompt, 8, temperature=0.0)
    for temperature in (1e-40, 5e-324):
        assert torch.equal(generate(model, prompt, 8, temperature=temperature, top_k=5), greedy)
    for temperature in (math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match="must be a finite number, at least 0"):
            generate(model, prompt, 8, temperature=temperature)
    with torch.no_grad():
        model.embed.weight[7] = math.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="logits are not numbers"):
            generate(model, prompt, 8, temperature=temperature)


def test_tokens_that_the_tokenizer_lacks_are_never_written() -> None:
    model, prompt = Model(400, dim=16, depth=1, pattern=parse("mixers", "attention")), torch.randint(40, (4, 9))
    assert generate(model, prompt, 30).max() >= 40
    for options in ({}, {"temperature": 0.0}, {"top_k": 390}):
        assert generate(model, prompt, 30, vocab=40, **options).max() < 40


def test_what_is_written_is_joined_to_the_prompt_as_the_tokenizer_joins_words(tmp_path: Path) -> None:
    """A decoder as that of Llama 2 drops the space in front of the first word that it is given."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {"</s>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "▁b": 5}
    library = Library(models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "b")]))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer, model = open_tokenizer(tmp_path), Model(6, dim=8, depth=1, pattern=parse("mixers", "attention"))
    for prompt, read in (("a b", [4, 5]), ("", [0])):
        tokens = generate(model, torch.tensor([read]), 40, seed=1)[0].tolist()
        written = continue_text(model, tokenizer, prompt, 40, seed=1)
        assert (prompt or "</s>") + written == tokenizer.decode(tokens)
    assert continue_text(model, tokenizer, "a b", 1, temperature=0.0) == " b", "untrained, it repeats itself"


def check_sizes(size: str) -> None:
    laptop = SIZES[size].training["context"] == 256
    models = suite("zoology", size, corpus="x", vocab=4096 if laptop else 50257)
    assert [*models][:6] == ["attention", "long_conv", "h3", "hyena", "rwkv4", "base_conv"]
    wanted = count_parameters(models["attention"], embeddings=not laptop)
    assert wanted == pytest.approx(float(size[:-1]) * {"M": 1e6, "B": 1e9}[size[-1]], rel=0.25)
    for name, made in models.items():
        assert count_parameters(made, embeddings=not laptop) == pytest.approx(wanted, rel=0.15), name
        kinds = [part.name for part in made.pattern]
        layers = [kinds[i % len(kinds)] for i in range(made.depth)]
        assert len(layers) - layers.count("base_conv") == 3 or not name.startswith("hybrid"), name


def test_the_models_of_a_suite_are_equally_large() -> None:
    check_sizes("1M")
    with pytest.raises(LookupError, match="there is no size '2M'"):
        suite("zoology", "2M", corpus="x", vocab=4096)


@pytest.mark.slow
@pytest.mark.parametrize("size", [size for size in SIZES if size != "1M"])
def test_the_models_of_a_suite_are_equally_large_at_every_size(size: str) -> None:
    check_sizes(size)
