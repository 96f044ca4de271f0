"""Data-independent BaseConv of near-linear size and poly-log depth, by sorting (for Arora et al., 2023, Thm 4.4).

The theorem's own proof searches in parallel; this circuit has the same size up to logarithms. N triplets become R = 2N
records (token, time), query i at time 2i and key i at time 2i + 1, the key with its value. A bitonic network sorts
them by token and time, a segmented scan by recursive doubling hands every query the last key of its token before it,
with its value, and a second sort by time brings the queries back. So a query sees only keys before its own, and of
equal keys the latest.

One comparison of partners at distance s, causal because the frame of R rows moves down by s:

    copies           of every bit, for every gate that is to filter it
    own, partner     rows with bit s clear take (shifted by s, unshifted), the others (shifted by s, by 2s), masked
    compare          g = (1 + x)(1 - y) / 4 and e = (1 + x y) / 2 of each bit, own x and partner y
    tree             (g, e) of two halves: g_1 + e_1 g_2 and e_1 e_2
    take, select     own + take (partner - own), take from g and whether the row is to hold the lesser

in 6 + ceil(log2(compared bits)) layers of width O(b + log N). With log2(R) (log2(R) + 1) / 2 comparisons a sort and
two layers for each of log2(R) - 1 doublings, layers are O(log^2 N (log b + log log N)), rows O(N log N), and no filter
depends on the input. The output is read where the last frame ends, so this is a circuit for whole sequences and not a
decoder (`causal = False`): answers do not depend on later triplets, but are only ready below all of them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.constructions._construction import Construction, Stream, TokenRows, code_width, signs
from bestiary.constructions._positioned import Column, Positioned
from bestiary.constructions.circuit import Circuit, Wire, column
from bestiary.mixers._mixer import State


def sorting(vocab: int, rows: int, *, reach: int | None = None) -> "Sorting":
    """The construction for `vocab` tokens and up to `rows` triplets.

    `reach` is the longest step of the scan, which looks 2 reach - 1 records back: enough for a key that every later row
    asks for, unless it is less than half of the triplets. Raises ValueError for no rows, or a reach that is no power
    of two up to that.
    """
    if rows < 1:
        raise ValueError(f"there are no {rows} triplets to sort")
    records = 2 << (rows - 1).bit_length()
    most = max(1, records // 4)
    reach = most if reach is None else reach
    if reach & (reach - 1) or not 1 <= reach <= most:
        raise ValueError(f"doubling takes steps of 1, 2, 4 ... {most} records, not {reach}")
    return Sorting(vocab, rows, *build_layers(code_width(vocab), records, reach))


class Record(NamedTuple):
    """The wires of a record: signs that are compared, and 0 or 1 that travel along."""

    token: Sequence[Wire]
    time: Sequence[Wire]
    has: Wire
    value: Sequence[Wire]

    def wires(self) -> list[Wire]:
        """All wires of the record, in order."""
        return [*self.token, *self.time, self.has, *self.value]

    def with_wires(self, wires: Sequence[Wire]) -> "Record":
        """The record with other wires, given in the same order."""
        t, m = len(self.token), len(self.token) + len(self.time)
        return Record(wires[:t], wires[t:m], wires[m], wires[m + 1 :])


class Sorting(Construction):
    """Records in, layers, answers out where the frame has come to."""

    causal = False
    stride = 3

    def __init__(self, vocab: int, rows: int, layers: list[Positioned], start: int, height: int, records: int) -> None:
        super().__init__()
        self.rows, self.start, self.height, self.records = rows, start, height, records
        self.layers = nn.ModuleList(layers)
        self.register_buffer("codes", signs(vocab, code_width(vocab)))

    def hidden(self, tokens: TokenRows, state: State = None) -> tuple[Stream, State]:
        if state is not None or tokens.shape[1] > 3 * self.rows:
            raise ValueError(f"sorting reads whole sequences of at most {self.rows} triplets, at once")
        x = self.record(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        return x[:, self.start : self.start + self.records : 2][:, : tokens.shape[1] // 3], None

    def record(self, tokens: TokenRows) -> Stream:
        """Rows of [token signs | has | value bits], and zeros below; what is missing to 2^k rows asks for token 0."""
        codes: Tensor = self.codes  # pyright: ignore[reportAssignmentType]
        missing = self.records // 2 - tokens.shape[1] // 3
        k, v, q = nn.functional.pad(tokens, (0, 3 * missing)).unflatten(1, (-1, 3)).unbind(2)
        has = (torch.arange(k.shape[1]) < k.shape[1] - missing).to(codes.dtype).expand_as(k).unsqueeze(-1)
        key = torch.cat([codes[k], has, has * (1 + codes[v]) / 2], dim=-1)
        query = torch.cat([codes[q], torch.zeros_like(key[..., codes.shape[1] :])], dim=-1)
        x = torch.stack([query, key], dim=2).flatten(1, 2)
        return nn.functional.pad(x, (0, 0, 0, self.height - x.shape[1]))

    def head(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        codes: Tensor = self.codes  # pyright: ignore[reportAssignmentType]
        return x @ codes.T


def build_layers(bits: int, records: int, reach: int) -> tuple[list[Positioned], int, int, int]:
    """The layers, where the last frame starts, how many rows there are in all, and the number of records."""
    digits = records.bit_length() - 1
    strides = [s for top in range(digits) for s in (2**i for i in range(top, -1, -1))]
    height = records + 2 * sum(strides)
    circuit = Circuit(inputs=2 * bits + 1)
    token, has, value = circuit.inputs[:bits], circuit.inputs[bits], circuit.inputs[bits + 1 :]
    clock = signs(records, digits)
    time = [circuit.sum({}, nn.functional.pad(clock[:, i], (0, height - records))) for i in range(digits)]
    record, frame = Record(token, time, has, value), Frame(circuit, records, height, 0)
    for block, stride in blocks(digits):
        record, frame = frame.exchange(record, [*record.token, *record.time], block, stride)
    record = frame.scan(record, reach)
    for block, stride in blocks(digits):
        record, frame = frame.exchange(record, record.time, block, stride)
    outputs = [circuit.sum({bit: 2.0, record.has: -1.0}) for bit in record.value]  # signs, or zeros if nothing is found
    return circuit.layers(outputs), frame.start, height, records


def blocks(digits: int) -> list[tuple[int, int]]:
    """The comparisons of a bitonic network: the size of the sorted blocks, and the distance of the partners."""
    return [(2 ** (top + 1), 2**i) for top in range(digits) for i in range(top, -1, -1)]


class Frame(NamedTuple):
    """Where the records stand: the rows from `start` on."""

    circuit: Circuit
    records: int
    height: int
    start: int

    def rows(self, chosen: Mapping[int, float]) -> Column:
        """A column with a number at some places of the frame."""
        made = torch.zeros(self.height, dtype=torch.float64)
        for i, number in chosen.items():
            made[self.start + i] = number
        return made

    def exchange(self, record: Record, compared: Sequence[Wire], block: int, stride: int) -> tuple[Record, "Frame"]:
        """Every pair of partners in order, ascending where the block's bit is clear; the frame moves by `stride`."""
        circuit, after = self.circuit, self._replace(start=self.start + stride)
        low = after.rows({i: 1.0 for i in range(self.records) if not i & stride})
        high = after.rows({i: 1.0 for i in range(self.records) if i & stride})
        own: dict[Wire, Wire] = {}
        partner: dict[Wire, dict[Wire, float]] = {}
        greater: list[dict[Wire, float]] = []
        equal: list[tuple[Wire, Wire]] = []
        for x in record.wires():
            own[x] = circuit.gate(offset=low + high, right=self.copy(x), taps={stride: 1.0})
            unmoved = circuit.gate(offset=low, right=self.copy(x))
            moved = circuit.gate(offset=high, right=self.copy(x), taps={2 * stride: 1.0})
            partner[x] = {unmoved: 1.0, moved: 1.0}
        for x in compared:
            again = [circuit.gate(offset=low + high, right=self.copy(x), taps={stride: 1.0}) for _ in range(2)]
            minus = {wire: -0.5 for wire in partner[x]}
            greater.append({circuit.gate(minus, offset=0.5, right=own[x], taps={0: 0.5}, shift=0.5): 1.0})
            first, second = (circuit.gate(partner[x], right=a) for a in again)
            equal.append((first, second))
        lesser = after.rows({i: 1.0 for i in range(self.records) if bool(i & stride) == bool(i & block)})
        take = takes_partner(circuit, greater, equal, lesser, low + high)
        chosen = []
        for x in record.wires():
            change = circuit.sum({**partner[x], own[x]: -1.0})
            chosen.append(circuit.add(own[x], circuit.product(take, change)))
        return record.with_wires(chosen), after

    def copy(self, x: Wire) -> Wire:
        """The wire once more, so that another gate may filter it."""
        return self.circuit.sum({x: 1.0})

    def scan(self, record: Record, reach: int) -> Record:
        """Each record with the last value of its token at or before it."""
        circuit = self.circuit
        agree = [circuit.gate({x: 1.0}, right=x, taps={1: 1.0}) for x in record.token]
        inside = column(self.height, range(self.start + 1, self.start + self.records))
        same = circuit.keep(all_of(circuit, agree), inside)
        open_ = circuit.gate({same: 1.0}, right=record.has, taps={0: -1.0}, shift=1.0)  # nothing here, same token above
        closed, held = circuit.sum({open_: -1.0}, offset=1.0), [record.has, *record.value]
        lag = 1
        while lag <= reach:
            closed, *held = (
                circuit.add(x, circuit.gate({closed: -1.0}, offset=1.0, right=x, taps={lag: 1.0}))
                for x in (closed, *held)
            )
            lag *= 2
        return record._replace(has=held[0], value=held[1:])


def all_of(circuit: Circuit, agree: Sequence[Wire]) -> Wire:
    """The product of (1 + a) / 2, as a tree."""
    parts = [circuit.sum({a: 0.5}, offset=0.5) for a in agree]
    while len(parts) > 1:
        paired = [circuit.product(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = paired + parts[len(parts) - len(parts) % 2 :]
    return parts[0]


def takes_partner(
    circuit: Circuit,
    greater: Sequence[dict[Wire, float]],
    agree: Sequence[tuple[Wire, Wire]],
    lesser: Column,
    inside: Column,
) -> Wire:
    """1 where a row is to take its partner's record: own > partner if it holds the lesser, else own < partner.

    Each `greater` is a sum of wires, and each agreement of +1 or -1 comes twice, as no wire may be filtered twice.
    """
    nodes = [(g, e, (0.5, 0.5)) for g, e in zip(greater, agree, strict=True)]
    while len(nodes) > 1:
        paired = []
        for (g1, e1, f1), (g2, e2, f2) in zip(nodes[::2], nodes[1::2], strict=False):
            further = circuit.gate(g2, right=e1[0], taps={0: f1[0]}, shift=f1[1])
            both = [circuit.gate({e1[1]: f1[0]}, offset=f1[1], right=e, taps={0: f2[0]}, shift=f2[1]) for e in e2]
            paired.append(({**g1, further: 1.0}, (both[0], both[1]), (1.0, 0.0)))
        nodes = paired + nodes[len(nodes) - len(nodes) % 2 :]
    return circuit.gate(nodes[0][0], offset=lesser - inside, shift=2 * lesser - inside)
