"""What the log of a run says of how its training went, in a few numbers: what the doctor judges by."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Line = Mapping[str, Any]
QUARTERS = 4


class Health(NamedTuple):
    """How a training went. What an older log does not tell is empty or None."""

    steps: int = 0
    finite: bool = True  # no loss was infinite or no number
    losses: tuple[float, ...] = ()  # training loss (nats an answer) of each quarter, the mean over its evaluations
    last_loss: float | None = None  # at the last evaluation whose loss was finite
    trained: float | None = None  # accuracy on the training rows since the evaluation before the last
    curve: tuple[float, ...] = ()  # accuracy on the selection stream of each quarter
    selection: float | None = None  # at the end, the mean over segments
    asked: int = 0  # answers that it is of
    mixed: float | None = None  # share of its mistakes that are the answer to another question of the row
    tests: tuple[float, ...] = ()  # accuracy on each test segment
    gradients: Mapping[str, float] = {}  # of each part of the model, the largest norm at any evaluation
    moved: Mapping[str, float] = {}  # of each part, how far its weights came, relative to their size at the start
    cut: tuple[str, ...] = ()  # weights that never got a gradient
    frozen: tuple[str, ...] = ()  # weights that ask for none
    probed: float = 0  # rows that were read twice
    leaks: float = 0  # those of them whose earlier outputs depend on later tokens
    blind: float = 0  # layers whose mixer does not depend on the order of what it has read


def summarize_log(log: Sequence[Line]) -> Health:
    """The health of a run by its log."""
    plain = [line for line in log if not line["facet"]]
    train = [line for line in plain if line["split"] == "train"]
    sound = [line for line in train if math.isfinite(line["loss"])]
    steps = list(dict.fromkeys(line["step"] for line in plain if line["split"] == "selection"))
    by_step = {step: [one for one in plain if one["split"] == "selection" and one["step"] == step] for step in steps}
    curve = [mean([share(line) for line in by_step[step]]) for step in steps]
    return Health(
        steps=plain[-1]["step"] if plain else 0,
        finite=len(sound) == len(train),
        losses=quarter_means([line["loss"] / line["asked"] for line in sound]),
        last_loss=sound[-1]["loss"] / sound[-1]["asked"] if sound else None,
        trained=share(sound[-1]) if sound else None,
        curve=quarter_means(curve),
        selection=curve[-1] if curve else None,
        asked=sum(line["asked"] for line in by_step[steps[-1]]) if steps else 0,
        mixed=mixed_share(by_step[steps[-1]]) if steps else None,
        tests=tuple(share(line) for line in plain if line["split"] == "test"),
        **weight_signs([line["extra"] for line in sound if line.get("extra")]),
    )


def weight_signs(signs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The fields of Health that come from the signs of `training.health`."""
    if not signs:
        return {}
    last = signs[-1]
    parts = [name.removeprefix("moved:") for name in last if name.startswith("moved:")]
    starts = {part: signs[0].get(f"start:{part}", 0.0) for part in parts}
    found: dict[str, Any] = {
        "gradients": {part: max(math.sqrt(one.get(f"gradient:{part}", 0.0)) for one in signs) for part in parts},
        "moved": {part: math.sqrt(last[f"moved:{part}"] / start) for part, start in starts.items() if start},
    }
    for kind in ("cut", "frozen"):
        always = set.intersection(*({name for name in one if name.startswith(f"{kind}:")} for one in signs))
        found[kind] = tuple(name.removeprefix(f"{kind}:") for name in last if name in always)
    return found | {name: signs[0].get(name, 0) for name in ("probed", "leaks", "blind")}


def mixed_share(lines: Sequence[Line]) -> float | None:
    """The share of mistakes that are the answer to another question of the row; None if that was not counted."""
    wrong = sum(line["asked"] - line["right"] for line in lines)
    counts = [line.get("extra", {}).get("mixed") for line in lines]
    return None if None in counts or not wrong else sum(counts) / wrong


def quarter_means(values: Sequence[float]) -> tuple[float, ...]:
    """The means of four parts of a sequence, in order; of fewer if it is shorter."""
    count = min(QUARTERS, len(values))
    return tuple(mean(values[i * len(values) // count : (i + 1) * len(values) // count]) for i in range(count))


def share(line: Line) -> float:
    """The share of right answers of a measurement."""
    return line["right"] / line["asked"]


def mean(values: Sequence[float]) -> float:
    """The mean of some numbers."""
    return sum(values) / len(values)
