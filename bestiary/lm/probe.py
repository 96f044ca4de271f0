"""Recall in plain text, for any causal language model: facts are stated, then some of them are asked for.

    mqar         pairs of words, other text, then a word whose partner follows    (Arora et al., 2023, "Zoology")
    phone_book   names with numbers, then a name                                  (Jelassi et al., 2024)
    needle       sentences hidden in other text, one of them at a chosen depth    (Hsieh et al., 2024, "RULER")

`shots` solved questions about the same context stand before each question. Answers are scored in two ways: `exact` is
the share of questions whose greedy continuation is the answer, `ranked` the share where the answer is likelier than
other values of the context (at most `choices` in all, without those of solved questions). So a model that is far from
writing an answer still shows what it remembers, against a known level of chance. Everything is drawn as words, so all
models are asked the same questions, whatever their tokenizer.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bestiary.lm.journal import Journal
from bestiary.lm.reader import Reader, make_reader
from bestiary.runs.intervals import wilson
from bestiary.spec import nearest

FORMAT = 1  # raised when other questions are asked, so that old answers are not taken for new ones
NOUNS = """
apple arrow basket beacon beard bell bench blanket bottle branch brick bridge brush bucket butter button cabin camel
candle canoe carpet castle cedar cello cherry clover coffee comet copper coral cotton crane crown curtain dagger daisy
diamond dolphin donkey dragon drum eagle falcon feather fiddle flag flute fox frog garlic ginger glacier glove goat
grape guitar hammer harbor hazel helmet honey hook horse ivory jacket jelly kettle kite ladder lantern lemon lizard
lobster locket magnet mango maple marble melon mirror mitten monkey moth muffin needle nickel oak olive onion orchid
otter owl oyster paddle palace panda parrot peach pearl pebble pelican pencil pepper piano pigeon pillow pine pistol
planet plum pony potato pumpkin puppet rabbit radio raven ribbon rifle robin rocket rope ruby saddle sailor salmon
satin scarf shark shell shield shovel silver skull slipper snail spider sponge spoon squid statue stove sugar swan
sword teapot temple thistle thunder tiger timber toast torch trumpet tulip tunnel turtle umbrella vase velvet violin
walnut walrus whale whistle willow window wizard wolf zebra
"""
NAMES = """
Alice Adam Bella Bruno Clara Carl Diana David Elena Edgar Fiona Felix Grace George Hanna Henry Irene Isaac Julia James
Karen Kevin Laura Lucas Maria Martin Nina Noah Olga Oscar Paula Peter Rosa Robert Sara Simon Tina Thomas Vera Victor
Wanda Walter Yara Zeno
"""
SURNAMES = """
Abbott Baker Carter Dixon Ellis Fisher Gibson Hughes Ingram Jensen Keller Lawson Morgan Norris Owens Parker Quinn
Reeves Sawyer Turner Upton Vaughn Webster Yates Zimmer
"""
CITIES = """
Amsterdam Athens Baghdad Bangkok Berlin Bogota Boston Brussels Budapest Cairo Calgary Chicago Copenhagen Dakar Dallas
Delhi Denver Dublin Geneva Hanoi Havana Helsinki Houston Istanbul Jakarta Karachi Lima Lisbon London Madrid Manila
Miami Milan Moscow Mumbai Munich Nairobi Naples Oslo Ottawa Paris Prague Quito Rome Santiago Seattle Seoul Shanghai
Singapore Stockholm Sydney Tehran Tokyo Toronto Vienna Warsaw Zurich
"""
WHO = "People,Most visitors,The neighbours,A few students,Our guests,Many farmers,The children,Some workers"
DID = "talked,walked about,waited,sat together,stayed,worked,rested,looked around,went on,kept quiet"
HOW = "calmly,for a while,without hurry,as usual,in good spirits,much longer than planned,again,side by side"
WHEN = "in the morning,after lunch,until evening,on most days,before the rain,all summer,last week,at times"


class Row(NamedTuple):
    """The result at one difficulty; `low` and `high` are Wilson's 95 % interval for `ranked`."""

    task: str
    shots: int
    length: int  # mean number of words in a prompt
    entries: int
    depth: float  # of the needle: 0 is the beginning of the text, 1 the end; nan in the other tasks
    exact: float
    ranked: float
    chance: float  # of `ranked`
    low: float
    high: float
    asked: int  # questions


class Setting(NamedTuple):
    """One difficulty of a task."""

    task: str
    entries: int
    words: int  # of other text
    depth: float = math.nan
    shots: int = 0


class Question(NamedTuple):
    """A prompt and the answers to choose from; the first one is right."""

    prompt: str
    choices: tuple[str, ...]


class TaskKind(NamedTuple):
    """How a task states a fact, asks for one, and draws keys and values."""

    fact: str
    question: str
    before: str  # text between the context and the questions
    draw: Callable[[Random, int], list[tuple[str, str]]]  # so many pairs of key and value


def draw_nouns(rng: Random, count: int) -> list[tuple[str, str]]:
    """Pairs of different nouns."""
    nouns = rng.sample(NOUNS.split(), 2 * count)
    return list(zip(nouns[:count], nouns[count:], strict=True))


def draw_people(rng: Random, count: int) -> list[tuple[str, str]]:
    """Names of people with telephone numbers."""
    people = rng.sample([f"{name} {surname}" for name in NAMES.split() for surname in SURNAMES.split()], count)
    numbers = draw_numbers(rng, count, 7)
    return [(who, f"{n // 10**4:03d}-{n % 10**4:04d}") for who, n in zip(people, numbers, strict=True)]


def draw_codes(rng: Random, count: int) -> list[tuple[str, str]]:
    """Cities with codes of five digits."""
    return list(zip(rng.sample(CITIES.split(), count), map(str, draw_numbers(rng, count, 5)), strict=True))


def draw_numbers(rng: Random, count: int, digits: int) -> list[int]:
    """Different numbers of so many digits."""
    return rng.sample(range(10 ** (digits - 1), 10**digits), count)


KINDS = {
    "mqar": TaskKind("{}: {}", "{}:", "\n\n", draw_nouns),
    "phone_book": TaskKind(
        "{}: {}", "{}:", "\n\nFrom the phone book above, the numbers of some people:\n\n", draw_people
    ),
    "needle": TaskKind("The secret code of {} is {}.", "The secret code of {} is", "\n\n", draw_codes),
}
MAX_ENTRIES = {
    "mqar": len(NOUNS.split()) // 2,
    "phone_book": len(NAMES.split()) * len(SURNAMES.split()),
    "needle": len(CITIES.split()),
}


def probe(
    model: Any,
    tokenizer: Any = None,
    *,
    tasks: Sequence[str] = tuple(KINDS),
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

    `entries` is the number of facts in mqar and the phone book, `words` the number of other words that follow the
    facts of mqar or surround the needles; these words are made up, or taken from the file `text`. Each row asks
    `contexts` x `questions` questions, at most `questions` about the same context (about needles one).
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
    """Every difficulty of the tasks. Raises ValueError for an unknown task."""
    for task in tasks:
        if task not in KINDS:
            raise ValueError(f"no probe {task!r} {nearest(task, KINDS)}")
        for shot in shots:
            if task == "needle":
                yield from (Setting(task, needles, n, depth, shot) for n in words for depth in depths)
            else:
                yield from (
                    Setting(task, e, n, shots=shot) for e in entries for n in (words if task == "mqar" else (0,))
                )


def check_setting(setting: Setting, choices: int) -> None:
    """Raises ValueError for a difficulty that is impossible."""
    task, entries, words, depth, shots = setting
    if not shots + 2 <= entries <= MAX_ENTRIES[task]:
        raise ValueError(
            f"{task} with {entries} entries and {shots} shots: there must be two entries more than shots, "
            f"and {MAX_ENTRIES[task]} at most"
        )
    if choices < 2:
        raise ValueError(f"choices={choices}: an answer is ranked among two or more")
    if words < 0 or shots < 0 or depth < 0 or depth > 1:
        raise ValueError(f"{words} words, {shots} shots, depth {depth}: nothing may be below 0, nor a depth above 1")


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
    exact, ranked, length, asked, context = 0.0, 0.0, 0, 0, 0
    while asked < total:
        key = json.dumps([*setting, context])
        if key not in journal:
            tell(asked)
            rng = Random(f"{seed} {setting.task} {setting.entries} {setting.words} {context}")
            journal.add(key, ask(read, draw_questions(rng, setting, min(questions, total - asked), choices, other)))
        for greedy, first, words in journal[key]:
            exact, ranked, length = exact + greedy, ranked + first, length + words
        asked, context = asked + len(journal[key]), context + 1
    low, high = wilson(ranked / asked, asked)
    task, entries, _, depth, shots = setting
    shares = (exact / asked, ranked / asked, 1 / min(choices, entries - shots), low, high)
    return Row(task, shots, round(length / asked), entries, depth, *shares, asked)


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


def draw_questions(rng: Random, setting: Setting, count: int, choices: int, other: list[str] | None) -> list[Question]:
    """At most `count` questions about one context; with needles a single one, about the needle at the chosen depth."""
    kind = KINDS[setting.task]
    facts = kind.draw(rng, setting.entries)
    filler = draw_words(rng, setting.words, other)
    order = list(range(len(facts)))
    rng.shuffle(order)
    unsolved, solved = order[: len(facts) - setting.shots], order[len(facts) - setting.shots :]
    if setting.task == "needle":
        count, context = 1, hide_needles(rng, [kind.fact.format(*facts[i]) for i in order], filler, setting.depth)
    else:
        context = "\n".join(kind.fact.format(*fact) for fact in facts)
        context += "\n\n" + " ".join(filler) if filler else ""
    context += kind.before + "".join(kind.fact.format(*facts[i]) + "\n" for i in solved)
    questions = []
    for i in unsolved[:count]:
        values = [facts[j][1] for j in rng.sample([j for j in unsolved if j != i], min(choices, len(unsolved)) - 1)]
        prompt = context + kind.question.format(facts[i][0])
        questions.append(Question(prompt, tuple(f" {value}" for value in (facts[i][1], *values))))
    return questions


def hide_needles(rng: Random, needles: list[str], words: list[str], depth: float) -> str:
    """Text with needles between its sentences: the first at a relative depth, the others anywhere."""
    if not words:
        return " ".join(rng.sample(needles, len(needles)))
    depths = [depth, *(rng.random() for _ in needles[1:])]
    needles_at: dict[int, list[str]] = {}
    for needle, relative in zip(needles, depths, strict=True):
        position = round(relative * len(words))
        while 0 < position < len(words) and words[position - 1][-1] not in ".!?":
            position += 1
        needles_at.setdefault(position, []).append(needle)
    return " ".join(part for i in range(len(words) + 1) for part in (*needles_at.get(i, ()), *words[i : i + 1]))


def draw_words(rng: Random, count: int, other: list[str] | None) -> list[str]:
    """So many words of a text, or of made-up sentences."""
    if other is not None:
        start = rng.randrange(len(other) - count + 1)
        return other[start : start + count]
    words: list[str] = []
    while len(words) < count:
        words += (" ".join(rng.choice(part.split(",")) for part in (WHO, DID, HOW, WHEN)) + ".").split()
    return [*words[: count - 1], words[count - 1].rstrip(".") + "."] if count else []
