"""The recipe of a language model trained on text, and the trained model read back from the folder of its run.

<folder>/<key>/recipe.json          the model, its training and its corpus, with "kind": "pretraining"
               origin.json          versions, host and time of the last attempt
               claim-0/             one folder for each attempt, as in every store of runs
               log.jsonl            one row for each measurement of the loss
               checkpoint/          what a stopped run resumes from
               tokenizer/           a copy of the tokenizer of the corpus
               weights.safetensors  the trained model
               done                 written last, with the digests of the other files
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from bestiary.lm.files import load_weights
from bestiary.runs.files import read_object
from bestiary.runs.store import verified
from bestiary.spec import Depth, Mixers, Natural, Positive
from bestiary.training.recipe import Amount, Share, StrictModel, list_as_tuple

if TYPE_CHECKING:  # torch is imported when a model is built, not when a recipe is written down
    from bestiary.model import Model

log = logging.getLogger(__name__)

FORMAT = 1  # raised when pretraining changes its meaning, so that old runs are not taken for new ones

Parallel = Literal["none", "ddp", "fsdp"]


class Pretraining(StrictModel):
    """A language model, and how it is trained to predict the next token of a corpus.

    The defaults are those of Based (Arora et al., 2024): AdamW with betas 0.9 and 0.95, weight decay 0.1 on matrices,
    a linear warm-up of 200 steps, a cosine down to a tenth of the rate, and gradients clipped at norm 1.
    """

    kind: Literal["pretraining"] = "pretraining"
    corpus: str  # the hash of its content
    vocab: Positive
    pattern: Mixers
    dim: Positive = 128
    depth: Depth = 4
    channel: Literal["mlp", "swiglu", "none", "copy"] = "swiglu"
    positions: Natural = 0  # learned position vectors; 0 is none
    dropout: Share = 0.0  # of the embeddings, while training

    context: Positive = 256  # tokens read at a time
    batch: Positive = 32  # sequences a step
    steps: Positive = 1000
    rate: Amount = 8e-4  # the highest learning rate
    floor: Share = 0.1  # of the rate, at the end of the cosine
    warmup: Natural = 200  # steps of linear rise
    weight_decay: Amount = 0.1
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip: Amount | None = 1.0  # the largest norm of the gradient
    seed: Natural = 0  # of the weights, the order of the text and the dropout
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products; weights are always float32

    every: Positive = 100  # steps between measurements on the selection split
    selection_rows: Positive = 64  # contexts
    test_rows: Positive = 512

    if TYPE_CHECKING:  # specs are given as text, too

        def __init__(self, **given: Any) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def betas_from_list(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "betas": list_as_tuple(given["betas"])} if "betas" in given else given

    @model_validator(mode="after")
    def check_consistency(self) -> "Pretraining":
        if not self.pattern:
            raise ValueError("a pretraining needs at least one mixer")
        if 0 < self.positions < self.context:
            raise ValueError(f"{self.positions} positions are fewer than the {self.context} tokens of a context")
        return self

    @property
    def tokens(self) -> int:
        """How many tokens are predicted in training."""
        return self.steps * self.batch * self.context

    def build(self) -> "Model":
        """The model, its initial weights drawn from the seed alone."""
        import torch

        from bestiary.model import Model
        from bestiary.tasks._task import stream

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream("weights", self.seed).initial_seed())
            return Model(
                self.vocab,
                dim=self.dim,
                depth=self.depth,
                pattern=self.pattern,
                channel=self.channel,
                positions=self.positions,
                dropout=self.dropout,
            )

    def json(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As stored, with every option resolved; `Pretraining(**stored)` is this recipe again."""
        return self.fields() | {"pattern": [part.stored for part in self.pattern]}

    @property
    def key(self) -> str:
        """A name for the run: equal exactly for equal recipes, wherever a user's own files lie."""
        identity = {"format": FORMAT, **self.fields(), "pattern": [part.identity for part in self.pattern]}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    def fields(self) -> dict[str, Any]:
        """Every field by its name, betas as a list as in JSON."""
        return {name: getattr(self, name) for name in type(self).model_fields} | {"betas": list(self.betas)}


def open_run(folder: Path | str) -> "tuple[Pretraining, Model]":
    """The recipe and the trained model in the folder of a run. Raises LookupError if it has none,
    ValueError, naming the file, if one is damaged.
    """
    run = Path(folder)
    weights = run / "weights.safetensors"
    if not (run / "recipe.json").is_file():
        raise LookupError(f"{run} is no run: it holds no recipe.json")
    tokenizer = sorted(str(path.relative_to(run)) for path in (run / "tokenizer").rglob("*") if path.is_file())
    checked = all([verified(run, file) for file in ("recipe.json", *tokenizer)])
    stored = read_object(run / "recipe.json")
    if stored.get("kind") != "pretraining":
        raise LookupError(f"{run} is a run on a task, not on text; train one with: bestiary pretrain")
    if not weights.is_file():
        done = run / "done"
        state = read_object(done).get("outcome") if done.is_file() else "not done; go on with it first"
        raise LookupError(f"{run} holds no weights: the run is {state}")
    if not (verified(run, weights.name) and checked):
        log.warning("%s records no digests of its weights, so they are used unchecked", run)
    recipe = Pretraining.read(stored)
    model = recipe.build()
    load_weights(model, weights)
    return recipe, model.eval()
