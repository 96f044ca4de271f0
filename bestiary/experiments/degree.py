"""How fast does depth buy degree? A stack of L gated convolutions is a polynomial of degree at most 2^L, exactly.

Nothing is trained. Mixers with random weights, rounded to sixteenths, are evaluated in exact fractions along a random
line through the space of inputs; the highest finite difference that is not zero is the degree of what they compute.
BaseConv multiplies two linear maps, so that its degree doubles in each layer. The equality of two codes of b bits has
degree 2b: below log2(2b) layers no BaseConv with data-independent filters compares them (Arora et al., 2024, Thm 3.2).
Linear attention multiplies three, and its degree trebles.
"""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bestiary.report.plot import Growth, growth_panels

TIME, DIM = 5, 3
BASES = {"base_conv": 2, "linear_attention(feature='identity', normalise=False)": 3}
DEPTHS = {"smoke": {2: 3, 3: 2}, "small": {2: 6, 3: 3}, "paper": {2: 7, 3: 4}}  # of each base

Exact = np.ndarray  # of fractions


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """One row for each mixer, depth and seed."""
    for text, base in BASES.items():
        for layers in range(1, DEPTHS[scale][base] + 1):
            for seed in range(1 if scale == "smoke" else 3):
                stack = [random_mixer(text, seed, layer) for layer in range(layers)]
                found, error = measure_degree(stack, highest=base**layers, seed=seed)
                yield {
                    "mixer": text,
                    "layers": layers,
                    "seed": seed,
                    "bound": base**layers,
                    "degree": found,
                    "error": error,
                }


def random_mixer(text: str, seed: int, layer: int) -> Any:
    """A mixer whose weights are random sixteenths."""
    import torch

    from bestiary.spec import parse
    from bestiary.tasks._task import stream

    mixer, rng = parse("mixers", text)[0].build(DIM).double(), stream("degree", seed, layer)
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.copy_(torch.randint(-16, 17, weight.shape, generator=rng) / 16)
    return mixer


def measure_degree(stack: list[Any], *, highest: int, seed: int) -> tuple[int, float]:
    """The degree along a random line, looked for up to two above `highest`, and how far PyTorch is from exact."""
    rng = np.random.default_rng(seed)
    start, way = (to_fractions(rng.integers(-16, 17, (TIME, DIM)) / 16) for _ in range(2))
    values = []
    for step in range(highest + 3):
        x = start + step * way
        for mixer in stack:
            x = exact_formula(mixer)(x)
        values.append(x[-1, 0])
    error = float_error(stack, start, way)
    orders = [n for n in range(highest + 3) if finite_difference(values, n) != 0]
    return max(orders, default=0), error


def finite_difference(values: list[Fraction], order: int) -> Fraction:
    """The finite difference of an order at the first value: zero above the degree of a polynomial, and not at it."""
    terms = ((-1) ** (order - k) * math.comb(order, k) * values[k] for k in range(order + 1))
    return sum(terms, Fraction(0))


def float_error(stack: list[Any], start: Exact, way: Exact) -> float:
    """The largest relative error of the mixers themselves at the second point of the line, in float64."""
    import torch

    exact = start + way
    x = torch.tensor(exact.astype(float)).unsqueeze(0)
    with torch.no_grad():
        for mixer in stack:
            x, exact = mixer(x)[0], exact_formula(mixer)(exact)
    wanted = exact.astype(float)
    return float(np.abs(x[0].numpy() - wanted).max() / np.abs(wanted).max())


def to_fractions(x: Any) -> Exact:
    """An array in exact fractions."""
    return np.vectorize(Fraction, otypes=[object])(np.asarray(x, dtype=float))


def exact_formula(mixer: Any) -> Callable[[Exact], Exact]:
    """The formula of a mixer, in fractions."""
    weights = {name: to_fractions(weight.detach().numpy()) for name, weight in mixer.named_parameters()}
    return (lambda x: base_conv(weights, x)) if "filter.filter" in weights else (lambda x: attention(weights, x))


def base_conv(w: dict[str, Exact], x: Exact) -> Exact:
    """(W x + b) * (h convolved with x + c) + x."""
    mixed = x * 0 + w["filter.bias"]
    for i, tap in enumerate(w["filter.filter"]):
        mixed[i:] += tap * x[: len(x) - i]
    return (x @ w["project.weight"].T + w["project.bias"]) * mixed + x


def attention(w: dict[str, Exact], x: Exact) -> Exact:
    """W_o sum_{i<=t} (q_t . k_i) v_i."""
    q, k, v = (x @ w[f"{name}.weight"].T for name in "qkv")
    scores = (q @ k.T) * np.tri(len(x), dtype=int)
    return (scores @ v) @ w["out.weight"].T


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The lowest and highest degree over seeds, the bound, and the largest error of PyTorch."""
    rows = table.groupby(["mixer", "layers", "bound"], sort=False)
    return rows.agg(
        seeds=("seed", "count"), least=("degree", "min"), most=("degree", "max"), error=("error", "max")
    ).reset_index()


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Degree against layers, with the bound; the degrees that equality of codes needs."""
    contents = {}
    for mixer, rows in summary(table).groupby("mixer", sort=False):
        layers, bound = ([float(n) for n in rows[column]] for column in ("layers", "bound"))
        text = "$2^L$" if "base_conv" in str(mixer) else "$3^L$"
        lines = [Growth("degree", layers, [float(n) for n in rows["most"]], bound, text)]
        for vocab in (64, 8192):
            bits = math.ceil(math.log2(vocab))
            needed = [2.0 * bits] * len(layers)
            lines.append(Growth(f"equality, vocabulary {vocab:,}", layers, needed, needed))
        contents[str(mixer).partition("(")[0]] = lines
    yield (
        "",
        growth_panels(
            contents,
            x="Layers",
            even=True,
            base=2,
            note="Highest degree over seeds, in exact arithmetic; dashed: the bound.",
        ),
    )
