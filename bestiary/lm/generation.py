"""Continuing a prompt, one token at a time; nothing is kept of what was read but the model's state."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bestiary.model import Model
from bestiary.tasks._task import stream

SEGMENT = 512  # tokens of the prompt read at a time, so that few logits exist at once


@torch.no_grad()
def generate(
    model: Model,
    tokens: Int[Tensor, "batch time"],
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    vocab: int | None = None,
) -> Int[Tensor, "batch longer"]:
    """The prompts followed by `count` new tokens each, sampled from the `top_k` likeliest.

    At temperature 0 it is always the likeliest token. The same seed samples the same tokens. With `vocab`, only tokens
    below it are written: a model may have more of them than its tokenizer. Raises ValueError for an empty prompt, a
    temperature that is no number from 0 on, a `top_k` below 1, and for a model whose logits are not numbers.
    """
    if tokens.shape[1] == 0:
        raise ValueError("an empty prompt says nothing to go on from; give the separator of documents")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature}: it must be a finite number, at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k}: sample from at least 1 token")
    model.eval()
    rng, state, logits = stream("generate", seed), None, None
    for part in tokens.split(SEGMENT, dim=1):
        logits, state = model(part, state)
    for i in range(count):
        assert logits is not None
        new = sample_tokens(logits[:, -1, :vocab], rng, temperature=temperature, top_k=top_k)
        tokens = torch.cat([tokens, new], dim=1)
        if i < count - 1:
            logits, state = model(new, state)
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
