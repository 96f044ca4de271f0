"""Context-free grammars in levels, and which token may come next in their sentences.

cfg3f is of "Physics of Language Models: Part 1" (Allen-Zhu & Li, 2023), cfg3j and cfg3k are of its part 4.1
(Allen-Zhu, 2025), which makes Lano of the three.
"""

from functools import cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Rules = tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]  # by level and symbol, the symbols one level below

# Each line is a level, from the root; symbols a, b, c of a level are divided by bars, and their rules by spaces.
GRAMMARS = {
    "cfg3f": """
        bc bac caa bb
        cac bc cc | aa ab bac | cb ba abc ac
        cc aca ba bb | cba bc cb | bca caa ac
        bc cbc acb | ac cac cb acc | abb bba aa ccb
        bcc cac acc | bb ca caa | aca cb bbc
        bba cbb cab cb | caa ab cca | aba cc aa
    """,
    "cfg3j": """
        aa ba cbc
        ab aac baa | cab cb abb | aa bca acc
        bba acc ab | bbb cc cbc | ca abb aca
        bc ac cc | bb ccc cb | bac aab ab
        ac ca bb | ab cba abb | bcc aa bc
        aac ba cb | abb cc bb | aab baa cbb
        ab bb ccb | ca bc aab | cba ac cb
    """,
    "cfg3k": """
        ab cc cb
        ca cbb cc ac | bcb bcc bb ab | cb bc aac
        bca ca cac ccb | bbb ac bba cba | cb aca baa bcc
        cb bc cbc baa | bcb caa cc | bb ca abb
        acc bbc cc | ab abb baa bb | cb aa bc
        aa bb cca aca | bac aaa aba | ab bba cac bc
        cc aca ba | bc aab ca abb | acc bb aaa cbc
    """,
}
END = 0  # the token after each sentence; terminals are tokens 1 to 3


@cache
def rules(grammar: str) -> Rules:
    """The rules of a grammar of this name."""
    lines = GRAMMARS[grammar].strip().splitlines()
    symbols = [[part.split() for part in line.split("|")] for line in lines]
    return tuple(tuple(tuple(tuple("abc".index(s) for s in r) for r in of) for of in level) for level in symbols)


class Automaton:
    """Reads sentences token by token, each followed by END, and knows all tokens that some sentence goes on with.

    A state is all ways to read the sentence so far. What is still to come is a set of pairs: the symbols to follow
    on a level, and the set that follows those, a level above. Sets have numbers, so that they are shared.
    """

    def __init__(self, levels: Rules) -> None:
        self.levels, self.depth = levels, len(levels)
        self.sets: list[frozenset[tuple[tuple[int, ...], int]]] = [frozenset()]  # set 0: the sentence may end
        self.number: dict[frozenset[tuple[tuple[int, ...], int]], int] = {}
        self.states: dict[tuple[tuple[int, int], ...], int] = {}
        self.moves: list[dict[int, int]] = []  # by state and token, the set that follows it
        self.may: list[list[bool]] = []  # by state, whether each token may come
        self.met: dict[tuple[int, int], int] = {}
        self.table = torch.full((1024, 4), -1, device="cpu")
        self.start = self.state({(0, 0): {((), 0)}}, ends=False)

    def state(self, awaited: dict[tuple[int, int], set[tuple[tuple[int, ...], int]]], *, ends: bool) -> int:
        """The number of the state in which these symbols, by level, may come next, each with what follows it."""
        for level, symbol in ((level, symbol) for level in range(self.depth) for symbol in range(3)):
            if (level, symbol) in awaited:
                follows = self.set_number(awaited[level, symbol])
                for first, *rest in self.levels[level][symbol]:
                    awaited.setdefault((level + 1, first), set()).add((tuple(rest), follows))
        moves = {1 + s: self.set_number(awaited[self.depth, s]) for s in range(3) if (self.depth, s) in awaited}
        moves |= {END: 0} if ends else {}
        known = self.states.setdefault(tuple(moves.items()), len(self.moves))
        if known == len(self.moves):
            self.moves.append(moves)
            self.may.append([token in moves for token in range(4)])
        return known

    def set_number(self, pairs: set[tuple[tuple[int, ...], int]]) -> int:
        """The number of a set of pairs, a new one if it was not met before."""
        found = self.number.setdefault(frozenset(pairs), len(self.sets))
        if found == len(self.sets):
            self.sets.append(frozenset(pairs))
        return found

    def after(self, state: int, token: int) -> int:
        """The state after one more token, which must be one that may come."""
        if (state, token) not in self.met:
            self.met[state, token] = self.start if token == END else self.advance(state, token)
        return self.met[state, token]

    def advance(self, state: int, token: int) -> int:
        """The state after a token, by following every reading."""
        awaited: dict[tuple[int, int], set[tuple[tuple[int, ...], int]]] = {}
        todo, level = {self.moves[state][token]}, self.depth
        while todo - {0}:  # the sets that a finished symbol makes current, level by level upwards
            pairs = {pair for number in todo for pair in self.sets[number]}
            for (first, *rest), follows in ((rest, follows) for rest, follows in pairs if rest):
                awaited.setdefault((level, first), set()).add((tuple(rest), follows))
            todo, level = {follows for rest, follows in pairs if not rest}, level - 1
        return self.state(awaited, ends=0 in todo)

    def legal(self, tokens: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time 4"]:
        """The tokens that may come after each position of rows that begin with END."""
        states = torch.full(tokens.shape, self.start, device="cpu")
        for time, token in enumerate(tokens.cpu().unbind(1)):
            before = states[:, time - 1] if time else states[:, 0]
            known = self.table[before, token]
            for old, read in torch.stack([before, token], 1)[known < 0].unique(dim=0).tolist():
                new = self.after(old, read)
                if len(self.moves) > len(self.table):
                    self.table = torch.cat([self.table, torch.full_like(self.table, -1)])
                self.table[old, read] = new
            states[:, time] = self.table[before, token]
        return torch.tensor(self.may, device="cpu")[states].to(tokens.device)


@cache
def automaton(grammar: str, levels: int) -> Automaton:
    """Reads what the first symbol of some level, so many above the terminals, derives; it learns states as it reads."""
    return Automaton(rules(grammar)[-levels:])
