"""Whole models that are not ours: trained, scored and measured like ours, and refused in one sentence."""

from typing import Any

import pytest
import torch
from torch import nn

from bestiary import Model, WholeModel, memory, parse, score, train
from bestiary.tasks._task import SILENT
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import new_state

TASK = "mqar(vocab=32, length=16, pairs=2)"
SMALL: dict[str, Any] = {"train": TASK, "steps": 4, "every": 2, "batch": 4, "selection_rows": 20, "test_rows": 20}


class Tiny(nn.Module):
    """Tokens to logits, in one of the shapes that models return."""

    def __init__(self, vocab: int = 32, shape: str = "tensor") -> None:
        super().__init__()
        self.embed, self.head, self.shape = nn.Embedding(vocab, 8), nn.Linear(8, vocab), shape

    def forward(self, tokens: torch.Tensor) -> Any:
        logits = self.head(self.embed(tokens).cumsum(1))
        shapes = {"tensor": logits, "pair": (logits, None), "dict": {"logits": logits}, "pooled": logits[:, -1]}
        return shapes[self.shape]


@pytest.mark.parametrize("shape", ["tensor", "pair", "dict"])
def test_any_module_from_tokens_to_logits_is_trained_and_scored(shape: str) -> None:
    model = Tiny(shape=shape)
    before = model.head.weight.clone()
    found = list(train(clean("attention", **SMALL), model))
    assert [one.split for one in found if not one.facet] == ["train", "selection", "train", "selection", "test"]
    assert not torch.equal(model.head.weight, before)
    again = list(score(model, TASK, rows=20))
    assert [one._replace(step=4) for one in again] == [one for one in found if one.split == "test"]


def test_a_function_is_scored_too() -> None:
    task = parse("tasks", TASK)[0].build()

    def solve(tokens: torch.Tensor) -> torch.Tensor:
        answers = task.solve(tokens)
        return nn.functional.one_hot(answers.clamp(min=0), 32).float() * (answers != SILENT).unsqueeze(-1)

    found = next(iter(score(solve, TASK, rows=20)))
    assert found.right == found.asked > 0


def test_one_of_ours_within_is_trained_as_ours() -> None:
    recipe: Recipe = clean("base_conv", **SMALL, dim=8)
    ours, theirs = recipe.build(), recipe.build()

    class Logits(nn.Module):
        def __init__(self, model: Model) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.model(tokens)[0]

    one, two = list(train(recipe, ours)), list(train(recipe, Logits(theirs)))
    assert [m.right for m in one] == [m.right for m in two]
    torch.testing.assert_close([m.loss for m in one], [m.loss for m in two])
    torch.testing.assert_close(ours.embed.weight, theirs.embed.weight)


def test_training_goes_on_from_a_saved_state() -> None:
    torch.manual_seed(1)
    recipe, model, saved = clean("attention", **SMALL), Tiny(), []
    first = [one for one in train(recipe, model, after_step=lambda s: saved.append(copied(s.tensors())))]
    torch.manual_seed(1)
    assert list(train(recipe, Tiny(), saved=saved[1])) == first[2:]


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_cutting_a_sequence_changes_nothing_and_the_tokens_are_the_state() -> None:
    model, tokens = WholeModel(Tiny()), torch.randint(32, (2, 9))
    whole, _ = model(tokens)
    head, state = model(tokens[:, :4])
    tail, _ = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    assert memory(lambda: WholeModel(Tiny()), time=50).numbers == 50


class Tied(nn.Module):
    """A model whose head is its embedding, or of the same size."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(32, 8), nn.Linear(8, 32), nn.Linear(8, 32, bias=False)
        if tied:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_neither_embeddings_nor_heads(tied: bool) -> None:
    model = Tied(tied=tied)
    muon, rest = new_state(clean("attention", **SMALL, optimizer="muon"), model).optimizers
    assert (type(muon).__name__, type(rest).__name__) == ("Muon", "AdamW")
    assert [id(weight) for group in muon.param_groups for weight in group["params"]] == [id(model.hidden.weight)]


def test_scoring_leaves_a_model_in_the_mode_it_was_in() -> None:
    model = Tiny()
    model.embed.eval()
    list(score(model, TASK, rows=20))
    assert model.training
    assert not model.embed.training


def test_only_the_first_logits_are_read() -> None:
    assert WholeModel(Tiny(40), vocab=32).hidden(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 32)


@pytest.mark.parametrize(
    ("model", "task", "said"),
    [
        (Tiny(shape="pooled"), TASK, r"gives the shape \(20, 32\): logits of shape \(batch, time, vocab\) are wanted"),
        (lambda _: None, TASK, "gives no tensor"),
        (WholeModel(Tiny(), vocab=16), TASK, "has 32 tokens and the model 16: build it with 32"),
        (Model(16, dim=8, depth=1, pattern="attention"), TASK, "has 32 tokens and the model 16"),
        (Tiny(), "vector_retrieval", "reads vectors, which a whole model from tokens to logits cannot do"),
        (Tiny(), "compression", "answers from the last position alone"),
    ],
)
def test_what_cannot_be_trained_is_refused(model: Any, task: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(score(model, task, rows=20))


def gpt2(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 64, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 1, "initializer_range": 0.1}
    plain = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    special = dict.fromkeys(("bos_token_id", "eos_token_id"))
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**(size | plain | special | changes)))


@pytest.mark.hf
def test_a_vocabulary_that_is_too_small_is_said_before_training() -> None:
    with pytest.raises(ValueError, match="has 32 tokens and the model 30: build it with 32"):
        list(train(clean("attention", **SMALL), gpt2(vocab_size=30)))


@pytest.mark.slow
@pytest.mark.hf
def test_gpt2_learns_mqar() -> None:
    recipe = clean("attention", train="mqar(vocab=64, length=32, pairs=4)", batch=64, steps=800, selection_rows=128)
    model = gpt2()
    found = [one for one in train(recipe, model) if one.split == "test" and not one.facet]
    assert found[0].right / found[0].asked >= 0.99
    assert found[0].step <= 600
