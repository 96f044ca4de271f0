"""The questions of `bestiary probe`: facts are drawn as words, stated in a context, and one of them is asked for.

The words and the sentences are in probe.toml, the same for every model. An entry is what one question is about: a key,
its value, and what else its facts mention (a former value, a name in between).
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, NamedTuple

from bestiary.spec import nearest


class Setting(NamedTuple):
    """One difficulty of a task."""

    task: str
    entries: int
    words: int  # of other text
    depth: float = math.nan  # of the facts asked for, where they are hidden in the text: 0 begins it, 1 ends it
    shots: int = 0


class Question(NamedTuple):
    """A prompt and the answers to choose from; the first one is right."""

    prompt: str
    choices: tuple[str, ...]


class TaskKind(NamedTuple):
    """How a task states its facts and asks for one, as in probe.toml."""

    fact: Sequence[str]
    question: str
    before: str  # text between the context and the questions
    hidden: bool  # whether the facts lie in other text, at a chosen depth
    source: str


Entry = Mapping[str, str]  # key, value, and perhaps old, middle or landmark


@cache
def contents() -> dict[str, Any]:
    """What probe.toml holds."""
    return tomllib.loads(files("bestiary").joinpath("lm", "probe.toml").read_text(encoding="utf-8"))


def kinds() -> dict[str, TaskKind]:
    """The tasks by name."""
    return {name: TaskKind(**given) for name, given in contents()["tasks"].items()}


def word_list(name: str) -> list[str]:
    """The nouns, names, surnames or cities."""
    return contents()["words"][name].split()


def draw_numbers(rng: Random, count: int, digits: int) -> list[int]:
    """Different numbers of so many digits."""
    return rng.sample(range(10 ** (digits - 1), 10**digits), count)


def draw_nouns(rng: Random, count: int) -> list[Entry]:
    """Pairs of different nouns."""
    nouns = rng.sample(word_list("nouns"), 2 * count)
    return pair_up(nouns[:count], nouns[count:])


def draw_people(rng: Random, count: int) -> list[Entry]:
    """Names of people with telephone numbers."""
    people = rng.sample(
        [f"{name} {surname}" for name in word_list("names") for surname in word_list("surnames")], count
    )
    return pair_up(people, [f"{n // 10**4:03d}-{n % 10**4:04d}" for n in draw_numbers(rng, count, 7)])


def draw_codes(rng: Random, count: int) -> list[Entry]:
    """Cities with codes of five digits."""
    return pair_up(rng.sample(word_list("cities"), count), map(str, draw_numbers(rng, count, 5)))


def draw_updates(rng: Random, count: int) -> list[Entry]:
    """Cities with a former and a present code."""
    numbers = list(map(str, draw_numbers(rng, 2 * count, 5)))
    return pair_up(rng.sample(word_list("cities"), count), numbers[:count], old=numbers[count:])


def draw_variables(rng: Random, count: int) -> list[Entry]:
    """Nouns that stand for other nouns, which stand for numbers."""
    nouns = rng.sample(word_list("nouns"), 2 * count)
    return pair_up(nouns[:count], map(str, draw_numbers(rng, count, 5)), middle=nouns[count:])


def draw_bosses(rng: Random, count: int) -> list[Entry]:
    """People with their boss, and the boss of that one."""
    names = rng.sample(word_list("names"), 3 * count)
    return pair_up(names[:count], names[2 * count :], middle=names[count : 2 * count])


def draw_windows(rng: Random, count: int) -> list[Entry]:
    """Cities with someone who sees their landmark."""
    cities = rng.sample(sorted(contents()["landmarks"]), count)
    seen = [contents()["landmarks"][city] for city in cities]
    return pair_up(cities, rng.sample(word_list("names"), count), landmark=seen)


def pair_up(keys: Sequence[str], values: Any, **others: Sequence[str]) -> list[Entry]:
    """Entries from lists of their parts."""
    parts = {"key": keys, "value": values, **others}
    return [dict(zip(parts, each, strict=True)) for each in zip(*parts.values(), strict=True)]


DRAW: dict[str, Callable[[Random, int], list[Entry]]] = {
    "mqar": draw_nouns,
    "phone_book": draw_people,
    "needle": draw_codes,
    "updates": draw_updates,
    "variables": draw_variables,
    "hops": draw_bosses,
    "meaning": draw_windows,
}
LURES = {"updates": "old", "hops": "middle"}  # of the entry itself, which could be taken for its value


def most_entries(task: str) -> int:
    """How many entries a context of a task can have."""
    sizes = {name: len(word_list(name)) for name in ("nouns", "names", "surnames", "cities")}
    return {
        "mqar": sizes["nouns"] // 2,
        "phone_book": sizes["names"] * sizes["surnames"],
        "variables": sizes["nouns"] // 2,
        "hops": sizes["names"] // 3,
        "meaning": len(contents()["landmarks"]),
    }.get(task, sizes["cities"])


def check_setting(setting: Setting, choices: int) -> None:
    """Raises ValueError for a task that is not there or a difficulty that is impossible."""
    task, entries, words, depth, shots = setting
    if task not in DRAW:
        raise ValueError(f"no probe {task!r} {nearest(task, DRAW)}")
    if not shots + 2 <= entries <= most_entries(task):
        raise ValueError(
            f"{task} with {entries} entries and {shots} shots: there must be two entries more than shots, "
            f"and {most_entries(task)} at most"
        )
    if choices < 2:
        raise ValueError(f"choices={choices}: an answer is ranked among two or more")
    if words < 0 or shots < 0 or depth < 0 or depth > 1:
        raise ValueError(f"{words} words, {shots} shots, depth {depth}: nothing may be below 0, nor a depth above 1")


def count_choices(setting: Setting, choices: int) -> int:
    """How many answers a question has: the right one, the values of unsolved entries, and the entry's own lure."""
    return min(choices, setting.entries - setting.shots + (setting.task in LURES))


def draw_questions(rng: Random, setting: Setting, count: int, choices: int, other: list[str] | None) -> list[Question]:
    """At most `count` questions about one context; where facts are hidden a single one, about those at the depth."""
    kind, shots = kinds()[setting.task], setting.shots
    entries = DRAW[setting.task](rng, setting.entries)
    filler = draw_words(rng, setting.words, other)
    order = list(range(len(entries)))
    rng.shuffle(order)
    unsolved, solved = order[: len(entries) - shots], order[len(entries) - shots :]
    if kind.hidden:
        count, context = 1, hide(rng, [state(kind, entries[i]) for i in order], filler, setting.depth)
    else:
        context = "\n".join(fact for entry in entries for fact in state(kind, entry))
        context += "\n\n" + " ".join(filler) if filler else ""
    context += kind.before + "".join(solve(kind, entries[i]) + "\n" for i in solved)
    questions, lure, size = [], LURES.get(setting.task), count_choices(setting, choices)
    for i in unsolved[:count]:
        own = [entries[i]["value"], *([entries[i][lure]] if lure else [])]
        others = rng.sample([j for j in unsolved if j != i], size - len(own))
        values = [*own, *(entries[j]["value"] for j in others)]
        prompt = context + kind.question.format(**entries[i])
        questions.append(Question(prompt, tuple(f" {value}" for value in values)))
    return questions


def state(kind: TaskKind, entry: Entry) -> list[str]:
    """The facts of an entry, in order."""
    return [fact.format(**entry) for fact in kind.fact]


def solve(kind: TaskKind, entry: Entry) -> str:
    """A question with its answer, as an example."""
    return f"{kind.question.format(**entry)} {entry['value']}{'.' if kind.hidden else ''}"


def hide(rng: Random, facts: list[list[str]], words: list[str], depth: float) -> str:
    """Text with the facts of entries between its sentences: the last of the first entry at a relative depth.

    The others are anywhere; facts of one entry keep their order.
    """
    if not words:
        mixed = [i for i, of in enumerate(facts) for _ in of]
        rng.shuffle(mixed)
        left = [iter(of) for of in facts]
        return " ".join(next(left[i]) for i in mixed)
    facts_at: dict[int, list[str]] = {}
    for i, of in enumerate(facts):
        last = depth if i == 0 else rng.random()
        for fact, relative in zip(of, [*sorted(last * rng.random() for _ in of[1:]), last], strict=True):
            position = round(relative * len(words))
            while 0 < position < len(words) and words[position - 1][-1] not in ".!?":
                position += 1
            facts_at.setdefault(position, []).append(fact)
    return " ".join(part for i in range(len(words) + 1) for part in (*facts_at.get(i, ()), *words[i : i + 1]))


def draw_words(rng: Random, count: int, other: list[str] | None) -> list[str]:
    """So many words of a text, or of made-up sentences."""
    if other is not None:
        start = rng.randrange(len(other) - count + 1)
        return other[start : start + count]
    parts = [contents()["filler"][part].split(",") for part in ("who", "did", "how", "when")]
    words: list[str] = []
    while len(words) < count:
        words += (" ".join(rng.choice(part) for part in parts) + ".").split()
    return [*words[: count - 1], words[count - 1].rstrip(".") + "."] if count else []
