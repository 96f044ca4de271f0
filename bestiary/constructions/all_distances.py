"""Data-independent BaseConv recalls at every distance, if it is wide (a circuit for Arora et al., 2023, Thm 4.4).

Row i is [k bits | v bits | q bits | 1] in signs, b of each. One block of channels for each distance s < N:

    1    k, v and the one are copied into every block
    2    k, v and the one of block s are shifted by s; q_i k_{i-s} is +1 where the bits agree; the one is a flag
    3    ceil(log2(b + 1)) levels of products of (1 + agreement) / 2 and the flag: the match, 1 or 0
    4    match times v
    5    the sum over blocks

so that layers = 4 + ceil(log2(b + 1)) and width <= (N - 1) (2b + 2) + b, exact for different keys. No filter depends on
the input. An L-layer BaseConv is a polynomial of degree at most 2^L in its input and the equality of two b-bit codes
has degree 2b, so that L >= log2(2b) (Arora et al., 2024, Thm 3.2): `bounds.least_depth`. Width of order N is what
*this* circuit takes at constant depth. It is not proved that every one must; `sorting` needs none of it.
"""

from collections.abc import Sequence

from bestiary.constructions._construction import Stack, Triplets, code_width, signs
from bestiary.constructions.circuit import Circuit, Wire


def all_distances(vocab: int, rows: int, *, distances: int | None = None, compared: int | None = None) -> Stack:
    """The construction for `vocab` tokens and `rows` triplets.

    With fewer `distances` than rows - 1 nothing further back is answered; with fewer bits `compared` than a code has,
    keys are mistaken for others with the same first bits. Raises ValueError for sizes outside of these.
    """
    bits = code_width(vocab)
    distances, compared = (rows - 1 if distances is None else distances), (bits if compared is None else compared)
    if not 1 <= distances < rows:
        raise ValueError(f"{rows} rows have distances from 1 to {rows - 1}, not {distances}")
    if not 1 <= compared <= bits:
        raise ValueError(f"codes of {vocab} tokens have {bits} bits to compare, not {compared}")
    circuit = Circuit(inputs=3 * bits + 1)
    k, v, q = (circuit.inputs[i * bits : (i + 1) * bits] for i in range(3))
    one = circuit.inputs[-1]
    sums: list[dict[Wire, float]] = [{} for _ in range(bits)]
    for s in range(1, distances + 1):
        agree = [circuit.gate({a: 1.0}, right=b, taps={s: 1.0}) for a, b in zip(q[:compared], k, strict=False)]
        moved = [circuit.shift(a, s) for a in v]
        match = conjunction(circuit, agree, circuit.shift(one, s))
        for parts, value in zip(sums, moved, strict=True):
            parts[circuit.product(match, value)] = 1.0
    layers = circuit.layers([circuit.sum(parts) for parts in sums])
    return Stack(Triplets(signs(vocab, bits)), layers, signs(vocab, bits))


def conjunction(circuit: Circuit, agree: Sequence[Wire], flag: Wire) -> Wire:
    """The product of (1 + a) / 2 over agreements of +1 and -1, and of a flag of 0 or 1, as a tree."""
    halved = (0.5, 0.5)  # x -> (1 + x) / 2
    factors: list[tuple[Wire, tuple[float, float]]] = [*((a, halved) for a in agree), (flag, (1.0, 0.0))]
    while len(factors) > 1:
        paired = []
        for (a, one), (b, two) in zip(factors[::2], factors[1::2], strict=False):
            made = circuit.product(a, b, scale=(one[0], two[0]), plus=(one[1], two[1]))
            paired.append((made, (1.0, 0.0)))
        factors = paired + factors[len(factors) - len(factors) % 2 :]
    return factors[0][0]
