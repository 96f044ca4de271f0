"""A step of training on text, against the same architecture written down in plain PyTorch.

python benchmarks/pretraining.py [rounds] [dim depth heads context batch vocab]
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from _bench import interleaved, machine, ratio, told
from _plain_gpt import GPT

from bestiary.lm.distributed import TrainingGroup
from bestiary.lm.loop import ExecutionConfig, TrainingLoop
from bestiary.lm.pretraining import Pretraining
from bestiary.lm.speed import measure_matmul_flops
from bestiary.training.train import keep_freed_memory


class Noise:
    """A corpus of random tokens."""

    def __init__(self, vocab: int) -> None:
        self.text = np.random.default_rng(0).integers(0, vocab, 2**20).astype(np.uint16)

    def tokens(self, split: str) -> np.ndarray:
        del split
        return self.text


def main(rounds: int = 9, dim: int = 192, depth: int = 6, heads: int = 3, *rest: int) -> None:
    context, batch, vocab = rest or (256, 8, 4096)
    keep_freed_memory()
    torch.set_num_threads(1)
    size: dict[str, Any] = {"dim": dim, "depth": depth, "context": context, "batch": batch, "vocab": vocab}
    recipe = Pretraining(corpus="noise", pattern=f"attention(heads={heads})", **size)
    folder = Path(tempfile.gettempdir())
    group = TrainingGroup(torch.device("cpu"))
    noise = cast(Any, Noise(vocab))
    ours = TrainingLoop(recipe, noise, folder, run=None, group=group, config=ExecutionConfig())
    plain = GPT(vocab, dim, depth, heads)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(0, vocab, (batch, context + 1))

    def update() -> None:
        ours.step = 1
        ours.train_step()

    def update_plain() -> None:
        plain(tokens[:, :-1], tokens[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    counts = [sum(weight.numel() for weight in model.parameters()) for model in (ours.model, plain)]
    print(f"pretraining: {size}, {heads} heads; parameters {counts}; {machine()}")
    taken = interleaved({"Bestiary": update, "plain PyTorch": update_plain}, rounds=rounds)
    print(told(taken))
    print(f"  plain PyTorch takes {ratio(taken, 'plain PyTorch', 'Bestiary'):.2f} times as long")
    peak = measure_matmul_flops(1, 2048)
    speed = ours.flops * batch * context / statistics.median(taken["Bestiary"])
    print(f"  {speed / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s in matrix products, attention as the whole square")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
