"""Lano, a language of hierarchical structure with local ambiguity (Allen-Zhu & Li, 2023; Allen-Zhu, 2025, part 4.1)."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, measure_once
from bestiary.tasks._draw import uniform_below
from bestiary.tasks._grammar import automaton, rules
from bestiary.tasks._layout import pack_rows
from bestiary.tasks._task import SILENT, Batch, Task, stream

BOUNDARY = 3  # the symbol of every level that becomes the token between sentences


class Lano(Task):
    """Read sentences of a fixed context-free grammar, and say how they go on where that is certain.

        tokens   0 3 1 2 0 2 2 1 0 3 2 0 ...
        targets  . . 2 0 . 2 1 0 . . . . ...      (sentences are 2 2 1, 3 1 2, 3 2 2 and 3 2)

    Tokens 1 to 3 are terminals, and 0 ends each sentence and begins the row, which is cut at `length`. A grammar has
    levels of three symbols, each with three or four rules, two or three symbols of the level below, and a rule is
    drawn uniformly. Of each `grammar`, cfg3f of the first paper and the others of the second, the lowest `levels` are
    taken, from the first symbol of their top level: sentences of 2^levels to 3^levels tokens.

    `scored="forced"` asks where just one token may come: some sentence begins with what has been read of this one
    and goes on with that token. This is found exactly, by following all derivations at once. "all" asks for the next
    token everywhere, as the paper trains, and counts as right every one that may come; most of the time two or three
    may, so that one answer to everything is nearly always right. The further score `illegal` is the probability that
    a model gives to tokens that may not come.

    Much is known without reading far: at the defaults the commonest answer after the same 2 tokens is right 0.70 of
    the time, and after the same 4 tokens 0.83, where `chance` and `plateau` are 0.45.

    Facets: `place` (how many tokens of the sentence are read) and `boundary` (how many phrases, of different levels,
    ended with the last of them).

    Departs from the paper: whole grammars, which have 6 levels (cfg3f) or 7 (cfg3j, cfg3k), are presets, since a
    reader's possible states grow from hundreds at 3 levels to more than can be met again at 6, where some ten
    thousand tokens are read in a second; the next token is scored after a right beginning, and not a continuation
    that the model wrote alone; and a row begins with a sentence.
    """

    family: ClassVar = "reasoning"
    variants: ClassVar = (
        "levels=1, length=40",
        "levels=2, length=90, grammar='cfg3j'",
        "grammar='cfg3k', scored='all'",
    )
    presets: ClassVar = {
        "cfg3f": "levels=6, length=512",
        "cfg3j": "grammar='cfg3j', levels=7, length=1536",
        "cfg3k": "grammar='cfg3k', levels=7, length=1536",
    }
    axes: ClassVar = {"levels": (1, 2, 3, 4)}

    def __init__(
        self,
        *,
        grammar: Literal["cfg3f", "cfg3j", "cfg3k"] = "cfg3f",
        levels: Positive = 3,
        length: Positive = 80,
        scored: Literal["forced", "all"] = "forced",
    ) -> None:
        if levels > len(rules(grammar)):
            raise ValueError(f"lano(levels={levels}): {grammar} has {len(rules(grammar))} levels")
        if length <= 2 ** (levels + 1):
            raise ValueError(f"lano(length={length}): {levels} levels need a length of {2 ** (levels + 1) + 1} or more")
        self.rules, self.levels = rules(grammar)[-levels:], levels
        self.vocab, self.length, self.automaton = 4, length, automaton(grammar, levels)
        self.scored = scored
        self.chance, _ = measure_once(("lano", grammar, levels, length, scored), self.guesses)
        self.plateau = self.chance
        self.space = from_bits(self.entropy() * length / (3**levels + 1))

    def guesses(self) -> tuple[float, float]:
        """How often the best single token may come, measured on the fewer tokens the deeper the grammar."""
        batch = self.sample(max(1, 2 ** max(13, 21 - 2 * self.levels) // self.length), stream("lano"))
        asked = batch.targets != SILENT
        if not asked.any(1).all():  # some whole sentences are never forced, so that no length is surely enough
            raise ValueError(f"lano(length={self.length}): rows so short may ask nothing; try length={2 * self.length}")
        return self.automaton.legal(batch.tokens)[asked].double().mean(0).max().item(), 0.0

    def entropy(self) -> float:
        """About how many bits a sentence has, as the chance that two derivations agree tells."""
        same = [1.0] * 3
        for level in reversed(self.rules):
            same = [sum(math.prod(same[symbol] for symbol in rule) for rule in of) / len(of) ** 2 for of in level]
        return -math.log2(same[0])

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        sentences = 1 + self.length // (2**self.levels + 1)
        symbols = torch.tensor([0, BOUNDARY], device=rng.device).repeat(count, sentences)[:, : self.length]
        ended = torch.zeros_like(symbols)
        for level in self.rules:
            table, choices = self.rule_table(level, rng.device)
            children = table[symbols, uniform_below(choices[symbols], rng)]
            last = children.ne(-1).sum(2, keepdim=True) - 1
            closes = torch.zeros_like(children).scatter_(2, last, (ended + (symbols != BOUNDARY))[:, :, None])
            symbols, ended = pack_rows(children >= 0, (children, BOUNDARY), (closes, 0), length=self.length)
        targets = (symbols + 1) % 4
        tokens, ended = F.pad(targets, (1, 0))[:, :-1], F.pad(ended, (1, 0))[:, :-1]
        times = torch.arange(self.length, device=rng.device)
        place = times - times.masked_fill(tokens != 0, 0).cummax(1).values
        if self.scored == "forced":
            targets = targets.masked_fill(self.automaton.legal(tokens).sum(2) > 1, SILENT)
        return Batch(tokens, targets, {"place": place.int(), "boundary": ended.int()})

    def rule_table(self, level: tuple[tuple[tuple[int, ...], ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """The rules of a level as a table, -1 where one is short, and how many each symbol has."""
        every = (*level, *[((BOUNDARY,),)] * (4 - len(level)))
        table = [[(*rule, -1, -1)[:3] for rule in (*of, *[of[0]] * 3)[:4]] for of in every]
        return torch.tensor(table, device=device), torch.tensor([len(of) for of in every], device=device)

    def right(self, batch: Batch, answers: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
        legal = self.automaton.legal(batch.tokens)
        return legal.gather(2, answers.clamp(min=0)[:, :, None])[:, :, 0] & (answers != SILENT)

    def extra_scores(
        self, batch: Batch, logits: Float[Tensor, "answers vocab"]
    ) -> dict[str, Float[Tensor, " answers"]]:
        legal = self.automaton.legal(batch.tokens)[batch.targets != SILENT]
        return {"illegal": logits.softmax(-1).masked_fill(legal, 0).sum(1)}

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = []
        for sequence in tokens.tolist():
            state, row = self.automaton.start, []
            for token in sequence:
                state = self.automaton.after(state, token)
                row.append(min(self.automaton.moves[state]))
            answers.append(row)
        return torch.tensor(answers, device=tokens.device)
