"""Language models of equal size with different mixers, to be trained on the same text in the same order.

`zoology` is the suite of Arora et al. (2023): attention as in Llama (rotary, SwiGLU), the mixers it compares, and
hybrids of BaseConv with three attention layers, evenly spread, which attend everywhere, within a window, or at
selected positions only. All have the channel network of Llama, and as many layers as give each about as many parameters
as attention has. Widths, depths and the laptop sizes are ours. A size up to 10M counts parameters without embeddings,
from 70M on with them and a vocabulary of 50,257, as published sizes do.

From 70M on, a model is trained by the recipe of Based (Arora et al., 2024): 20,000 steps of 256 x 2,048 tokens at a
rate of 8e-4, in bfloat16. The paper does not say its own; its models are of 1.4B parameters trained five times longer.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any, NamedTuple

from bestiary.lm.pretraining import Pretraining
from bestiary.spec import nearest


class Size(NamedTuple):
    """The shape of the attention model; how many layers give the others its size; and how all are trained."""

    dim: int
    heads: int
    depth: int
    long_conv: int
    base_conv: int
    hybrid: int
    training: dict[str, Any]


def laptop_training(steps: int, rate: float) -> dict[str, Any]:
    """How the sizes for a CPU are trained, on contexts of 256 tokens."""
    return {"context": 256, "batch": 32, "steps": steps, "rate": rate, "warmup": 100, "test_rows": 1000}


BASED = {
    "context": 2048,
    "batch": 256,
    "steps": 20_000,
    "rate": 8e-4,
    "precision": "bfloat16",
    "every": 500,
    "selection_rows": 256,
    "test_rows": 3200,
}

SIZES = {
    "1M": Size(128, 4, 5, long_conv=5, base_conv=7, hybrid=6, training=laptop_training(1000, 3e-3)),
    "3M": Size(192, 3, 7, long_conv=7, base_conv=9, hybrid=8, training=laptop_training(2000, 2e-3)),
    "10M": Size(320, 5, 8, long_conv=9, base_conv=11, hybrid=10, training=laptop_training(4000, 1e-3)),
    "70M": Size(640, 10, 8, long_conv=7, base_conv=11, hybrid=10, training=BASED),
    "150M": Size(768, 12, 16, long_conv=15, base_conv=21, hybrid=20, training=BASED),
    "360M": Size(1024, 16, 24, long_conv=24, base_conv=32, hybrid=31, training=BASED),
    "1.4B": Size(2048, 16, 24, long_conv=26, base_conv=32, hybrid=31, training=BASED),
}


def zoology(size: Size) -> dict[str, tuple[str, int]]:
    """The pattern and depth of each model of Arora et al. (2023), by its name."""
    context, heads = size.training["context"], size.heads
    base = ("base_conv", f"base_conv(filter='implicit', taps={context})")

    def hybrid(mixer: str) -> tuple[str, int]:
        positions, rest = [size.hybrid * quarter // 4 for quarter in (1, 2, 3)], cycle(base)
        return ", ".join(mixer if i in positions else next(rest) for i in range(size.hybrid)), size.hybrid

    return {
        "attention": (f"attention(heads={heads})", size.depth),
        "long_conv": (f"long_conv(taps={context})", size.long_conv),
        "h3": ("h3(head=2)", size.depth),
        "hyena": (f"hyena(taps={context})", size.depth),
        "rwkv4": (", ".join(f"rwkv4(layer={i}, layers={size.depth})" for i in range(size.depth)), size.depth),
        "base_conv": (", ".join(base), size.base_conv),
        "hybrid_full": hybrid(f"attention(heads={heads})"),
        "hybrid_sliding": hybrid(f"attention(heads={heads}, window={context // 16})"),
        "hybrid_random": hybrid(f"selected(select='random', heads={heads}, share=0.125)"),
        "hybrid_programmatic": hybrid(f"selected(select='repeat', heads={heads})"),
        "hybrid_learned": hybrid(f"selected(select='learned', heads={heads}, most={context // 8}, penalty=1e-3)"),
    }


SUITES: dict[str, Callable[[Size], dict[str, tuple[str, int]]]] = {"zoology": zoology}


def suite(name: str, size: str, *, corpus: str, vocab: int, **changes: Any) -> dict[str, Pretraining]:
    """The recipes of a suite at a size, by model name; `changes` are fields of `Pretraining`. Raises LookupError."""
    for kind, known, wanted in (("suite", SUITES, name), ("size", SIZES, size)):
        if wanted not in known:
            raise LookupError(f"there is no {kind} {wanted!r} {nearest(wanted, known)}")
    shape = SIZES[size]
    shared = {"corpus": corpus, "vocab": vocab, "dim": shape.dim} | shape.training
    models = SUITES[name](shape)
    return {
        model: Pretraining(**(shared | {"pattern": pattern, "depth": depth} | changes))
        for model, (pattern, depth) in models.items()
    }


def count_parameters(recipe: Pretraining, *, embeddings: bool = True) -> int:
    """How many numbers training changes, counted on the model itself, on the meta device."""
    import torch

    with torch.device("meta"):
        model = recipe.build()
    count = sum(weight.numel() for weight in model.parameters())
    return count if embeddings else count - model.embed.weight.numel()
