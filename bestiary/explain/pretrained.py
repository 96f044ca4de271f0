"""Language models of others taken apart, and rows of words to ask them: so `explain` opens any causal model.

A row states pairs of nouns and then states them again in another order, so that each key of the second half asks for
the word that followed it in the first:

     tiger cello. wolf ruby. horse apple. wolf ruby. horse apple. tiger cello.

Each word is one token with the space before it, so that keys and values can be exchanged as in any other task.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.explain.blocks import Blocks
from bestiary.lm.questions import word_list
from bestiary.lm.reader import encode_text
from bestiary.mixers._mixer import Features
from bestiary.tasks._task import SILENT, Batch, Task, Tokens

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm")
AT_ONCE = 16  # rows that a model reads at a time


class WordPairs(Task):
    """Pairs of nouns in the tokens of a tokenizer, stated twice; the second time asks. No task of the catalogue."""

    family: ClassVar = "recall"

    def __init__(self, tokenizer: Any, *, pairs: int = 6) -> None:
        found = {noun: encode_text(tokenizer, f"a {noun}") for noun in word_list("nouns")}
        start = encode_text(tokenizer, "a")
        words = [tokens[-1] for tokens in found.values() if tokens[:-1] == start]
        stop = encode_text(tokenizer, "a.")
        if len({*words}) < 4 * pairs or stop[:-1] != start:
            raise ValueError(
                f"{len({*words})} nouns are one token each for this tokenizer, {4 * pairs} are needed, and a full stop"
            )
        self.words, self.stop, self.pairs = torch.tensor(sorted({*words})), stop[-1], pairs
        self.first = start[:-1]  # what the tokenizer puts in front
        self.vocab, self.length = int(self.words.max()) + 1, len(self.first) + 6 * pairs
        self.chance, self.plateau = 1 / len(self.words), 1 / pairs

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        order = torch.rand(count, len(self.words), generator=rng).argsort(1)[:, : 2 * self.pairs]
        stated = self.words[order].view(count, self.pairs, 2)
        turn = torch.rand(count, self.pairs, generator=rng).argsort(1)
        asked = stated.gather(1, turn.unsqueeze(2).expand(-1, -1, 2))
        both = torch.cat([stated, asked], 1)
        rows = torch.cat([both, torch.full_like(both[:, :, :1], self.stop)], 2).flatten(1)
        front = torch.tensor(self.first, dtype=rows.dtype).expand(count, -1)
        targets = torch.full_like(rows, SILENT)
        targets[:, 3 * self.pairs :: 3] = asked[:, :, 1]
        silent = torch.full_like(front, SILENT)
        return Batch(torch.cat([front, rows], 1), torch.cat([silent, targets], 1), {})

    def solve(self, tokens: Tokens) -> Tensor:
        answers = torch.full_like(tokens, SILENT)
        for i, row in enumerate(tokens.tolist()):
            after: dict[int, int] = {}
            for at, token in enumerate(row[:-1]):
                if after.get(token, self.stop) != self.stop and token != self.stop:
                    answers[i, at] = after[token]
                after.setdefault(token, row[at + 1])
        return answers


class Pretrained(nn.Module):
    """A causal model of transformers as a stack of layers, whose streams can be read and replaced.

    Raises ValueError for a model whose layers cannot be found, or whose logits are not those of its last stream.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        self.layers = max(stacks, key=len, default=nn.ModuleList())
        named = {name.rpartition(".")[2]: module for name, module in model.base_model.named_children()}
        norms = [named[name] for name in NORMS if name in named]
        self.head = model.get_output_embeddings()
        if len(self.layers) < 2 or len(norms) != 1 or self.head is None:
            raise ValueError(f"the layers of {type(model).__name__} cannot be found")
        self.norm = norms[0]
        tokens = torch.arange(2, 8).unsqueeze(0)
        with torch.no_grad():
            found = self.logits_of(self.streams(tokens)[-1])
            expected = model(input_ids=tokens, use_cache=False).logits.to(found.dtype)
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
            raise ValueError(f"the logits of {type(model).__name__} are not those of its last layer, norm and head")

    def logits_of(self, x: Tensor) -> Tensor:
        """The logits of what the norm before the head reads."""
        found = self.head(self.norm(x))
        return found if found.dtype == torch.float64 else found.float()

    @torch.no_grad()
    def streams(self, tokens: Tokens, layer: int | None = None, x: Features | None = None) -> list[Features]:
        """What each layer and the head read; from `layer` on with x in place of what it would read."""
        parts = [
            self.streams_of_few(rows, layer, None if x is None else x[i * AT_ONCE : (i + 1) * AT_ONCE])
            for i, rows in enumerate(tokens.split(AT_ONCE))
        ]
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def streams_of_few(self, tokens: Tokens, layer: int | None, x: Features | None) -> list[Features]:
        """`streams` of rows that are read at once."""
        seen: list[Features] = []

        def look(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            here = given[0] if given else named["hidden_states"]
            if len(seen) == layer and x is not None:
                here = x.to(here.dtype)
            seen.append(here)
            return ((here, *given[1:]), named) if given else (given, named | {"hidden_states": here})

        hooks = [part.register_forward_pre_hook(look, with_kwargs=True) for part in (*self.layers, self.norm)]
        try:
            self.model.base_model(input_ids=tokens, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def as_blocks(self) -> Blocks:
        """The model taken apart; its layers are run within the whole model alone."""
        return Blocks(
            embed=lambda tokens: self.streams(tokens)[0],
            blocks=[no_block] * len(self.layers),
            head=self.logits_of,
            mixers=(),
            streams=self.streams,
        )

    def answer(self, batch: Batch) -> tuple[Float[Tensor, "answers vocab"], Tensor]:
        """Logits and targets of all questions, row by row."""
        asked = batch.targets != SILENT
        return self.logits_of(self.streams(batch.tokens)[-1][asked]), batch.targets[asked]


def no_block(x: Features, state: Any, tokens: Tokens) -> tuple[Features, Any]:
    """Raises ValueError: a layer of such a model is not run by itself."""
    del x, state, tokens
    raise ValueError("a layer of a model of transformers is not run by itself")
