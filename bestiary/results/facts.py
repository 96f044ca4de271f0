"""What is measured of a mixer beside its runs: laws, parameters, state, and its cost beside attention's."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bestiary.experiments._protocol import place
from bestiary.experiments.frontier import TEST, state_numbers, tasks
from bestiary.laws import verdicts
from bestiary.mixers._mixer import Mixer
from bestiary.spec import Spec, parse, spec
from bestiary.spec.loading import find_class

DIM, BATCH, LENGTH = 64, 4, 1024  # of the pass that is timed
LENGTHS = (1024, 2048, 4096, 8192)  # over which its growth is fitted
ROUNDS, TOKENS = 5, 20
YARDSTICKS = {"attention": "attention", "gated DeltaNet": "gated_delta"}
WIDTHS = (16, 32, 64)


def broken_laws(mixer: Spec) -> list[str]:
    """A line about each law that the mixer breaks, with where."""
    return [f"{verdict.law}: {verdict.fault}" for verdict in verdicts(mixer) if verdict.broken]


def measure(pattern: str, progress: Callable[[str], None] = lambda _: None) -> dict[str, float]:
    """Parameters of a layer, numbers in the states of the recall models, and ratios of time. Takes half a minute.

    `train` and `decode` are ratios of processor time to each yardstick's, taken in turns in this process: of a forward
    and backward pass over 4 sequences of 1,024 tokens, and of one more token after them. `growth` is the exponent of
    the time of a pass with the length, from 1,024 to 8,192 tokens of one sequence. Width 64, one thread. Of a pattern
    of several mixers it is the mean of a layer.
    """
    layers = parse("mixers", pattern)
    mixer = layers[0] if len(layers) == 1 else spec("mixers", "serial", mixers=", ".join(map(str, layers)))
    found: dict[str, float] = {"parameters": count_parameters(mixer) / len(layers)}
    text, tests = place(pattern, behind=True), tasks(TEST, vocab=256)
    found |= {f"state {dim}": float(state_numbers(text, dim, 2, "none", tests)) for dim in WIDTHS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        built = {name: parse("mixers", one)[-1].build(DIM) for name, one in YARDSTICKS.items()}
        built["own"] = mixer.build(DIM)
        progress("timing a training pass")
        spent = interleave({name: training_pass(one, BATCH, LENGTH) for name, one in built.items()})
        found |= {f"train beside {name}": spent["own"] / len(layers) / spent[name] for name in YARDSTICKS}
        progress("timing a decoded token")
        spent = interleave({name: decoding(one.eval(), LENGTH) for name, one in built.items()})
        found |= {f"decode beside {name}": spent["own"] / len(layers) / spent[name] for name in YARDSTICKS}
        progress("timing growing lengths")
        found["growth"] = growth(built["own"].train())
    finally:
        torch.set_num_threads(threads)
    return found


def count_parameters(mixer: Spec) -> int:
    """Numbers that a layer of width 64 learns."""
    with torch.device("meta"):
        return sum(weights.numel() for weights in mixer.build(DIM).parameters())


def training_pass(mixer: Mixer, batch: int, length: int) -> Callable[[], None]:
    """A forward and backward pass over random input."""
    x = torch.randn(batch, length, DIM)

    def once() -> None:
        mixer.zero_grad()
        mixer.parallel(x).square().mean().backward()

    return once


def decoding(mixer: Mixer, length: int) -> Callable[[], None]:
    """A few tokens, one at a time, after so many."""
    with torch.no_grad():
        _, state = mixer(torch.randn(1, length, DIM))
    token = torch.randn(1, 1, DIM)

    @torch.no_grad()
    def once() -> None:
        after: Any = state
        for _ in range(TOKENS):
            _, after = mixer(token, after)

    return once


def interleave(ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The median processor time of each, in seconds; they take turns, so that a busy machine slows all alike."""
    for once in ways.values():
        once()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, once in ways.items():
            begun = time.process_time()
            once()
            taken[name].append(time.process_time() - begun)
    return {name: statistics.median(times) for name, times in taken.items()}


def growth(mixer: Mixer) -> float:
    """The exponent of the time of a training pass with the length."""
    spent = interleave({str(length): training_pass(mixer, 1, length) for length in LENGTHS})
    logs = [math.log(length) for length in LENGTHS], [math.log(spent[str(length)]) for length in LENGTHS]
    return statistics.linear_regression(*logs).slope


def family(pattern: str) -> str:
    """The family of the last mixer of a pattern, by which tables and figures group it."""
    mixer = parse("mixers", pattern)[-1]
    return str(getattr(find_class("mixers", mixer.name, mixer.source), "family", "") or "own")
