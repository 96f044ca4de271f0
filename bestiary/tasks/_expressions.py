"""Arithmetic expressions over the remainders of a modulus, as tokens: drawn, valued, and counted.

Tokens 0 to modulus - 1 are numbers, and the six after them + - * ( ) and one that no expression has.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

SIGNS = "+-*()"
MOST = 100  # the largest modulus, as tables have its square of entries


def draw_operators(shape: tuple[int, int], modulus: int, rng: torch.Generator, *, signs: str) -> Tensor:
    """Tokens of the operators `signs`, each equally likely."""
    known = torch.tensor([modulus + SIGNS.index(sign) for sign in signs], device=rng.device)
    return known[torch.randint(len(signs), shape, generator=rng, device=rng.device)]


def draw_flat(shape: tuple[int, int], modulus: int, rng: torch.Generator, *, signs: str) -> Tensor:
    """Numbers at even places, operators between them, uniform."""
    tokens = draw_operators(shape, modulus, rng, signs=signs)
    numbers = torch.randint(modulus, shape, generator=rng, device=rng.device)
    tokens[:, ::2] = numbers[:, ::2]
    return tokens


def draw_bracketed(
    sizes: Int[Tensor, " rows"], longest: int, modulus: int, rng: torch.Generator, *, signs: str
) -> Tensor:
    """Random trees: d, -d, (d), (-d) of length 1 to 4; longer ones are (left operator right), cut anywhere.

    Each row keeps a stack of what is still to be written: an expression by its length, a token t as -1 - t. Every
    step takes the top, writes one token, and puts the rest back.
    """
    minus, opening, closing = (modulus + SIGNS.index(sign) for sign in "-()")
    rows, shape = len(sizes), (len(sizes), longest)
    numbers = torch.randint(modulus, shape, generator=rng, device=rng.device)
    chosen = draw_operators(shape, modulus, rng, signs=signs)
    cut = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
    stack = torch.zeros(rows, longest + 8, dtype=torch.long, device=rng.device)
    stack[:, 0] = sizes
    top, written, slots = torch.zeros_like(sizes), [], torch.arange(4, device=rng.device)
    for time in range(longest):
        item = stack.gather(1, top.clamp(min=0).unsqueeze(1)).squeeze(1)
        branch, inside = item > 4, (item == 3) | (item == 4)
        left = 1 + (cut[:, time] * (item - 4)).long()
        right = torch.where(branch, item - 3 - left, torch.where(inside, item - 2, 1))
        first = torch.where(item == 2, right, -1 - closing)
        rest = torch.stack([first, right, -1 - chosen[:, time], left], 1)
        stack.scatter_(1, top.clamp(min=0).unsqueeze(1) + slots, rest)
        top = top + torch.where(branch, 3, torch.where(inside, 1, torch.where(item == 2, 0, -1)))
        token = torch.where(item == 1, numbers[:, time], torch.where(item == 2, minus, opening))
        written.append(torch.where(item < 0, -1 - item, token))
    return torch.stack(written, 1)


def evaluate_rows(tokens: Int[Tensor, "rows time"], sizes: Int[Tensor, " rows"], modulus: int) -> tuple[Tensor, Tensor]:
    """The value of each expression and its deepest nesting of brackets.

    Keeps the sum of the finished terms and the product of the unfinished one, and at a bracket begins anew with
    these two on a stack.
    """
    plus, minus, times, opening, closing = range(modulus, modulus + 5)
    within = torch.arange(tokens.shape[1], device=tokens.device) < sizes.unsqueeze(1)
    tokens = tokens.masked_fill(~within, times)
    levels = ((tokens == opening).int() - (tokens == closing).int()).cumsum(1).long()
    after_operand = F.pad((tokens < modulus) | (tokens == closing), (1, 0))
    total, product = torch.zeros_like(sizes), torch.ones_like(sizes)
    saved = torch.zeros(len(sizes), tokens.shape[1] // 3 + 2, 2, dtype=torch.long, device=tokens.device)
    for time, token in enumerate(tokens.unbind(1)):
        opens, closes, adds = token == opening, token == closing, (token == plus) | (token == minus)
        level = (levels[:, time] - opens.long()).view(-1, 1, 1).expand(-1, 1, 2)
        before = saved.gather(1, level).squeeze(1)
        saved.scatter_(1, level, torch.where(opens.unsqueeze(1), torch.stack([total, product], 1), before).unsqueeze(1))
        ends = adds & after_operand[:, time]
        factor = torch.where(closes, total + product, torch.where(token < modulus, token, 1))
        total = torch.where(closes, before[:, 0], torch.where(ends, total + product, total))
        product = torch.where(closes, before[:, 1], torch.where(ends | opens, 1, product)) * factor
        product = torch.where(token == minus, -product, product) % modulus
        total = torch.where(opens, 0, total) % modulus
    return (total + product) % modulus, levels.amax(1)


def evaluate(symbols: list[int | str], modulus: int) -> int:
    """The value of a written expression: the innermost brackets first, then products, then sums."""
    while "(" in symbols:
        close = symbols.index(")")
        start = max(place for place in range(close) if symbols[place] == "(")
        symbols = [*symbols[:start], evaluate(symbols[start + 1 : close], modulus), *symbols[close + 1 :]]
    terms, negative = [0], False
    for place, symbol in enumerate(symbols):
        if isinstance(symbol, int):
            number = -symbol if negative else symbol
            multiplied = "*" in symbols[max(0, place - 1 - negative) : place]
            terms = [*terms[:-1], terms[-1] * number] if multiplied else [*terms, number]
            negative = False
        negative ^= symbol == "-"
    return sum(terms) % modulus


@cache
def flat_distribution(length: int, modulus: int, signs: str) -> list[np.ndarray]:
    """The distribution of the value of flat expressions with 0, 1, 2, ... operators, up to this length.

    Follows the joint distribution of the sum of the finished terms and the product of the unfinished one.
    """
    number, times = np.arange(modulus), signs.count("*") / len(signs)
    joint = np.zeros((modulus, modulus))
    joint[0] = 1 / modulus
    multiplied = np.zeros((modulus, modulus))
    np.add.at(multiplied, (number[:, None], np.outer(number, number) % modulus), 1 / modulus)
    found = []
    for _ in range(0, length, 2):
        found.append(result_distribution(joint, np.add.outer(number, number)))
        joint = times * joint @ multiplied + (1 - times) * np.outer(found[-1], np.full(modulus, 1 / modulus))
    return found


@cache
def bracketed_distribution(length: int, modulus: int, signs: str) -> list[np.ndarray]:
    """The distribution of the value of bracketed expressions of length 0 (none), 1, 2, ... up to this one."""
    number = np.arange(modulus)
    results = {"+": np.add.outer(number, number), "-": np.subtract.outer(number, number), "*": np.outer(number, number)}
    found = [np.full(modulus, 1 / modulus)] * 5
    for size in range(5, length + 1):
        left, right = np.array(found[1 : size - 3]), np.array(found[size - 4 : 0 : -1])
        joint = left.T @ right / (size - 4)
        found.append(np.mean([result_distribution(joint, results[sign]) for sign in signs], axis=0))
    return found


def result_distribution(joint: np.ndarray, results: np.ndarray) -> np.ndarray:
    """The distribution of a result of two numbers from that of the two."""
    return np.bincount((results % len(joint)).ravel(), joint.ravel(), len(joint))


@cache
def count_bracketed(length: int, modulus: int, signs: int) -> list[int]:
    """How many bracketed expressions of length 0 (none), 1, 2, ... up to this one there are."""
    found = [0] + [modulus] * 4
    for size in range(5, length + 1):
        found.append(signs * sum(found[left] * found[size - 3 - left] for left in range(1, size - 3)))
    return found
