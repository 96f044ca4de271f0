"""Who depends on whom in a sentence of a grammar, Associative Treecall (Arora et al., 2025, section 5.2; tinylang)."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import measure_once, rate_by_counts
from bestiary.tasks._dependency import CHILD, PARENT, SIBLING, Sampler, draw_grammar, read_heads
from bestiary.tasks._draw import draw_in_blocks
from bestiary.tasks._layout import place_values
from bestiary.tasks._task import SILENT, Batch, Task

KINDS = {"parent": (PARENT,), "parent, sibling": (PARENT, SIBLING), "all": (PARENT, CHILD, SIBLING)}


class DependencyPCFG(Task):
    """Read a sentence of a fixed grammar, and say which word another one depends on.

        tokens   d a B c A = a PARENT       the tree: A( B( d a ) c ), where a phrase ends with its head
        targets  . . . . . . .   B

    A grammar has `nonterminals`, each with a rank from 1 to `depth` and 1 to `rules` rules of 1 to `widest` symbols,
    uniform among `terminals` and the nonterminals of greater rank; the weights of its rules are uniform on the
    simplex. A phrase is what a rule derives and then a head word, on which the words of its symbols depend: a terminal
    itself, and the head of a phrase below. `language` is the number of the grammar, which all rows share; a sentence
    starts from any nonterminal and has `shortest` to `length` words, or is drawn again. After `=` come a word, which
    means its last occurrence, and what is asked: the word it depends on, one that depends on it (any is right), or the
    last that depends on the same one (itself, if there is none; asked if that is the last occurrence of its word).
    The kind, then the answer among those possible, then the word asked about are each drawn uniformly.

    `heads="own"`: each nonterminal has a head word of its own and no rule of it ends with another of its rules, so that
    one reading from the left finds the tree. `heads="shared"`, as in the paper: a head is a terminal, by weights of its
    nonterminal that are uniform on the simplex; then a sentence may have several trees, and `solve` answers only what
    holds in all: the word before the last depends on the last.

    Which words occur says much, above all with heads of their own: `plateau` is the accuracy of the word of the
    sentence that was most often right where the same was asked in other rows, whatever the order of the words.

    Presets `atr5_20`, `atr10_20` and `atr5_8192` are the paper's grammars, by the longest rule plus 1 and the words.

    Facets: `kind` (0 parent, 1 child, 2 sibling), `distance` back to the asked word, `span` (from it to the answer) and
    `size` (words of the sentence).

    Departs from the paper: another random grammar of the same law; the kind is shown even if there is but one; there,
    sentences have 3 to 1,024 words.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "kinds='all', language=1",
        "heads='shared', widest=3, depth=6",
        "kinds='parent, sibling', terminals=60, length=30",
    )
    presets: ClassVar = {
        "atr5_20": "heads='shared', shortest=3, length=256",
        "atr10_20": "heads='shared', widest=9, shortest=3, length=256",
        "atr5_8192": "heads='shared', terminals=8192, shortest=3, length=256",
        "multihop": "heads='shared', kinds='parent, sibling', shortest=3, length=256",
    }
    axes: ClassVar = {"length": (24, 48, 96), "depth": (4, 7, 10), "kinds": tuple(KINDS)}

    def __init__(
        self,
        *,
        terminals: Positive = 20,
        nonterminals: Positive = 40,
        widest: Positive = 4,
        rules: Positive = 5,
        depth: Positive = 10,
        heads: Literal["own", "shared"] = "own",
        kinds: Literal["parent", "parent, sibling", "all"] = "parent",
        shortest: Positive = 8,
        length: Positive = 48,
        language: Natural = 0,
    ) -> None:
        if not 3 <= shortest <= length:
            raise ValueError(f"dependency_pcfg(shortest={shortest}): from 3 to length={length} words")
        sizes = {"terminals": terminals, "nonterminals": nonterminals, "widest": widest, "rules": rules, "depth": depth}
        self.grammar = draw_grammar(language, **sizes, own=heads == "own")
        self.sampler, self.kinds = Sampler(self.grammar), KINDS[kinds]
        self.shortest, self.longest, self.own = shortest, length, heads == "own"
        self.words, self.end = self.grammar.words, self.grammar.words + 3
        self.vocab, self.length = self.words + 5, length + 3
        self.open = "" if self.own else "with heads='shared', a sentence may have several trees"
        self.space = 1 / max(self.grammar.alike(), 2.0**-60)
        key = "dependency_pcfg", *sizes.values(), heads, kinds, shortest, length, language
        self.chance, self.plateau = measure_once(key, self.guesses)

    def guesses(self) -> tuple[float, float]:
        """How often the best single word is right, and the best of it and of two guesses among the sentence's words."""
        rows = 2**18 // self.longest
        batch, fit = self.draw(rows, "train", "dependency_pcfg"), self.draw(max(rows, 2**11), "train", "fit")
        right = batch.truth["right"].double()
        shown = torch.zeros_like(right).scatter_(1, batch.tokens[:, : self.longest], 1.0)[:, : self.words]
        best = right.mean(0).max().item()
        any_word, by_counts = (right.sum(1) / shown.sum(1)).mean().item(), rate_by_counts(fit, batch, self.words)
        return best, max(best, any_word, by_counts)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng, most=2**20)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        trees = self.sampler.trees(count, self.shortest, self.longest, self.kinds, rng)
        row = torch.arange(count, device=rng.device)
        asked, answer = trees.pairs(self.kinds, self.words)
        every = torch.zeros_like(answer).scatter_add_(2, answer.clamp(min=0), (asked >= 0).long())
        share = (asked >= 0) / every.gather(2, answer.clamp(min=0)).clamp(min=1)  # each answer is as likely
        lottery = torch.rand(share.shape, generator=rng, device=rng.device, dtype=torch.float64).log() / share
        able = torch.rand(count, len(self.kinds), generator=rng, device=rng.device).masked_fill(share.sum(2) == 0, -1)
        kind = able.argmax(1)
        drawn = lottery[row, kind].argmax(1)
        asked, answer = asked[row, kind, drawn], answer[row, kind, drawn]
        size, word = (trees.words >= 0).sum(1, keepdim=True), trees.words[row, asked]
        kinds = torch.tensor(self.kinds, device=rng.device)[kind]
        tokens = torch.full((count, self.length), self.vocab - 1, device=rng.device)
        tokens[:, : self.longest] = torch.where(trees.words < 0, self.vocab - 1, trees.words)
        question = torch.stack([torch.full_like(word, self.end), word, self.words + kinds], dim=1)
        tokens.scatter_(1, size + torch.arange(3, device=rng.device), question)
        right = torch.zeros(count, self.vocab, dtype=torch.bool, device=rng.device)
        right[row, trees.words[row, answer]] = True
        rows, places = ((trees.heads == asked[:, None]) & (kinds == CHILD)[:, None]).nonzero(as_tuple=True)
        right[rows, trees.words[rows, places]] = True
        where = size + 2
        facets = {"kind": kinds, "distance": where[:, 0] - asked, "span": (answer - asked).abs(), "size": size[:, 0]}
        return Batch(
            tokens,
            place_values(where, trees.words[row, answer][:, None], self.length, SILENT),
            {name: place_values(where, facet[:, None].int(), self.length) for name, facet in facets.items()},
            {"right": right},
        )

    def right(self, batch: Batch, answers: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
        return batch.truth["right"].gather(1, answers.clamp(min=0)) & (answers != SILENT)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            size = sequence.index(self.end) if self.end in sequence else len(sequence)
            if size + 2 < len(sequence):
                words, (word, kind) = sequence[:size], sequence[size + 1 : size + 3]
                answers[row, size + 2] = self.answer(words, size - 1 - words[::-1].index(word), kind - self.words)
        return answers

    def answer(self, words: list[int], asked: int, kind: int) -> int:
        """A right answer about the word at this place, or SILENT where the grammar leaves it open."""
        last = len(words) - 1
        if not self.own:
            sure = {(PARENT, last - 1): last, (CHILD, last): last - 1, (SIBLING, last): last}.get((kind, asked))
            return SILENT if sure is None else words[sure]
        heads = read_heads(words, self.grammar)
        among = {PARENT: [heads[asked]], CHILD: [place for place, head in enumerate(heads) if head == asked]}
        among[SIBLING] = [place for place, head in enumerate(heads) if head == heads[asked]]
        return words[among[kind][-1]]
