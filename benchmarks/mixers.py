"""Every mixer: time of a training pass, growth of that time with length, and speed of decoding.

    python benchmarks/mixers.py peers [names ...]   against the same layer of transformers or torch on a CPU, in turns
    python benchmarks/mixers.py decay               the recurrence with a decay per key against one per head
    python benchmarks/mixers.py length [names ...]  forward and backward from 256 to 8,192 tokens; fitted exponent
    python benchmarks/mixers.py decode [names ...]  tokens a second, one at a time, after 1,024 and 16,384 tokens

One thread, one layer of width 128. `length` and `decode` count the processor's time, which other programs on the
machine disturb less than the clock's; on one thread they are the same. In `length` the batch is
the same at every length, 4 sequences, or 1 where pairs of positions are compared; the exponent is that of the time of
a pass, fitted to all four lengths.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _bench import interleaved, machine, ratio, told
from torch import Tensor, nn

from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.spec import names, parse
from bestiary.training.train import keep_freed_memory

DIM, BATCH, LENGTHS, CONTEXTS = 128, 16, (256, 1024, 4096, 8192), (1024, 16384)


def train(mixer: nn.Module, call: Callable[[Tensor], Tensor], batch: int, length: int) -> Callable[[], None]:
    x = torch.randn(batch, length, DIM)

    def once() -> None:
        mixer.zero_grad()
        call(x).square().mean().backward()

    return once


def ours(name: str) -> Any:
    torch.manual_seed(0)
    return parse("mixers", name)[0].build(DIM)


def peers(chosen: list[str]) -> None:
    from _peers import peers as all_peers
    from transformers import logging

    logging.set_verbosity_error()
    print(f"forward and backward, batch {BATCH}, length 256, width {DIM}, CPU time; {machine()}")
    print(f"  {'ours':38} {'peer':29} {'peer ms':>8} {'ours ms':>8} {'ratio':>6}")
    for peer in all_peers(DIM, 256):
        if chosen and peer.ours.partition("(")[0] not in chosen:
            continue
        mine = ours(peer.ours)
        ways = {"ours": train(mine, mine.parallel, BATCH, 256), "peer": train(peer.layer, peer.call, BATCH, 256)}
        taken = interleaved(ways, rounds=5, clock=time.process_time)
        cells = "".join(f" {statistics.median(taken[way]) * 1e3:8.1f}" for way in ("peer", "ours"))
        name = type(peer.layer).__name__
        print(f"  {peer.ours:38} {name:29}{cells} {ratio(taken, 'peer', 'ours'):6.2f}", flush=True)


def decay() -> None:
    """Both drives with the same queries, keys and values, of width 128 in two heads."""

    def way(width: int, rewrite: bool) -> Callable[[], None]:
        def once() -> None:
            q, k, v = (torch.randn(32, 256, 2, 64, requires_grad=True) for _ in range(3))
            g = (-0.1 * torch.randn(32, 256, 2, width).exp()).requires_grad_()
            unit, beta = nn.functional.normalize(k, dim=-1), torch.rand(32, 256, 2, 1)
            drive = Drive(q, unit, v, g, rewrite=(-beta, g.exp() * unit) if rewrite else None)
            run(drive, torch.zeros(32, 2, 64, 64))[0].square().mean().backward()

        return once

    print(f"the recurrence forward and backward, batch 32, length 256, two heads of 64 keys; {machine()}")
    for name, rewrite in {"gated linear": False, "gated delta": True}.items():
        taken = interleaved({"per key": way(64, rewrite), "per head": way(1, rewrite)}, rounds=9)
        print(f"{name}\n{told(taken)}\n  ratio: {ratio(taken, 'per key', 'per head'):.2f}", flush=True)


def length(chosen: list[str]) -> None:
    print(f"microseconds a token, forward and backward, width {DIM}; {machine()}")
    print(f"  {'mixer':20}" + "".join(f"{n:>9,}" for n in LENGTHS) + "   exponent")
    for name in chosen:
        mixer, spent = ours(name), []
        batch = 1 if mixer.family in ("softmax", "sparse") else 4
        for n in LENGTHS:
            once, tries = train(mixer, mixer.parallel, batch, n), []
            once()
            for _ in range(3):
                begun = time.process_time()
                once()
                tries.append(time.process_time() - begun)
            spent.append(statistics.median(tries) / (batch * n) * 1e6)
        slope = statistics.linear_regression([math.log(n) for n in LENGTHS], [math.log(t) for t in spent]).slope
        print(f"  {name:20}" + "".join(f"{t:9.2f}" for t in spent) + f"   {1 + slope:8.2f}", flush=True)


@torch.no_grad()
def decode(chosen: list[str]) -> None:
    print(f"tokens a second, one sequence, width {DIM}; {machine()}")
    print(f"  {'mixer':20}" + "".join(f"after {n:>7,}" for n in CONTEXTS) + "     slower")
    for name in chosen:
        speeds = list(speeds_of(ours(name).eval()))
        print(f"  {name:20}" + "".join(f"{s:13,.0f}" for s in speeds) + f"   {speeds[0] / speeds[-1]:8.2f}", flush=True)


def speeds_of(mixer: Any) -> Iterator[float]:
    state, read, token = None, 0, torch.randn(1, 1, DIM)
    for context in CONTEXTS:
        while read < context:
            _, state = mixer(torch.randn(1, 512, DIM), state)
            read += 512
        begun, after = time.process_time(), state
        for _ in range(50):
            _, after = mixer(token, after)
        yield 50 / (time.process_time() - begun)


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    what, *chosen = sys.argv[1:] or ["peers"]
    match what:
        case "peers":
            peers(chosen)
        case "decay":
            decay()
        case "length":
            length(chosen or names("mixers"))
        case "decode":
            decode(chosen or names("mixers"))
        case _:
            sys.exit(f"{what!r} is none of peers, decay, length, decode")
