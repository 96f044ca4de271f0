"""Losses of a Hugging Face model: token by token in blocks that a cache holds, against all logits at once.

A GPT-2 of two layers of width 64 with random weights and the vocabulary of GPT-2, so that the head is most of the work.

    python benchmarks/token_losses.py
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from _bench import interleaved, machine, ratio, told
from transformers import GPT2Config, GPT2LMHeadModel

from bestiary.lm import huggingface
from bestiary.lm.huggingface import token_losses

VOCAB, CONTEXTS, LENGTH, ROUNDS = 50_257, 16, 256, 5


def main() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=2, n_positions=LENGTH)
    model, contexts = (
        GPT2LMHeadModel(config).eval(),
        np.random.default_rng(0).integers(0, VOCAB, (CONTEXTS, LENGTH + 1)),
    )

    def in_blocks(block: int) -> Callable[[], Any]:
        def losses() -> Any:
            with mock.patch.object(huggingface, "BLOCK", block):
                return token_losses(model, contexts)

        return losses

    ways = {"all at once": in_blocks(2**62), "in blocks": in_blocks(huggingface.BLOCK)}
    assert np.array_equal(*(way() for way in ways.values()))
    print(f"{CONTEXTS} contexts of {LENGTH} tokens, vocabulary {VOCAB:,}; {machine()}; CPU time")
    taken = interleaved(ways, rounds=ROUNDS, clock=time.process_time)
    print(told(taken))
    print("  " + ", ".join(f"{way}: {CONTEXTS * LENGTH / median(t):,.0f} tokens/s" for way, t in taken.items()))
    print(f"  ratio {ratio(taken, 'all at once', 'in blocks'):.2f}")


if __name__ == "__main__":
    main()
