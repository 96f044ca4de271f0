"""What recall of so many pairs needs, and what a state of so many numbers can hold: lines for figures, and a table.

Pure functions of (pairs, vocab, state). Half of the vocabulary are values, as in MQAR. What is a theorem, what is an
asymptotic law with a constant left out and what is simulated is said at each.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd

SIMULATED_PAIRS, SIMULATED_NUMBERS = 2**17, 2**26  # a simulation takes at most seconds and half a gigabyte
Code = Literal["hebbian", "delta", "least squares"]


def bits_needed(pairs: int, vocab: int) -> float:
    """Bits that a state must have to answer each of `pairs` known keys without a fault: log2(v (v - 1) ...), v values.

    MQAR draws the values of a row without repetition. Given the keys, each choice of values in an order is as likely as
    another, and a state that answers every question determines it (Arora et al., 2024, Thm 3.1, by the INDEX problem).
    A theorem, for every causal model. Raises ValueError for no pairs, more of them than values, or fewer than two.
    """
    if pairs < 1 or vocab < 4:
        raise ValueError(f"{pairs} pairs of a vocabulary of {vocab}: there must be a pair and two values")
    if pairs > values(vocab):
        raise ValueError(f"{pairs} pairs of a vocabulary of {vocab}: it has only {values(vocab)} values")
    return log2_orders(values(vocab), pairs)


def log2_orders(of: int, drawn: int) -> float:
    """log2(n (n - 1) ...), with as many factors as are drawn of n things."""
    if drawn <= SIMULATED_PAIRS:
        return math.fsum(math.log2(of - i) for i in range(drawn))
    return (math.lgamma(of + 1) - math.lgamma(of - drawn + 1)) / math.log(2)  # too rough for few of very many


def values(vocab: int) -> int:
    """How many tokens of a vocabulary are values."""
    return vocab - vocab // 2


def bits_held(state: int, *, precision: int = 32) -> int:
    """Bits in a state of so many numbers: no more can be told apart, whatever the model."""
    if state < 0 or precision < 1:
        raise ValueError(f"a state has no {state} numbers of {precision} bits")
    return state * precision


def least_state(pairs: int, vocab: int, *, precision: int = 32) -> int:
    """The fewest numbers whose bits suffice for `bits_needed`."""
    return math.ceil(bits_needed(pairs, vocab) / precision)


def ceiling(pairs: int, vocab: int, state: int, *, precision: int = 32) -> float:
    """The highest accuracy that a state of so many numbers allows, by Fano's inequality.

    A guess that is right with probability a leaves at most h(a) + (1 - a) log2(values - 1) bits open, so that the state
    holds `bits_needed` - pairs (h(a) + (1 - a) log2(values - 1)) bits or more. A theorem; h is the binary entropy.
    """
    held, needed = bits_held(state, precision=precision) / pairs, bits_needed(pairs, vocab) / pairs
    if needed <= held:
        return 1.0
    many = values(vocab)
    low, high = 1 / many, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if needed - open_bits(middle, many) <= held else (low, middle)
    return low


def open_bits(right: float, many: int) -> float:
    """Bits that a guess among `many`, right with a probability, leaves open at most."""
    wrong = 1 - right
    entropy = -sum(p * math.log2(p) for p in (right, wrong) if p > 0)
    return entropy + wrong * math.log2(max(1, many - 1))


def argmax_state(pairs: int) -> float:
    """n log n: numbers in a d x d memory of random keys that names n values by argmax, up to a constant.

    d^2 of order n log n in the Gaussian model, a law of large sizes and not a bound at any one.
    """
    return pairs * math.log(max(2, pairs))


def optimal_linear_pairs(state: int) -> float:
    """The p with p log(p) / d^2 = 1/2 where d^2 = `state`: what a linear d x d memory holds, for large d."""
    low, high = 1.0, float(max(3, state))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * math.log(middle) < state / 2 else (low, middle)
    return low


def orthogonal_pairs(state: int) -> int:
    """d, where d^2 = `state`: at most so many keys are orthogonal, and up to there a d x d memory is exact."""
    return math.isqrt(state)


def least_depth(vocab: int) -> int:
    """ceil(log2(2b)) layers of data-independent BaseConv where any of 2^b tokens may be a key, in b bits.

    An L-layer BaseConv is a polynomial of degree at most 2^L and the equality of two codes has degree 2b (Arora et al.,
    2024, Thm 3.2). A theorem, for binary codes. Of a vocabulary that is no power of two, b is rounded down: on some of
    the codes alone, the degree may be less.
    """
    return (2 * (vocab.bit_length() - 1) - 1).bit_length()


def least_depth_hot(hot: int) -> int:
    """floor(log2(2p)) layers of data-independent BaseConv where p of a token's channels are one (same, remark 3.3)."""
    return (2 * hot).bit_length() - 1


def simulated_accuracy(rule: Code, pairs: int, width: int, vocab: int, *, seed: int) -> float:
    """The accuracy of a width x width memory of random unit keys and values, read by argmax over all values: simulated.

    `least squares` has the least squared error on these pairs, which is not the highest accuracy: a matrix that is
    trained for the argmax recalls more. `hebbian` adds outer products, `delta` corrects once, in order (beta = 1).
    """
    rng = np.random.default_rng(seed)
    key, codes = unit_rows(rng.normal(size=(pairs, width))), unit_rows(rng.normal(size=(values(vocab), width)))
    wanted = rng.integers(len(codes), size=pairs)
    memory = RULES[rule](key, codes[wanted])
    return float(((key @ memory @ codes.T).argmax(1) == wanted).mean())


def unit_rows(x: np.ndarray) -> np.ndarray:
    """The rows of x, each of length 1."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def delta_memory(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """A matrix that is corrected for each pair in order, with beta = 1."""
    memory = np.zeros((key.shape[1], value.shape[1]))
    for k, v in zip(key, value, strict=True):
        memory += np.outer(k, v - k @ memory)
    return memory


RULES: dict[Code, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "hebbian": lambda key, value: key.T @ value,
    "delta": delta_memory,
    "least squares": lambda key, value: np.linalg.lstsq(key, value, rcond=None)[0],
}


def table(pairs: int, vocab: int, state: int | None = None, *, seeds: int = 3) -> pd.DataFrame:
    """What is known about recall of so many pairs; with a `state`, also what that can hold.

    Columns: `what`, `number`, `sure` (theorem, law or simulated). The simulation has a square memory of that state.
    """
    rows = [
        ("bits of state that every answer needs", bits_needed(pairs, vocab), "theorem"),
        ("numbers of 32 bits that hold them", least_state(pairs, vocab), "theorem"),
        ("state of an argmax read-out, n log n, up to a constant", argmax_state(pairs), "law"),
        ("state with as many orthogonal keys", pairs**2, "construction"),
        ("layers of data-independent BaseConv, binary codes, any token a key", least_depth(vocab), "theorem"),
        ("layers of data-independent BaseConv, one-hot codes, any token a key", least_depth_hot(1), "theorem"),
    ]
    if state is not None:
        width = orthogonal_pairs(state)
        rows += [
            ("bits in the state, in 32 bits a number", bits_held(state), "theorem"),
            ("accuracy that so many bits allow", ceiling(pairs, vocab, state), "theorem"),
            ("orthogonal keys in a square of the state", width, "theorem"),
            ("pairs in a linear memory of large size, p log p = state / 2", optimal_linear_pairs(state), "law"),
        ]
        fits = pairs <= SIMULATED_PAIRS and (pairs + width) * (values(vocab) + width) <= SIMULATED_NUMBERS
        for rule in RULES:
            found = [simulated_accuracy(rule, pairs, width, vocab, seed=seed) for seed in range(seeds if fits else 0)]
            share, sure = (sum(found) / seeds, "simulated") if fits else (math.nan, "too large to simulate")
            rows.append((f"accuracy of {rule}, random keys, {seeds} seeds", share, sure))
    return pd.DataFrame(rows, columns=["what", "number", "sure"])
