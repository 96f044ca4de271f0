"""How much of what a machine can do a training on text does: model FLOPs utilisation (Chowdhery et al., 2022)."""

import time
from functools import lru_cache

import torch

from bestiary.lm.pretraining import Pretraining
from bestiary.spec import Spec, locate

PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}  # bfloat16, dense, of data sheets


def peak(device: torch.device) -> float | None:
    """Operations a second that the device can do: in bfloat16 of a known GPU, in float32 as measured of a CPU."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((most for known, most in PEAKS.items() if known in name), None)
    return matrix_rate(torch.get_num_threads()) if device.type == "cpu" else None


@lru_cache
def matrix_rate(threads: int, size: int = 1024) -> float:
    """Operations a second in float32 matrix products here, the best of ten: others may be at work."""
    del threads
    a, b, taken = torch.randn(size, size), torch.randn(size, size), []
    for _ in range(10):
        begun = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - begun)
    return 2 * size**3 / min(taken)


def work(recipe: Pretraining, parameters: int) -> float:
    """Operations of training on a token: 6 for each parameter, and 12 dim context for each attention layer.

    The whole square of scores counts, masked or not, or the window of one; states and convolutions do not.
    """
    layers = [recipe.pattern[i % len(recipe.pattern)] for i in range(recipe.depth)]
    attended = sum(
        min(recipe.context, dict(part.options).get("window") or recipe.context) for part in attending(layers)
    )
    return 6.0 * parameters + 12 * recipe.dim * attended


def attending(layers: list[Spec]) -> list[Spec]:
    return [part for part in layers if getattr(locate("mixers", part.name), "family", None) == "softmax"]
