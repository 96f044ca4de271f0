"""Recall in plain text, for any causal language model: facts are stated, then some of them are asked for.

    mqar         pairs of words, other text, then a word whose partner follows          (Arora et al., 2023, "Zoology")
    phone_book   names with numbers, then a name                                        (Jelassi et al., 2024)
    needle       sentences hidden in other text, one of them at a chosen depth          (Hsieh et al., 2024, "RULER")
    updates      the same, but a code is changed later on, and the last one counts      (after the same)
    variables    a name that stands for a name that stands for a number                 (the same, variable tracking)
    hops         the boss of someone's boss, from two sentences
    meaning      a question that shares no word with its answer                   (Modarressi et al., 2025, "NoLiMa")

`shots` solved questions about the same context stand before each question. Answers are scored in two ways: `exact` is
the share of questions whose greedy continuation is the answer, `ranked` the share where the answer is likelier than
other values of the context (at most `choices` in all, without those of solved questions). So a model that is far from
writing an answer still shows what it remembers, against a known level of chance. Everything is drawn as words (see
bestiary/lm/probe.toml), so all models are asked the same questions, whatever their tokenizer.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.lm.journal import Journal
from bestiary.lm.questions import DRAW, Question, Setting, check_setting, count_choices, draw_questions, kinds
from bestiary.lm.reader import Reader, make_reader
from bestiary.runs.intervals import interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FORMAT = 2  # raised when other questions are asked, so that old answers are not taken for new ones
TASKS = ("mqar", "phone_book", "needle")  # unless others are asked for


class Row(NamedTuple):
    """The result at one difficulty; `low` and `high` are a 95 % interval for `ranked`, over contexts.

    It is Student's t over the shares of the contexts, since questions about one context are not independent, but never
    narrower than Wilson's interval for all questions.
    """

    task: str
    shots: int
    length: int  # mean number of words in a prompt
    words: int  # of other text
    entries: int
    depth: float  # of what is asked for: 0 is the beginning of the text, 1 the end; nan where nothing is hidden
    exact: float
    ranked: float
    chance: float  # of `ranked`
    low: float
    high: float
    asked: int  # questions


def probe(
    model: Any,
    tokenizer: Any = None,
    *,
    tasks: Sequence[str] = TASKS,
    shots: Sequence[int] = (0, 2),
    entries: Sequence[int] = (5, 20, 80),
    words: Sequence[int] = (0, 200, 800),
    needles: int = 8,
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    contexts: int = 16,
    questions: int = 4,
    choices: int = 16,
    seed: int = 0,
    text: Path | str | None = None,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Row]:
    """One `Row` for each difficulty of each task, from a causal model and its tokenizer, or from a `Reader` alone.

    `entries` is the number of entries in mqar and the phone book, `needles` in the other tasks, `words` the number of
    other words that follow the facts of mqar or surround the hidden ones; they are made up, or taken from the file
    `text`. Each row asks `contexts` x `questions` questions, at most `questions` about the same context (one where the
    facts are hidden).
    Questions whose answers are in `journal` are not asked again; `progress` is called with how many are answered, and
    of how many. Raises ValueError, before anything is asked, for a difficulty that is impossible.
    """
    settings = list(list_settings(tasks, entries=entries, words=words, needles=needles, depths=depths, shots=shots))
    for setting in settings:
        check_setting(setting, choices)
    read = model if tokenizer is None else make_reader(model, tokenizer)
    other = None if text is None else Path(text).read_text().split()
    if other is not None and len(other) < max(words):
        raise ValueError(f"{text} has {len(other)} words, {max(words)} are asked for")
    total, journal = contexts * questions, journal or Journal()
    options = {"total": total, "questions": questions, "choices": choices, "seed": seed, "other": other}

    def rows() -> Iterator[Row]:
        for i, setting in enumerate(settings):

            def tell(asked: int, before: int = i * total) -> None:
                if progress is not None:
                    progress(before + asked, len(settings) * total)

            yield measure(read, setting, journal=journal, tell=tell, **options)
        if progress is not None:
            progress(len(settings) * total, len(settings) * total)

    return rows()


def list_settings(
    tasks: Sequence[str],
    *,
    entries: Sequence[int],
    words: Sequence[int],
    needles: int,
    depths: Sequence[float],
    shots: Sequence[int],
) -> Iterator[Setting]:
    """Every difficulty of the tasks."""
    for task in tasks:
        for shot in shots:
            if task in DRAW and kinds()[task].hidden:
                places = [(n, depth) for n in words for depth in (depths if n else (math.nan,))]
                yield from (Setting(task, needles, n, depth, shot) for n, depth in places)
            else:
                yield from (
                    Setting(task, e, n, shots=shot) for e in entries for n in (words if task == "mqar" else (0,))
                )


def measure(
    read: Reader,
    setting: Setting,
    *,
    total: int,
    questions: int,
    choices: int,
    seed: int,
    other: list[str] | None,
    journal: Journal,
    tell: Callable[[int], None],
) -> Row:
    """Ask `total` questions of one difficulty, context by context."""
    exact, ranked, length, asked, shares = 0.0, 0.0, 0, 0, list[float]()
    others = "" if other is None else hashlib.sha256(json.dumps(other).encode()).hexdigest()[:12]
    asked_how = seed, questions, choices, others
    while asked < total:
        context = len(shares)
        key = json.dumps([*setting, context, *asked_how])
        if key not in journal:
            tell(asked)
            rng = Random(f"{seed} {setting.task} {setting.entries} {setting.words} {context}")
            journal.add(key, ask(read, draw_questions(rng, setting, min(questions, total - asked), choices, other)))
        for greedy, first, size in journal[key]:
            exact, ranked, length = exact + greedy, ranked + first, length + size
        asked += len(journal[key])
        shares.append(sum(first for _, first, _ in journal[key]) / len(journal[key]))
    ends = interval(shares, asked)
    task, entries, words, depth, shots = setting
    found = (exact / asked, ranked / asked, 1 / count_choices(setting, choices), *ends)
    return Row(task, shots, round(length / asked), words, entries, depth, *found, asked)


def ask(read: Reader, batch: list[Question]) -> list[tuple[bool, float, int]]:
    """For each question: is the answer exact, how far is it ranked first (less in a tie), the words of the prompt."""
    scores = iter(read([(question.prompt, choice) for question in batch for choice in question.choices]))
    results = []
    for question in batch:
        answers = [next(scores) for _ in question.choices]
        best = max(score.log_likelihood for score in answers)
        ties = sum(score.log_likelihood == best for score in answers)
        first = (answers[0].log_likelihood == best) / ties
        results.append((answers[0].greedy, first, len(question.prompt.split())))
    return results


def depth_figure(table: "pd.DataFrame") -> "Figure | None":
    """Shares of `ranked`: a row for each hidden task and length, a column for each depth; None if none was hidden."""
    from bestiary.report.plot import matrix

    rows = table[table["depth"].notna() & (table["words"] > 0)]
    if rows.empty:
        return None
    names = rows["task"] + ", " + rows["words"].astype(str) + " words" + rows["shots"].map(lambda n: f", {n} shots")
    wide = rows.assign(name=names).pivot_table(index="name", columns="depth", values="ranked", sort=False)
    wide.columns = [f"depth {depth:g}" for depth in wide.columns]
    return matrix(wide, note="Share of questions whose answer is ranked first, by the depth of what is asked for.")
