"""Primitives and circuits of BaseConv: what they compute, against the same operation written out."""

import random
from collections.abc import Callable

import pytest
import torch
from mixer_helpers import assert_same
from torch import Tensor

from bestiary.constructions import primitives
from bestiary.constructions._positioned import Positioned
from bestiary.constructions.circuit import Circuit, Wire, column

ROWS, DIM = 9, 4


def changed(x: Tensor, channel: int, value: Tensor) -> Tensor:
    y = x.clone()
    y[..., channel] = value
    return y


def delayed(x: Tensor, by: int) -> Tensor:
    """Row i - by at row i, zeros above, by copying rows one by one."""
    y = torch.zeros_like(x)
    for i in range(by, x.shape[1]):
        y[:, i] = x[:, i - by]
    return y


MATRIX = torch.arange(12.0, dtype=torch.float64).reshape(DIM, 3)
MASK = torch.tensor([0.0, 1, 1, 0, 0, 1, 0, 0, 1], dtype=torch.float64)
PRIMITIVES: dict[str, tuple[Callable[[], Positioned], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda: primitives.linear(MATRIX), lambda x: x @ MATRIX),
    "copy": (lambda: primitives.copy(DIM, 1, 3), lambda x: changed(x, 3, x[..., 1])),
    "shift": (lambda: primitives.shift(DIM, 2, 3), lambda x: changed(x, 2, delayed(x, 3)[..., 2])),
    "add rows": (lambda: primitives.add_rows(DIM, 0, 2), lambda x: changed(x, 0, (x + delayed(x, 2))[..., 0])),
    "double": (lambda: primitives.add_rows(DIM, 0, 0), lambda x: changed(x, 0, 2 * x[..., 0])),
    "prefix sum": (lambda: primitives.prefix_sum(DIM, 1, ROWS), lambda x: changed(x, 1, x.cumsum(1)[..., 1])),
    "product": (lambda: primitives.product(DIM, 0, 3), lambda x: changed(x, 3, x[..., 0] * x[..., 3])),
    "affine product": (
        lambda: primitives.affine_product(DIM, 2, 1, scale=(3.0, -2.0), plus=(0.5, 7.0)),
        lambda x: changed(x, 1, (3 * x[..., 2] + 0.5) * (-2 * x[..., 1] + 7)),
    ),
    "row mask": (
        lambda: primitives.row_mask(DIM, 1, ROWS, [1, 2, 5, 8]),
        lambda x: changed(x, 1, x[..., 1] * MASK),
    ),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_primitive_does_what_it_says_and_remembers_the_other_channels(name: str) -> None:
    make, wanted = PRIMITIVES[name]
    x = torch.randn(2, ROWS, DIM, dtype=torch.float64)
    assert_same(make()(x)[0], wanted(x))


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_primitive_may_be_cut_anywhere(name: str, cut: int) -> None:
    layer, x = PRIMITIVES[name][0](), torch.randn(2, ROWS, DIM, dtype=torch.float64)
    head, state = layer(x[:, :cut])
    tail = [layer(x[:, cut:], state)[0]]
    assert_same(torch.cat([head, *tail], dim=1), layer(x)[0])


def test_rows_beyond_a_column_are_refused() -> None:
    layer = primitives.row_mask(DIM, 0, ROWS, [0])
    with pytest.raises(ValueError, match="written for 9 positions, the input needs 10"):
        layer(torch.zeros(1, ROWS + 1, DIM, dtype=torch.float64))


def drawn(depth: int, seed: int) -> tuple[Circuit, list[Wire], list[Tensor], Tensor]:
    """A random circuit, its outputs, what each wire holds by plain arithmetic, and the input."""
    draw, inputs = random.Random(seed), 3
    x = torch.randn(2, ROWS, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    circuit, held, levels = Circuit(inputs), list(x.unbind(2)), {0: list(range(inputs))}
    for level in range(1, depth + 1):
        levels[level] = []
        for _ in range(4):
            a, b = draw.choice(levels[level - 1]), draw.choice(range(len(held)))
            made = gate(circuit, draw, (a, b), held)
            levels[level].append(made)
    return circuit, [*levels[depth], levels[max(0, depth - 2)][0]], held, x


def gate(circuit: Circuit, draw: random.Random, wires: tuple[Wire, Wire], held: list[Tensor]) -> Wire:
    """Add a random gate, and what it holds."""
    a, b = wires
    one, two = held[a], held[b]
    number, lag = draw.uniform(-1, 1), draw.randrange(1, 5)
    mask = column(ROWS, draw.sample(range(ROWS), 4))
    past = delayed(two.unsqueeze(2), lag).squeeze(2)
    made, value = draw.choice(
        [
            lambda: (circuit.add(a, b), one + two),
            lambda: (circuit.product(a, b), one * two),
            lambda: (circuit.product(a, b, scale=(number, 2), plus=(1, -1)), (number * one + 1) * (2 * two - 1)),
            lambda: (circuit.sum({a: number}, offset=mask), number * one + mask),
            lambda: (circuit.add(circuit.shift(b, lag), a), past + one),
            lambda: (circuit.keep(a, mask), one * mask),
            lambda: (circuit.prefix_sum(a, ROWS), one.cumsum(1)),
            lambda: (circuit.gate({a: 1.0}, right=b, taps={0: number, lag: 1.0}), one * (number * two + past)),
        ]
    )()
    while len(held) < made:  # wires in between that nobody may choose
        held.append(past)
    held.append(value)
    return made


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("seed", range(4))
def test_a_random_circuit_and_its_layers_agree(depth: int, seed: int) -> None:
    circuit, outputs, held, x = drawn(depth, seed)
    y, layers = x, circuit.layers(outputs)
    assert len(layers) <= 2 * circuit.depth + 1
    for layer in layers:
        y, _ = layer(y)
    torch.testing.assert_close(y, torch.stack([held[wire] for wire in outputs], dim=2), rtol=1e-9, atol=1e-9)


def test_gates_that_cannot_be_are_refused() -> None:
    circuit = Circuit(inputs=1)
    with pytest.raises(ValueError, match="a causal filter reads the present and the past, not the lag -2"):
        circuit.shift(0, -2)
    with pytest.raises(ValueError, match="wire 3 is not there: there are 1"):
        circuit.add(0, 3)
    with pytest.raises(ValueError, match="channel 4 is not among the 4 channels"):
        primitives.copy(DIM, 4, 0)
