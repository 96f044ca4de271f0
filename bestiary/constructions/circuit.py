"""From an arithmetic circuit to layers of BaseConv: the equivalence theorem as a program (Arora et al., 2023, Thm 4.2).

A wire is a column, one number for each position; a gate makes a wire from earlier ones. Every gate is of the one form

    y = (sum_a w_a a + offset) * (taps convolved with b + shift)

in which one factor may mix wires and the other may move one along time; offsets and shifts may be columns. Sums,
shifts, masks of rows, prefix sums and products are such gates. `layers` sorts the gates by depth and writes one layer
of `Positioned` for each level, and one more before a level in which several gates filter the same wire, to make the
copies. A circuit of depth D therefore takes at most 2 D + 1 layers, the last to put the outputs in order. Wires needed
later are carried along, so that a circuit of s gates has O(s D) weights that are not zero, the theorem's O~(s D)
parameters in O~(D) layers.

    circuit = Circuit(inputs=2)
    a, b = circuit.inputs
    layers = circuit.layers([circuit.product(a, circuit.shift(b, 3))])     # row i holds a_i b_{i-3}
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.constructions._positioned import Column, Entries, Number, Positioned, taps_of

Wire = int


class Gate(NamedTuple):
    """(sum_a left_a a + offset) * (taps convolved with `right` + shift)."""

    left: Mapping[Wire, Number]
    offset: Number | Column
    right: Wire | None
    taps: Mapping[int, Number]
    shift: Number | Column


class Circuit:
    """A circuit over columns: gates are added one by one and compiled by `layers`."""

    def __init__(self, inputs: int) -> None:
        self.inputs: tuple[Wire, ...] = tuple(range(inputs))
        self.gates: dict[Wire, Gate] = {}
        self.level: list[int] = [0] * inputs  # of each wire

    def gate(
        self,
        left: Mapping[Wire, Number] | None = None,
        *,
        offset: Number | Column = 0.0,
        right: Wire | None = None,
        taps: Mapping[int, Number] | None = None,
        shift: Number | Column = 0.0,
    ) -> Wire:
        """A gate of the general form, with the wire itself for `taps` if a wire `right` is given without."""
        taps = ({0: 1.0} if taps is None else taps) if right is not None else {}
        if any(lag < 0 for lag in taps):
            raise ValueError(f"a causal filter reads the present and the past, not the lag {min(taps)}")
        made = Gate({} if left is None else left, offset, right, taps, shift)
        before = [*made.left] if right is None else [*made.left, right]
        if any(wire >= len(self.level) for wire in before):
            raise ValueError(f"wire {max(before)} is not there: there are {len(self.level)}")
        self.gates[len(self.level)] = made
        self.level.append(1 + max((self.level[wire] for wire in before), default=0))
        return len(self.level) - 1

    def sum(self, parts: Mapping[Wire, Number], offset: Number | Column = 0.0) -> Wire:
        """sum_a w_a a + offset."""
        return self.gate(parts, offset=offset, shift=1.0)

    def add(self, a: Wire, b: Wire) -> Wire:
        """a + b."""
        return self.sum({a: 1.0, b: 1.0} if a != b else {a: 2.0})

    def product(
        self, a: Wire, b: Wire, *, scale: tuple[Number, Number] = (1, 1), plus: tuple[Number, Number] = (0, 0)
    ) -> Wire:
        """(scale_0 a + plus_0) (scale_1 b + plus_1)."""
        return self.gate({a: scale[0]}, offset=plus[0], right=b, taps={0: scale[1]}, shift=plus[1])

    def filtered(self, a: Wire, taps: Mapping[int, Number]) -> Wire:
        """A wire convolved with a filter."""
        return self.gate(offset=1.0, right=a, taps=taps)

    def shift(self, a: Wire, by: int) -> Wire:
        """Row i holds a_{i - by}, zero above."""
        return self.filtered(a, {by: 1.0})

    def prefix_sum(self, a: Wire, rows: int) -> Wire:
        """Row i holds a_0 + ... + a_i."""
        return self.filtered(a, dict.fromkeys(range(rows), 1.0))

    def keep(self, a: Wire, rows: Column) -> Wire:
        """Each row of a wire times its number in a column: with 0 and 1, a mask of rows."""
        return self.gate(offset=rows, right=a)

    @property
    def depth(self) -> int:
        """The number of levels of gates."""
        return max(self.level)

    def layers(self, outputs: Sequence[Wire]) -> list[Positioned]:
        """BaseConv layers that take the inputs, as channels in their order, to the outputs in theirs."""
        depth = max(self.level[wire] for wire in outputs)
        needed, last = self.used(outputs, depth)
        place, made = {wire: i for i, wire in enumerate(self.inputs)}, []
        width = max(1, len(self.inputs))
        for level in range(1, depth + 1):
            gates = {wire: self.gates[wire] for wire in needed.get(level, [])}
            kept = [wire for wire in place if last.get(wire, 0) > level]
            if share_input(gates.values()):
                read = {wire for gate in gates.values() for wire in gate.left}
                layer, place, rights, width = copy_layer(place, [*gates.items()], {*kept, *read}, width)
                made.append(layer)
            else:
                rights = {wire: place[gate.right] for wire, gate in gates.items() if gate.right is not None}
            after = assign_channels(outputs if level == depth else [], gates, kept, rights)
            layer, width = level_layer(place, after, gates, rights, width)
            place = after
            made.append(layer)
        return reorder_outputs(made, place, outputs, width)

    def used(self, outputs: Sequence[Wire], depth: int) -> tuple[dict[int, list[Wire]], dict[Wire, int]]:
        """The gates of each level that the outputs depend on, and the last level that reads each wire."""
        last, levels = dict.fromkeys(outputs, depth + 1), {}
        for wire in sorted(self.gates, reverse=True):
            if wire in last:
                gate, level = self.gates[wire], self.level[wire]
                levels.setdefault(level, []).insert(0, wire)
                for before in [*gate.left] + ([] if gate.right is None else [gate.right]):
                    last[before] = max(last.get(before, 0), level)
        return levels, last


def share_input(gates: Iterable[Gate]) -> bool:
    """Whether two gates filter the same wire."""
    rights = [gate.right for gate in gates if gate.right is not None]
    return len(set(rights)) < len(rights)


Place = dict[Wire, int]  # the channel of each wire


def copy_layer(
    place: Place, gates: Sequence[tuple[Wire, Gate]], needed: set[Wire], width: int
) -> tuple[Positioned, Place, Place, int]:
    """A layer that gives every gate its own copy of the wire that it filters."""
    sources, after, rights = [], {}, {}
    for wire, gate in gates:
        if gate.right is not None:
            after.setdefault(gate.right, len(sources))
            rights[wire] = len(sources)
            sources.append(place[gate.right])
    for wire in sorted(needed - after.keys()):
        after[wire] = len(sources)
        sources.append(place[wire])
    return (
        linear({(i, source): 1.0 for i, source in enumerate(sources)}, width, len(sources)),
        after,
        rights,
        len(sources),
    )


def linear(weight: Entries, inputs: int, outputs: int) -> Positioned:
    """The layer y = W u."""
    return Positioned(inputs, outputs, weight=weight, taps={}, left={}, right=dict.fromkeys(range(outputs), 1.0))


def assign_channels(outputs: Sequence[Wire], gates: Mapping[Wire, Gate], kept: Sequence[Wire], rights: Place) -> Place:
    """The channels of the wires after a level: gates that filter stay where their wire is, others fill the gaps."""
    after = dict(rights)
    taken, free = set(after.values()), 0
    for wire in [*dict.fromkeys([*outputs, *gates, *kept])]:
        if wire not in after:
            while free in taken:
                free += 1
            after[wire] = free
            taken.add(free)
    return after


def level_layer(
    place: Place, after: Place, gates: Mapping[Wire, Gate], rights: Place, width: int
) -> tuple[Positioned, int]:
    """The layer of one level."""
    weight: dict[tuple[int, int], Number] = {}
    left: dict[int, Number | Tensor] = {}
    right: dict[int, Number | Tensor] = {}
    for wire, channel in after.items():
        if wire in gates:
            gate = gates[wire]
            weight |= {(channel, place[a]): size for a, size in gate.left.items()}
            left[channel], right[channel] = gate.offset, gate.shift
        else:
            weight[channel, place[wire]], right[channel] = 1.0, 1.0
    outputs = 1 + max(after.values())
    taps = taps_of((rights[wire], gates[wire].taps) for wire in rights)
    return Positioned(width, outputs, weight=weight, taps=taps, left=left, right=right), outputs


def reorder_outputs(made: list[Positioned], place: Place, outputs: Sequence[Wire], width: int) -> list[Positioned]:
    """The layers, with one more if the outputs do not already stand in their order."""
    if [place[wire] for wire in outputs] == list(range(len(outputs))) and width == len(outputs):
        return made
    weight = {(i, place[wire]): 1.0 for i, wire in enumerate(outputs)}
    return [*made, linear(weight, width, len(outputs))]


def column(rows: int, chosen: Iterable[int], *, value: float = 1.0) -> Column:
    """A column with a value in the chosen rows and zero in the others."""
    made = torch.zeros(rows, dtype=torch.float64)
    made[list(chosen)] = value
    return made
