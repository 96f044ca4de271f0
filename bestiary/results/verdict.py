"""In plain words: where a mixer stands beside the field."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from bestiary.experiments._protocol import RATES_THAT_WORK
from bestiary.report.words import count_noun, join_words, list_names
from bestiary.runs.table import scaled_accuracy

KNOWN, UNKNOWN = 0.9, 0.2  # scaled so that guessing is 0: from here on a mixer can do it, below this it cannot
EQUAL = 2.0  # states up to this factor apart are called about equal
NAMED = 3  # mixers in a sentence
ABILITIES = {  # columns, as they are called in a sentence
    "overwriting": "overwritten values",
    "noisy recall": "recall in noise",
    "fuzzy recall": "keys of several tokens",
    "parity": "parity",
    "S3": "products in S3",
    "flip-flop": "flip-flop",
    "copying": "copying",
}
LONGER = ("longer", "beyond the trained length")
HARDER = dict.fromkeys(("noisy recall", "parity", "S3", "copying"), LONGER) | {
    "flip-flop": ("sparse", "with sparse writes"),
}


class Score(NamedTuple):
    """One cell of the table of scores."""

    value: float
    low: float
    high: float
    chance: float
    seeds: int

    @property
    def scaled(self) -> float:
        """So that guessing is 0 and a perfect score 1."""
        return scaled_accuracy(self.value, self.chance)

    @property
    def diverged(self) -> bool:
        """Whether all its runs did: without an answer the interval goes from 0 to 1."""
        return self.value == 0 and self.high == 1


def scores_of(table: pd.DataFrame, mixer: str) -> dict[str, Score]:
    """The scores of a mixer by column."""
    rows = table[table["mixer"] == mixer]
    fields = [rows[name] for name in ("value", "low", "high", "chance", "seeds")]
    return dict(zip(rows["column"], map(Score, *fields), strict=True)) if len(rows) else {}


class Entry(NamedTuple):
    """A mixer: what was scored of it, by column, and what was measured, by name."""

    name: str
    pattern: str
    family: str
    scores: Mapping[str, Score]
    facts: Mapping[str, float]


def verdict(own: Entry, field: Mapping[str, Entry]) -> list[str]:
    """Sentences on recall, on what else the mixer can do, on learning rates and on cost, beside the others."""
    sentences = [
        *recall_sentences(own, field),
        *ability_sentences(own.scores),
        *rate_sentences(own.scores, {name: mixer.scores for name, mixer in field.items()}),
        *cost_sentences(own.facts),
    ]
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def recall_sentences(own: Entry, field: Mapping[str, Entry]) -> Iterator[str]:
    """Recall at the largest width beside mixers of about equal state, and the rank over all widths."""
    widths = recall_widths(own)
    if not widths:
        return
    width, score = widths[-1], own.scores[f"recall {widths[-1]}"]
    said = f"at width {width}, with a state of {own.facts[f'state {width}']:,.0f} numbers"
    if score.diverged:
        yield f"all runs diverged {said}."
    else:
        yield f"recalls {share_text(score)} {said}{beside(score, equal_states(own, field, width))}."
    others = [mean_recall(mixer, widths) for mixer in field.values() if {*widths} <= {*recall_widths(mixer)}]
    if others:
        rank = 1 + sum(value > mean_recall(own, widths) for value in others)
        yield f"in mean recall over {count_noun(len(widths), 'width')} it is {ordinal(rank)} of {len(others) + 1}."


def recall_widths(mixer: Entry) -> list[int]:
    """The widths at which recall was scored, from the least."""
    return sorted(int(column.split()[1]) for column in mixer.scores if column.startswith("recall"))


def equal_states(own: Entry, field: Mapping[str, Entry], width: int) -> dict[str, Score]:
    """The scores at a width of the mixers whose state there is about as large, without those that diverged."""
    column, fact = f"recall {width}", f"state {width}"
    known = {name: mixer for name, mixer in field.items() if column in mixer.scores and fact in mixer.facts}
    own_state = max(1, own.facts[fact])  # a mixer may keep nothing
    ratios = {name: mixer.facts[fact] / own_state for name, mixer in known.items()}
    equal = {name: known[name].scores[column] for name, ratio in ratios.items() if 1 / EQUAL <= ratio <= EQUAL}
    return {name: score for name, score in equal.items() if not score.diverged}


def recall_neighbours(own: Entry, field: Mapping[str, Entry]) -> list[str]:
    """Mixers of about equal state at the largest width, those with the nearest recall first."""
    widths = recall_widths(own)
    if not widths or own.scores[f"recall {widths[-1]}"].diverged:
        return []
    equal, value = equal_states(own, field, widths[-1]), own.scores[f"recall {widths[-1]}"].value
    return sorted(equal, key=lambda name: abs(equal[name].value - value))


def beside(score: Score, equal: Mapping[str, Score]) -> str:
    """How a score compares with those of mixers of about equal state."""
    if not equal:
        return "; no mixer of the field has about as much"
    nearest = sorted(equal, key=lambda name: abs(equal[name].value - score.value))
    above = [name for name in nearest if equal[name].low > score.high]
    below = [name for name in nearest if equal[name].high < score.low]
    like = [name for name in nearest if name not in (*above, *below)]
    if like:
        others = [f"{word} {list_names(names, NAMED)}" for word, names in (("below", above), ("above", below)) if names]
        but = f", but {', and '.join(others)}" if others else ""
        return f": not told apart from {list_names(like, NAMED)}{but}, of about equal state"
    if len(equal) == 1:
        (name,) = equal
        return f": {'more' if below else 'less'} than {name}, of about equal state"
    if not above:
        return f": more than any of {count_noun(len(equal), 'mixer')} of about equal state, of which {below[0]} is next"
    if not below:
        return f": less than any of {count_noun(len(equal), 'mixer')} of about equal state, of which {above[0]} is next"
    return f": between {below[0]} and {above[0]}, of about equal state"


def mean_recall(mixer: Entry, widths: Sequence[int]) -> float:
    """Over these widths."""
    return sum(mixer.scores[f"recall {width}"].value for width in widths) / len(widths)


def ability_sentences(own: Mapping[str, Score]) -> Iterator[str]:
    """What it solves, in the harder form too or not, what it learns in part, and what it does not learn."""
    solved, partly, not_learnt = [], [], []
    for column, words in ABILITIES.items():
        if column not in own:
            continue
        score = own[column]
        if score.scaled >= KNOWN:
            solved.append(words + harder_words(own, column))
        else:
            how = "all runs diverged" if score.diverged else f"{score.value:.2f}"
            (not_learnt if score.scaled <= UNKNOWN else partly).append(f"{words} ({how})")
    if solved:
        yield f"solves {join_words(solved)}."
    if partly:
        yield f"learns in part: {join_words(partly)}."
    if not_learnt:
        yield f"does not learn within this budget: {join_words(not_learnt)}."


def harder_words(own: Mapping[str, Score], column: str) -> str:
    """Whether the harder form of a task that it solves is solved too, in brackets."""
    form, words = HARDER.get(column, ("", ""))
    harder = own.get(f"{column}, {form}")
    if harder is None:
        return ""
    return f" ({words} too)" if harder.scaled >= KNOWN else f" (not {words}: {harder.value:.2f})"


def rate_sentences(own: Mapping[str, Score], field: Mapping[str, Mapping[str, Score]]) -> Iterator[str]:
    """The window of learning rates, and how many of the field have a narrower one."""
    if RATES_THAT_WORK not in own:
        return
    decades = own[RATES_THAT_WORK].value
    if math.isnan(decades):
        yield "none of the six learning rates solves the easy task."
        return
    others = [scores[RATES_THAT_WORK].value for scores in field.values() if RATES_THAT_WORK in scores]
    narrower = sum(math.isnan(other) or other < decades for other in others)
    said = f"works over {decades:.1f} decades of learning rates" if decades else "works at one of six learning rates"
    yield said + (f"; {narrower} of {len(others)} others work over fewer." if others else ".")


def cost_sentences(facts: Mapping[str, float]) -> Iterator[str]:
    """Ratios of time, as they were measured."""
    if "train beside attention" in facts:
        train, decode = (facts[f"{what} beside attention"] for what in ("train", "decode"))
        pass_text = f"a training pass over 1,024 tokens takes {train:.1f} times as long as attention's"
        grows = f"its time grows with the length to the power {facts['growth']:.1f}"
        yield f"{pass_text}, a decoded token {decode:.1f} times; {grows}."


def share_text(score: Score) -> str:
    """A share with its interval."""
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `11th`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
