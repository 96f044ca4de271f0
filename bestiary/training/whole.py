"""A whole model that is not ours, from tokens to logits, trained and scored by the same recipes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.model import Model
from bestiary.ops.positions import Where, take
from bestiary.ops.precision import upcast
from bestiary.spec import Spec
from bestiary.tasks._task import SILENT, Batch, Tokens


class WholeModel(nn.Module):
    """Any module or function from tokens (batch, time) to logits (batch, time, vocab), as `train` and `score` use it.

    The logits may be the output itself, its first part, or its `logits`, as with the models of transformers. With
    `vocab`, only the first so many logits are read. `train(recipe, module)` and `score(module, task)` make this of a
    module by themselves; of the recipe they use all but what describes a model.

        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=1))
        for measurement in train(clean("attention", train="mqar(vocab=64, length=32, pairs=4)"), model):
            print(measurement)
    """

    def __init__(self, module: Callable[..., Any], *, vocab: int | None = None) -> None:
        super().__init__()
        self.module, self.vocab = module, vocab

    def forward(self, tokens: Tokens, state: Tensor | None = None) -> tuple[Float[Tensor, "batch time vocab"], Tensor]:
        """Logits at every position, and all tokens so far, which are read again with those that follow."""
        known = tokens if state is None else torch.cat([state, tokens], dim=1)
        return self.hidden(known)[:, known.shape[1] - tokens.shape[1] :], known

    def hidden(self, tokens: Tokens, where: Where | None = None) -> Float[Tensor, "batch _ vocab"]:
        """The logits of whole sequences at the positions `where`, or at all. Raises ValueError if there are none."""
        given = find_logits(self.module(tokens))
        if given is None or given.shape[:2] != tokens.shape[:2] or given.ndim != 3:
            shape = "no tensor" if given is None else f"the shape {tuple(given.shape)}"
            raise ValueError(
                f"{type(self.module).__name__} on tokens of shape {tuple(tokens.shape)} gives {shape}: logits of shape "
                "(batch, time, vocab) are wanted, as the output, its first part or its `logits`"
            )
        return take(given[..., : self.vocab], where)

    parallel = hidden

    def read_out(
        self,
        hidden: Float[Tensor, "answers vocab"],
        targets: Int[Tensor, " answers"],
        *,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The summed loss in nats, and how many answers are right; targets that are SILENT count for nothing."""
        del dtype
        loss = F.cross_entropy(upcast(hidden), targets, ignore_index=SILENT, reduction="sum")
        return loss, (hidden.argmax(-1) == targets).sum()

    def answer(self, batch: Batch) -> tuple[Float[Tensor, "answers vocab"], Int[Tensor, " answers"]]:
        """Logits and targets of all questions, row by row."""
        where = batch.question_positions()
        logits, targets = upcast(self.hidden(batch.tokens, where)), batch.targets.gather(1, where)
        asked = targets != SILENT
        return logits[asked], targets[asked]

    def check(self, tasks: Sequence[Spec]) -> None:
        """Raises ValueError if a task cannot be read or answered by such a model."""
        config = getattr(self.module, "config", None)
        known = self.vocab or getattr(config, "vocab_size", None)
        for part in tasks:
            task = part.build()
            if task.features or task.bottleneck:
                what = "reads vectors" if task.features else "answers from the last position alone"
                raise ValueError(f"{part} {what}, which a whole model from tokens to logits cannot do")
            if known is not None and task.vocab > known:
                raise ValueError(f"{part} has {task.vocab} tokens and the model {known}: build it with {task.vocab}")


AnyModel = Model | WholeModel


def as_model(model: Callable[..., Any], tasks: Sequence[Spec]) -> AnyModel:
    """A model as `train` and `score` use it, made of any function from tokens to logits. Raises ValueError."""
    if isinstance(model, Model):
        for part in tasks:
            if (vocab := part.build().vocab) > model.embed.num_embeddings:
                raise ValueError(f"{part} has {vocab} tokens and the model {model.embed.num_embeddings}")
        return model
    whole = model if isinstance(model, WholeModel) else WholeModel(model)
    whole.check(tasks)
    return whole


def find_logits(given: Any) -> Tensor | None:
    """The logits in what a model returns; None if there are none."""
    given = getattr(given, "logits", given)
    given = given.get("logits") if isinstance(given, dict) else given
    given = given[0] if isinstance(given, tuple | list) and given else given
    return given if isinstance(given, Tensor) else None
