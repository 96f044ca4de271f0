"""Native kernels against PyTorch operations: layers, and every form of the recurrence at several sizes.

    python benchmarks/native.py layers [names ...]  one layer of width 128, forward and backward
    python benchmarks/native.py small [names ...]   the same, batch 64, length 64, width 64: small experiments
    python benchmarks/native.py forms               the recurrence alone; where `auto` leaves it to products of matrices
    python benchmarks/native.py peers               Mamba against the CPU path of transformers

The processor's time on one thread, the ways in turns; medians over rounds, and the ratio of a round, its median.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _bench import interleaved, machine, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.ops import backend
from bestiary.ops._native import pays
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.spec import parse
from bestiary.training.train import keep_freed_memory

BATCHES = {"mamba": 64}  # else 16
LAYERS = (
    *("mamba", "rwkv7", "kda", "gla", "gated_delta", "delta_net", "comba", "gdn2", "delta_product", "rwkv6"),
    *("mamba2", "mamba3", "retnet", "linear_attention", "based", "mlstm", "hgrn2", "gsa", "mesa_net"),
    *("longhorn", "rg_lru", "min_gru", "min_lstm", "rwkv4"),
)
SIZES = ((2, 16, 16), (2, 32, 32), (2, 32, 64), (2, 48, 96), (2, 64, 64), (4, 128, 64), (1, 273, 65), (2, 128, 128))


def layers(names: list[str], *, batch: int | None, length: int, dim: int) -> None:
    print(f"forward and backward, length {length}, width {dim}; {machine()}")
    rate = product_rate()
    print(
        f"products of 1,024 x 1,024 matrices: {rate / 1e9:.0f} GFLOP/s; `limit` is the layer's linear maps at that rate"
    )
    print(f"  {'layer':20}{'batch':>6}{'torch ms':>10}{'native ms':>10}{'ratio':>7}{'limit ms':>10}")
    for name in names:
        size = BATCHES.get(name, 16) if batch is None else batch
        layer, x = parse("mixers", name)[0].build(dim), torch.randn(size, length, dim)

        def once(how: str, layer: Any = layer, x: Tensor = x) -> None:
            backend.use(how)
            layer.zero_grad()
            layer.parallel(x).square().mean().backward()

        print(
            f"  {name:20}{size:6}"
            + told({how: lambda how=how: once(how) for how in ("torch", "native")})
            + f"{product_flops(lambda: once('native')) / rate * 1e3:10.1f}",
            flush=True,
        )


def product_rate() -> float:
    """Operations a second of a product of large matrices, on the processor's clock."""
    a = torch.randn(1024, 1024)
    (taken,) = interleaved({"product": lambda: a @ a}, rounds=9, clock=time.process_time).values()
    return 2 * 1024**3 / min(taken)


def product_flops(once: Callable[[], None]) -> int:
    """Operations of the products of matrices in a call; those within native kernels are not among them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        once()
    return counter.get_total_flops()


def told(ways: dict[str, Callable[[], None]], rounds: int = 5) -> str:
    """Median milliseconds of both ways, and how many times longer the first takes."""
    taken = interleaved(ways, rounds=rounds, clock=time.process_time)
    one, other = ways
    middle = "".join(f"{sorted(t)[len(t) // 2] * 1e3:10.1f}" for t in taken.values())
    return middle + f"{ratio(taken, one, other):7.2f}"


def forms() -> None:
    print(f"the recurrence forward and backward, batch 16, length 256; {machine()}")
    print(f"  {'decay':10}{'erasing':9}{'heads':>6}{'key':>5}{'value':>6}", end="")
    print(f"{'torch ms':>10}{'native ms':>10}{'ratio':>7}  auto")
    for heads, key, value in SIZES:
        for decay in ("none", "per head", "per key"):
            for erasing in ("no", "rewrite", "erase"):
                given = drive(decay, erasing, heads, key, value)
                leaves: list[Tensor] = []
                given.map(lambda x, leaves=leaves: (leaves.append(x.requires_grad_()), x)[1])
                state = torch.zeros(16, heads, key, value)

                def once(how: Any, given: Drive = given, leaves: Any = leaves, state: Tensor = state) -> None:
                    y, _ = run(given, state, backend=how)
                    torch.autograd.grad(y, leaves, torch.ones_like(y))

                row = f"  {decay:10}{erasing:9}{heads:6}{key:5}{value:6}"
                ways = {how: lambda how=how, once=once: once(how) for how in ("torch", "native")}
                print(row + told(ways) + f"  {'native' if pays(given) else 'torch'}", flush=True)


def drive(decay: str, erasing: str, heads: int, key: int, value: int) -> Drive:
    q, k, b = (F.normalize(torch.randn(16, 256, heads, key), dim=-1) for _ in range(3))
    v, beta = torch.randn(16, 256, heads, value), torch.rand(16, 256, heads, 1)
    g = None if decay == "none" else -torch.rand(16, 256, heads, 1 if decay == "per head" else key)
    erase = (-beta * b, b) if erasing == "erase" else None
    return Drive(q, k, v, g, erase, (-beta, b) if erasing == "rewrite" else None)


def peers() -> None:
    from transformers import MambaConfig, logging
    from transformers.models.mamba.modeling_mamba import MambaMixer

    logging.set_verbosity_error()
    print(f"Mamba, forward and backward, batch 8, length 256, width 128; {machine()}")
    x, ours, theirs = torch.randn(8, 256, 128), parse("mixers", "mamba")[0].build(128), None
    theirs = MambaMixer(MambaConfig(hidden_size=128), 0)

    def once(layer: nn.Module, call: Callable[[Tensor], Tensor], how: str) -> None:
        backend.use(how)
        layer.zero_grad()
        call(x).square().mean().backward()

    for how in ("torch", "native"):
        ways = {"theirs": lambda: once(theirs, theirs, "auto"), how: lambda how=how: once(ours, ours.parallel, how)}
        print(f"  transformers, bestiary by {how:8}" + told(ways, rounds=3), flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    what, *chosen = sys.argv[1:] or ["layers"]
    match what:
        case "layers":
            layers(chosen or list(LAYERS), batch=None, length=256, dim=128)
        case "small":
            layers(chosen or list(LAYERS), batch=64, length=64, dim=64)
        case "forms":
            forms()
        case "peers":
            peers()
        case _:
            sys.exit(f"{what!r} is none of layers, small, forms, peers")
