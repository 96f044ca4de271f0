"""The model around the mixers: the law, asked positions, channels, positions, memory."""

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bestiary.model import Layer, Memory, Model, embedding, measure_state, memory, memory_after
from bestiary.spec import Spec, parse
from bestiary.tasks._task import SILENT, Batch, stream
from bestiary.tasks.mqar import MQAR

PATTERN = parse("mixers", "gated_delta, attention(window=8), base_conv")


def model(**changes: Any) -> Model:
    return Model(50, **({"dim": 32, "depth": 3, "pattern": PATTERN, "positions": 40} | changes)).double()


def mark_slow(*names: str) -> list[Any]:
    """Parameters of slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_what_a_model_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="3 mixers do not fit into 2 layers: give depth=3 or more"):
        model(depth=2)


class Keeps(nn.Module):
    """Returns its input and a state, or what stands for them."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def forward(self, x: torch.Tensor) -> Any:
        return self.found(x)


def test_a_state_that_cannot_be_counted_is_not_counted_as_nothing() -> None:
    assert memory(lambda: Keeps(lambda x: (x, (x, [None, 3]))), time=5, dim=2).numbers == 10
    for found, said in (
        (lambda x: (x, {"past": x}), "this one holds dict"),
        (lambda x: (x, (x, 0.5)), "this one holds float"),
        (lambda x: {"output": x, "state": x}, r"returns dict, where \(output, state\) is expected"),
    ):
        with pytest.raises(ValueError, match=said):
            memory(lambda found=found: Keeps(found), time=5, dim=2)


@pytest.mark.parametrize("channel", ["mlp", "none", "copy"])
def test_cutting_a_text_changes_no_logit(channel: str) -> None:
    made, tokens = model(channel=channel), torch.randint(50, (2, 20))
    whole, _ = made(tokens)
    head, state = made(tokens[:, :7])
    tail, _ = made(tokens[:, 7:], state)
    torch.testing.assert_close(torch.cat([head, tail], dim=1), whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("channel", ["mlp", "none", "copy"])
def test_answers_are_the_logits_at_the_questions(channel: str) -> None:
    made, batch = model(channel=channel), MQAR(vocab=50, length=40, pairs=4).sample(6, stream("test"))
    logits, targets = made.answer(batch)
    asked = batch.targets != SILENT
    torch.testing.assert_close(logits, made(batch.tokens)[0][asked], rtol=1e-8, atol=1e-8)
    assert torch.equal(targets, batch.targets[asked])


def test_rows_may_ask_unequally_often() -> None:
    tokens, targets = torch.randint(50, (3, 9)), torch.full((3, 9), SILENT)
    targets[0, [1, 5, 8]], targets[2, 0] = torch.tensor([3, 4, 5]), 7
    logits, found = model().answer(Batch(tokens, targets, {}))
    assert found.tolist() == [3, 4, 5, 7]
    assert logits.shape == (4, 50)


def test_copying_adds_the_normalised_stream() -> None:
    made, x = (
        model(channel="copy", depth=1, positions=0, pattern=PATTERN[:1]),
        torch.randn(2, 5, 32, dtype=torch.float64),
    )
    layer = made.layers[0]
    assert isinstance(layer, Layer)
    mixed = x + layer.mixer.parallel(layer.before_mixer(x))
    torch.testing.assert_close(layer.parallel(x), mixed + torch.nn.functional.layer_norm(mixed, (32,)))


def test_learned_positions_tell_equal_tokens_apart_and_run_out() -> None:
    blind, made = model(depth=0, positions=0), model(depth=0)
    same = torch.full((1, 6), 3)
    assert torch.allclose(blind(same)[0], blind(same)[0][:, :1])
    assert not torch.isclose(made(same)[0][:, 0], made(same)[0][:, 1]).all()
    with pytest.raises(ValueError, match="40 positions, the input needs 41"):
        made(torch.zeros(1, 41, dtype=torch.long))


def test_the_model_draws_no_weight_of_a_mixer_again() -> None:
    torch.manual_seed(0)
    made = Model(50, dim=32, depth=2, pattern=parse("mixers", "rwkv4, mamba"), channel="none")
    torch.manual_seed(0)
    embed = embedding(50, 32)
    mixers = [found.build(32) for found in parse("mixers", "rwkv4, mamba")]
    assert torch.equal(made.embed.weight, embed.weight)
    for layer, alone in zip(made.layers, mixers, strict=True):
        assert isinstance(layer, Layer)
        for one, two in zip(layer.mixer.parameters(), alone.parameters(), strict=True):
            assert torch.equal(one, two)


def test_dropout_acts_while_training_only() -> None:
    made, tokens = model(dropout=0.5), torch.randint(50, (2, 9))
    assert not torch.equal(made.train()(tokens)[0], made(tokens)[0])
    assert torch.equal(made.eval()(tokens)[0], made(tokens)[0])


def test_memory_counts_what_must_be_kept() -> None:
    def build() -> Model:
        return Model(50, dim=32, depth=2, pattern=parse("mixers", "attention(window=8), based(features=4)"))

    window, features = 2 * 32 * 7, 15 * 33
    assert memory(build, time=1000) == Memory(window + features, 4 * (window + features))
    assert memory(build, time=2).numbers == 2 * 32 * 2 + features
    assert memory(lambda: Model(50, dim=32, depth=1, pattern=parse("mixers", "h3(state=4)")), time=9) == Memory(
        3 * 32 + 32 * 2 * 2, 4 * 3 * 32 + 8 * 32 * 2
    )


@pytest.mark.parametrize("channel", ["mlp", "swiglu", "copy", "none"])
@pytest.mark.parametrize(("rows", "time"), [(2, 0), (0, 0), (0, 5)])
def test_no_tokens_give_no_logits_and_leave_the_state(channel: str, rows: int, time: int) -> None:
    made, before = model(channel=channel), torch.randint(50, (rows, 6))
    nothing, rest = torch.randint(50, (rows, time)), torch.randint(50, (rows, 4))
    targets = torch.full((rows, time), SILENT)
    assert made.parallel(nothing).shape == (rows, time, 50)
    assert made.answer(Batch(nothing, targets, {}))[0].shape == (0, 50)
    for state in (None, made(before)[1]):
        logits, after = made(nothing, state)
        assert logits.shape == (rows, time, 50)
        assert after.time == (0 if state is None else 6) + time
        if not time:
            torch.testing.assert_close(made(rest, after)[0], made(rest, state)[0], rtol=0, atol=0)


def test_a_model_that_answers_from_its_last_output_has_none_without_tokens() -> None:
    made = model(bottleneck=9)
    assert made.parallel(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 50)
    assert made.parallel(torch.zeros(0, 9, dtype=torch.long)).shape == (0, 9, 50)


def sizes_on_the_way(mixer: Spec, time: int) -> list[int]:
    """The numbers that the state holds after 1, 2, ... `time` tokens, read one by one."""
    state, sizes = None, []
    with torch.device("meta"):
        built = mixer.build(32)
        for _ in range(time):
            _, state = built(torch.zeros(1, 1, 32), state)
            sizes.append(measure_state(state).numbers)
    return sizes


@pytest.mark.parametrize("name", ["log_linear", *mark_slow("ttt_linear", "ttt_mlp", "titans", "nsa")])
def test_memory_is_the_most_that_a_state_holds_on_the_way_and_not_what_it_holds_at_the_end(name: str) -> None:
    (mixer,) = parse("mixers", name)
    sizes = sizes_on_the_way(mixer, 64)
    assert memory(lambda: mixer.build(32), time=64, dim=32).numbers == max(sizes) > sizes[-1]
    assert memory(lambda: Model(20, dim=32, depth=1, pattern=(mixer,)), time=64).numbers == max(sizes)


@pytest.mark.slow
def test_a_state_can_be_measured_after_another_library_has_replaced_a_constructor() -> None:
    code = """
import torch
import bestiary.model
real = torch.linspace
torch.linspace = lambda *given, **options: real(*given, **options)  # as transformers does while it loads a model
with torch.device("meta"):
    torch.empty(1)
torch.linspace = real
from bestiary import memory, spec
print(memory(lambda: spec("mixers", "hyena").build(8), time=4, dim=8).numbers)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SHORTENED = [
    *("lstm", "slstm", "slstm(conv=1)", "slstm(conv=9)", "log_linear", "log_linear(conv=1)", "log_linear(conv=7)"),
    "ttt_linear(minibatch=3)",
    *mark_slow("titans", "titans(chunk=1)", "titans(chunk=5, conv=8)", "ttt_linear"),
    *mark_slow("ttt_mlp", 'ttt_mlp(minibatch=5, backbone="transformer")'),
]


@pytest.mark.parametrize("text", SHORTENED)
def test_a_mixer_names_a_short_sequence_after_which_its_state_has_the_same_size(text: str) -> None:
    (mixer,) = parse("mixers", text)
    sizes, built = sizes_on_the_way(mixer, 40), mixer.build(32)
    shorter = [built.equal_state(time) for time in range(1, 41)]
    assert [sizes[length - 1] for length in shorter] == sizes
    assert all(length <= time for time, length in enumerate(shorter, start=1))
    assert max(shorter) < 40
    assert memory_after(built.to("meta"), 40, 32).numbers == sizes[-1]


@pytest.mark.slow
def test_the_memory_of_a_model_is_that_of_its_layers_after_the_same_length() -> None:
    pattern = parse("mixers", 'titans(chunk=4), attention, log_linear, selected(select="repeat")')
    made = partial(Model, 20, dim=32, depth=4, pattern=pattern)
    with torch.device("meta"):
        stepped, state, sizes = made(), None, []
        for _ in range(24):
            _, state = stepped(torch.zeros(1, 1, dtype=torch.long), state)
            sizes.append(measure_state(state).numbers)
    assert memory(made, time=24).numbers == max(sizes[time - 1] for time in (15, 23, 24))
    with pytest.raises(ValueError, match="the model has 8 positions, the input needs 9"):
        memory(partial(made, positions=8), time=9)
