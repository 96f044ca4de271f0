"""How much of what a machine can do a training on text uses: model FLOPs utilisation, MFU (Chowdhery et al., 2022)."""

import time
from functools import lru_cache

import torch

from bestiary.lm.pretraining import Pretraining
from bestiary.spec import Spec, locate

PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}  # bfloat16, dense, of data sheets


def peak_flops(device: torch.device) -> float | None:
    """Operations per second that a device can do: in bfloat16 for a known GPU, in float32 as measured for a CPU."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)
    return measure_matmul_flops(torch.get_num_threads()) if device.type == "cpu" else None


@lru_cache
def measure_matmul_flops(threads: int, size: int = 1024) -> float:
    """Operations per second in float32 matrix products on this CPU; the best of ten, as other programs may be running.

    `threads` only keeps measurements with different numbers of threads apart.
    """
    del threads
    a, b, seconds = torch.randn(size, size), torch.randn(size, size), []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def flops_per_token(recipe: Pretraining, parameters: int) -> float:
    """Operations of training on one token: 6 for each parameter, and 12 dim context for each attention layer.

    The whole square of scores counts, masked or not, or the part within a window. States and convolutions do not.
    """
    layers = [recipe.pattern[i % len(recipe.pattern)] for i in range(recipe.depth)]
    positions = sum(
        min(recipe.context, dict(layer.options).get("window") or recipe.context) for layer in attention_layers(layers)
    )
    return 6.0 * parameters + 12 * recipe.dim * positions


def attention_layers(layers: list[Spec]) -> list[Spec]:
    """The layers of the softmax family."""
    return [layer for layer in layers if getattr(locate("mixers", layer.name), "family", None) == "softmax"]
