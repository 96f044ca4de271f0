"""Attentions of long sequences: blockwise or selected, against what they replace and against attention of all to all.

    python benchmarks/attention.py          forward and backward from 256 to 8,192 tokens; fitted exponent
    python benchmarks/attention.py decode   tokens a second after 16,384 tokens

One thread, one mixer of width 128 with two heads, one sequence. The ways take turns in one process; told is the median
of processor time. What they replace: selections as masks over all keys; PaTH as a recurrence with one-hot values, which
is a square of all tokens; decoding with caches that are copied for every token. The squares stop at 4,096 tokens. The
exponent is that of the time of a pass, fitted to all lengths; `last` is that of the last doubling. Decoding is shown
beside the rate at which as many bytes as its state has are read by a sum.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from _bench import interleaved, machine
from torch import Tensor

from bestiary.mixers import dsa
from bestiary.mixers._softmax import merge_heads
from bestiary.mixers.path import PaTH
from bestiary.model import measure_state
from bestiary.ops import growth, selection
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.spec import parse
from bestiary.training.train import keep_freed_memory

DIM, LENGTHS, SQUARES, ROUNDS = 128, (256, 512, 1024, 2048, 4096, 8192), 4096, 5
SELECTING = ("moba", "nsa", "big_bird", "dsa")
PAST, PIECE, TOKENS = 16_384, 2048, 32


class Masked(AbstractContextManager[None]):
    """Selections are masks over all keys."""

    def __enter__(self) -> None:
        self.patches = [patch.object(module, "MASKED", 10**9) for module in (selection, dsa)]
        for one in self.patches:
            one.start()

    def __exit__(self, *_: object) -> None:
        for one in self.patches:
            one.stop()


class Nearest(AbstractContextManager[None]):
    """DSA reads the nearest tokens without scoring any."""

    def __enter__(self) -> None:
        self.patch = patch.object(dsa.DSA, "choose", staticmethod(self.choose))
        self.patch.start()

    def __exit__(self, *_: object) -> None:
        self.patch.stop()

    @staticmethod
    def choose(q: Tensor, weight: Tensor, where: Tensor, marks: Tensor) -> Tensor:
        del weight, marks
        return (where.unsqueeze(-1) - torch.arange(32)).clamp(min=-1).expand(len(q), -1, -1)


def path_by_recurrence(mixer: PaTH, x: Tensor) -> Tensor:
    """PaTH with all transported keys in one state, into which each token writes a column of its own."""
    (q, k, v, w, beta), count = mixer.parts(x, None)[0], x.shape[1]
    q, k, w, beta = (z.transpose(1, 2) for z in (q, k, w, beta))
    place = torch.eye(count).unsqueeze(1).expand(len(x), count, mixer.heads, count)
    logits, _ = run(Drive(q, k, place, erase=(-beta * w, w)), x.new_zeros(len(x), mixer.heads, mixer.head, count))
    logits = logits.transpose(1, 2).masked_fill(~torch.ones(count, count, dtype=torch.bool).tril(), -torch.inf)
    return mixer.out(merge_heads((logits * mixer.head**-0.5).softmax(-1) @ v))


def passes(length: int) -> dict[str, Callable[[], None]]:
    """A pass forward and backward of each mixer, as it is and as it was."""
    x = torch.randn(1, length, DIM)

    def learning(
        mixer: Any, compute: Callable[[Tensor], Tensor], way: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Callable[[], None]:
        def once() -> None:
            mixer.zero_grad()
            with way():
                compute(x).square().mean().backward()

        return once

    ways = {}
    for name in ("attention(heads=2)", "path", *SELECTING):
        torch.manual_seed(0)
        mixer: Any = parse("mixers", name)[0].build(DIM)
        ways[name] = learning(mixer, mixer.parallel)
        if length <= SQUARES and name in SELECTING:
            ways[f"{name}, masked"] = learning(mixer, mixer.parallel, Masked)
        elif length <= SQUARES and name == "path":
            ways[f"{name}, a square"] = learning(mixer, lambda x, mixer=mixer: path_by_recurrence(mixer, x))
        if name == "dsa":
            ways[f"{name}, without scores"] = learning(mixer, mixer.parallel, Nearest)
    return ways


def measure_passes() -> None:
    print(f"microseconds a token, forward and backward, width {DIM}; {machine()}")
    print(f"  {'attention':20}" + "".join(f"{n:>9,}" for n in LENGTHS) + "   exponent     last")
    spent: dict[str, list[float]] = {}
    for n in LENGTHS:
        for name, taken in interleaved(passes(n), rounds=ROUNDS, clock=time.process_time).items():
            spent.setdefault(name, []).append(statistics.median(taken) / n * 1e6)
    logs = [math.log(n) for n in LENGTHS]
    for name, times in spent.items():
        slope = statistics.linear_regression(logs[: len(times)], [math.log(t) for t in times]).slope
        last = math.log(times[-1] / times[-2]) / math.log(2)
        row = "".join(f"{t:9.2f}" for t in times).ljust(9 * len(LENGTHS))
        print(f"  {name:20}{row}   {1 + slope:8.2f} {1 + last:8.2f}")


def decoder(name: str, shared: bool) -> tuple[Callable[[], None], int]:
    """A function that decodes some tokens after a long past, and the bytes of the state by then."""
    torch.manual_seed(0)
    mixer: Any = parse("mixers", name)[0].build(DIM).eval()
    state, x = None, torch.randn(1, PIECE, DIM)
    can_share = growth.can_share if shared else lambda *_: False

    def once() -> None:
        nonlocal state
        with torch.no_grad(), patch.object(growth, "can_share", can_share):
            for t in range(TOKENS):
                _, state = mixer(x[:, t : t + 1], state)

    with torch.no_grad():
        for _ in range(PAST // PIECE):
            _, state = mixer(x, state)
    return once, measure_state(state).bytes


def measure_decoding() -> None:
    print(f"tokens a second after {PAST:,} tokens, width {DIM}; {machine()}")
    names = ("attention(heads=2)", "latent_attention", "differential", "forgetting_attention", "path", *SELECTING)
    print(f"  {'attention':24}{'copied':>9}{'now':>9}{'state, MB':>12}{'read alone':>12}{'share':>8}")
    for name in names:
        (copied, _), (now, size) = decoder(name, False), decoder(name, True)
        as_large = torch.ones(size // 4)
        ways = {"copied": copied, "now": now, "read": lambda x=as_large: [x.sum() for _ in range(TOKENS)]}
        taken = interleaved(ways, rounds=ROUNDS, clock=time.process_time)
        rates = {way: TOKENS / statistics.median(times) for way, times in taken.items()}
        row = f"{rates['copied']:9.0f}{rates['now']:9.0f}{size / 1e6:12.1f}{rates['read']:12.0f}"
        print(f"  {name:24}{row}{rates['now'] / rates['read']:8.2f}")


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case []:
            measure_passes()
        case ["decode"]:
            measure_decoding()
        case other:
            sys.exit(f"{other} is neither nothing nor decode")
