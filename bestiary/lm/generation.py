"""Continuing a prompt, one token at a time; nothing is kept of what was read but the model's state."""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bestiary.corpus.tokenizers import Tokenizer
from bestiary.lm.reader import as_step, encode_text, max_tokens
from bestiary.model import Model
from bestiary.tasks._task import stream

SEGMENT = 512  # tokens of the prompt read at a time, so that few logits exist at once


def continue_text(model: Any, tokenizer: Any, prompt: str, count: int, **options: Any) -> str:
    """What a model of ours, or a causal one of transformers, writes after a prompt: `count` tokens, as text.

    The model reads the prompt as it is, with the token in front that a tokenizer of transformers puts there; of an
    empty one, what begins a document. `options` are those of `generate`, which also says what is raised.
    """
    if isinstance(tokenizer, Tokenizer):
        first, vocab, decode = tokenizer.separator, tokenizer.vocab, tokenizer.decode
    else:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        vocab, decode = len(tokenizer), partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    start = encode_text(tokenizer, prompt) or [first]
    device = next(model.parameters()).device
    tokens = generate(model, torch.tensor([start], device=device), count, vocab=vocab, **options)
    return decode(tokens[0].tolist())[len(decode(start)) :]  # of the new tokens alone, some decoders drop a space


@torch.no_grad()
def generate(
    model: Any,
    tokens: Int[Tensor, "batch time"],
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    vocab: int | None = None,
) -> Int[Tensor, "batch longer"]:
    """The prompts followed by `count` new tokens each, sampled from the `top_k` likeliest, by a model of either kind.

    At temperature 0 it is always the likeliest token. The same seed samples the same tokens. With `vocab`, only tokens
    below it are written: a model may have more of them than its tokenizer. Raises ValueError for an empty prompt, a
    temperature that is no number from 0 on, a `top_k` below 1, more tokens than the model has positions for, and for a
    model whose logits are not numbers.
    """
    if tokens.shape[1] == 0:
        raise ValueError("an empty prompt says nothing to go on from; give the separator of documents")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature}: it must be a finite number, at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k}: sample from at least 1 token")
    limit = max_tokens(model)
    if limit is not None and tokens.shape[1] + count - 1 > limit:
        raise ValueError(f"{tokens.shape[1]} tokens and {count} more, the model reads {limit}: ask for fewer")
    model.eval()
    step, rng, state, logits = as_step(model), stream("generate", seed), None, None
    for part in tokens.split(SEGMENT, dim=1) if isinstance(model, Model) else [tokens]:
        logits, state = step(part, state)
    for i in range(count):
        assert logits is not None
        new = sample_tokens(logits[:, -1, :vocab], rng, temperature=temperature, top_k=top_k)
        tokens = torch.cat([tokens, new], dim=1)
        if i < count - 1:
            logits, state = step(new, state)
    return tokens


def sample_tokens(
    logits: Float[Tensor, "batch vocab"], rng: torch.Generator, *, temperature: float, top_k: int | None
) -> Int[Tensor, "batch 1"]:
    """One token for each row of logits. Raises ValueError if they are not numbers."""
    if bool(logits.isnan().any()):
        raise ValueError("the model's logits are not numbers (nan): it diverged, or its weights are damaged")
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None and top_k < logits.shape[1]:
        lowest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    below_best = (logits - logits.amax(-1, keepdim=True)).double()  # so that no temperature is too small
    probabilities = (below_best / temperature).softmax(-1)
    return torch.multinomial(probabilities.cpu(), 1, generator=rng).to(logits.device)
