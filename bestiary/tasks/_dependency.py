"""Random grammars whose phrases have heads, the trees that they derive, and who depends on whom (tinylang, 2025)."""

import random
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._layout import pack_rows
from bestiary.tasks._task import stream

PARENT, CHILD, SIBLING = range(3)  # what may be asked about a word
Rule = tuple[int, ...]


class Grammar(NamedTuple):
    """Symbols 0 to words - 1 are words; nonterminal x is the symbol words + x, and its phrases end with a head.

    `rules` and `weights` are by nonterminal, `heads` is the probability of each head word by nonterminal.
    """

    words: int
    rules: tuple[tuple[Rule, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    heads: tuple[tuple[float, ...], ...]

    def alike(self) -> float:
        """How likely two sentences have the same derivation."""

        @cache
        def phrase(x: int) -> float:
            found, together = sum(h * h for h in self.heads[x]), 0.0
            for rule, weight in zip(self.rules[x], self.weights[x], strict=True):
                part = weight * weight
                for symbol in rule:
                    part *= phrase(symbol - self.words) if symbol >= self.words else 1.0
                together += part
            return found * together

        return sum(phrase(x) for x in range(len(self.rules))) / len(self.rules) ** 2


@cache
def draw_grammar(
    language: int, *, terminals: int, nonterminals: int, widest: int, rules: int, depth: int, own: bool
) -> Grammar:
    """The grammar of a language.

    Each nonterminal has a rank, uniform in 1 to `depth`, and 1 to `rules` rules of 1 to `widest` symbols, uniform among
    the terminals and the nonterminals of greater rank. The weights of rules and of heads are uniform on the simplex.
    With `own` each nonterminal has a head word of its own, after the terminals, and no rule of it ends with another.
    """
    dice = random.Random(stream("dependency_pcfg", language).initial_seed())
    words = terminals + nonterminals * own
    rank = [dice.randint(1, depth) for _ in range(nonterminals)]
    found: list[tuple[Rule, ...]] = []
    for x in range(nonterminals):
        able = [*range(terminals), *(words + y for y in range(nonterminals) if rank[y] > rank[x])]
        mine: list[Rule] = []
        for _ in range(dice.randint(1, rules)):
            rule = tuple(dice.choices(able, k=dice.randint(1, widest)))
            if not own or not any(rule[-len(other) :] == other or other[-len(rule) :] == rule for other in mine):
                mine.append(rule)
        found.append(tuple(mine))
    weights = tuple(on_simplex(len(mine), dice) for mine in found)
    heads = tuple(on_simplex(words, dice) for _ in range(nonterminals))
    if own:
        heads = tuple(tuple(float(word == terminals + x) for word in range(words)) for x in range(nonterminals))
    return Grammar(words, tuple(found), weights, heads)


def on_simplex(size: int, dice: random.Random) -> tuple[float, ...]:
    """So many positive numbers with the sum 1, each such choice equally likely."""
    drawn = [dice.expovariate(1.0) for _ in range(size)]
    total = sum(drawn)
    return tuple(x / total for x in drawn)


class Trees(NamedTuple):
    """Sentences, -1 after their end, and for each word the place of the head it depends on (-1: of none)."""

    words: Int[Tensor, "count length"]
    heads: Int[Tensor, "count length"]

    def pairs(self, kinds: tuple[int, ...], among: int) -> tuple[Tensor, Tensor]:
        """By kind, the places that may be asked about (-1 for none) and those of their answers, (count, kinds, length).

        Only the last occurrence of a word can be asked about; `among` is how many words the grammar has.
        """
        place = torch.arange(self.words.shape[1], device=self.words.device).expand_as(self.words)
        word, real, above = self.words.clamp(min=0), self.words >= 0, self.heads >= 0
        final = real & (place == last_of(word, place.where(real, -1), among))
        head = self.heads.clamp(min=0)
        end = place.where(~above, last_of(head, place.where(above, -1), place.shape[1]))  # the last beside each word
        found = {
            PARENT: (final & above, place, head),
            CHILD: (final.gather(1, head) & above, head, place),
            SIBLING: (final & final.gather(1, end), place, end),
        }
        asked = [about.where(able, -1) for able, about, _ in (found[kind] for kind in kinds)]
        return torch.stack(asked, dim=1), torch.stack([found[kind][2] for kind in kinds], dim=1)


def last_of(groups: Int[Tensor, "count length"], places: Int[Tensor, "count length"], among: int) -> Tensor:
    """The greatest of the places that are in the same group, of so many."""
    found = torch.full((len(groups), among), -1, device=groups.device)
    return found.scatter_reduce_(1, groups, places, "amax").gather(1, groups)


class Sampler:
    """Draws sentences of a grammar, all rows at once, by expanding every nonterminal until none is left."""

    def __init__(self, grammar: Grammar) -> None:
        self.words = grammar.words
        self.widest = max(len(rule) for of in grammar.rules for rule in of)
        most = max(len(of) for of in grammar.rules)
        table = [[*(pad(rule, self.widest) for rule in of)] for of in grammar.rules]
        self.table = torch.tensor([of + [of[0]] * (most - len(of)) for of in table], device="cpu")
        self.weights = flat_sums(tuple(pad(of, most, 0.0) for of in grammar.weights))
        self.heads, self.most = flat_sums(grammar.heads), most

    def trees(self, count: int, least: int, length: int, kinds: tuple[int, ...], rng: torch.Generator) -> Trees:
        """Sentences of `least` to `length` words with something to ask. Raises ValueError if there are hardly any."""
        kept: list[Trees] = []
        while sum(len(trees.words) for trees in kept) < count or not kept:
            if len(kept) == 50 or (len(kept) == 3 and not any(len(trees.words) for trees in kept)):
                raise ValueError(f"dependency_pcfg: hardly any sentence has {least} to {length} words and a question")
            drawn = self.attempt(2 * count + 500, length, rng)
            good = ((drawn.words >= 0).sum(1) >= least) & (drawn.pairs(kinds, self.words)[0] >= 0).flatten(1).any(1)
            kept.append(Trees(drawn.words[good], drawn.heads[good]))
        return Trees(*(torch.cat(parts)[:count] for parts in zip(*kept, strict=True)))

    def attempt(self, count: int, length: int, rng: torch.Generator) -> Trees:
        """Sentences; those that would be longer than `length` are left empty."""
        found = Trees(*(torch.full((count, length), -1, device=rng.device) for _ in range(2)))
        symbols = self.words + torch.randint(len(self.table), (count, 1), generator=rng, device=rng.device)
        heads, rows = torch.full_like(symbols, -1), torch.arange(count, device=rng.device)
        while len(rows):
            symbols, heads = self.expand(symbols, heads, length, rng)
            opens = (symbols >= self.words).any(1)
            for part, new in zip(found, (symbols, heads), strict=True):
                part[rows[~opens], : new.shape[1]] = new[~opens]
            symbols, heads, rows = symbols[opens], heads[opens], rows[opens]
        return found

    def expand(self, symbols: Tensor, heads: Tensor, length: int, rng: torch.Generator) -> list[Tensor]:
        """The rows with the symbols of a rule and a head in place of each nonterminal."""
        opens, x = symbols >= self.words, (symbols - self.words).clamp(min=0)
        below = self.table.to(rng.device)[x, self.choose(x, self.weights, self.most, rng)]
        below = below.masked_fill(~opens[:, :, None], -1)
        last = torch.where(opens, self.choose(x, self.heads, self.words, rng), symbols)
        symbols = torch.cat([below, last[:, :, None]], dim=2)
        slot = torch.arange(1, x.shape[1] + 1, device=rng.device) * (self.widest + 1) - 1  # of each last word
        heads = torch.where(heads < 0, -1, slot[heads])
        heads = torch.cat([slot[:, None].expand_as(below), heads[:, :, None]], dim=2)
        kept = symbols >= 0
        kept &= (kept.flatten(1).sum(1) <= length)[:, None, None]
        place = kept.flatten(1).cumsum(1) - 1
        heads = torch.where(heads < 0, -1, place.gather(1, heads.clamp(min=0).flatten(1)).view_as(heads))
        return pack_rows(kept, (symbols, -1), (heads, -1), length=max(1, int(place.max()) + 1))

    def choose(
        self, x: Int[Tensor, "count width"], sums: Tensor, among: int, rng: torch.Generator
    ) -> Int[Tensor, "count width"]:
        """A number below `among` for each nonterminal, by its weights."""
        point = torch.rand(x.shape, generator=rng, device=rng.device, dtype=torch.float64)
        return (torch.searchsorted(sums.to(rng.device), x + point, right=True) - x * among).clamp(0, among - 1)


def pad(of: tuple, size: int, filler: float = -1) -> list:
    """The numbers, with fillers up to this size."""
    return [*of, *[filler] * (size - len(of))]


def flat_sums(weights: tuple) -> Tensor:
    """Running sums of the weights of each nonterminal, plus its number, in one ascending row."""
    sums = [[min(total, 1.0) + x for total in accumulate(of)] for x, of in enumerate(weights)]
    return torch.tensor(sums, dtype=torch.float64, device="cpu").flatten()


def read_heads(words: list[int], grammar: Grammar) -> list[int]:
    """The place of the head of each word (-1: of none), where every nonterminal has a head word of its own.

    From the left: a head word closes a phrase, by the one rule with which what was read before it ends.
    """
    first = grammar.words - len(grammar.rules)  # of the head words
    heads, stack = [-1] * len(words), list[tuple[int, int]]()  # symbols and the places of their words
    for place, word in enumerate(words):
        if word < first:
            stack.append((word, place))
            continue
        symbols = tuple(symbol for symbol, _ in stack)
        rule = next(rule for rule in grammar.rules[word - first] if symbols[-len(rule) :] == rule)
        for _, child in stack[-len(rule) :]:
            heads[child] = place
        stack[-len(rule) :] = [(grammar.words + word - first, place)]
    return heads
