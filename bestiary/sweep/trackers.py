"""Trackers that follow a sweep: TensorBoard, Weights & Biases and trackio, each an extra of that name.

A sink receives every event, in the process that runs the sweep; the store is complete without it. Each run is one run
of the tracker, named by its key and a label, in the group of its experiment. Its configuration is the recipe.
By step: `train/loss` per answer, `train/accuracy`, `selection/loss` and `selection/accuracy`; at the end
`test/loss`, `test/accuracy` and the outcome. Where there are several segments, `selection/accuracy` is their mean
and `selection/accuracy/0` is the first, and so on.
"""

import io
import json
import logging
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, redirect_stdout
from contextvars import Context
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bestiary.spec import nearest
from bestiary.sweep import Event
from bestiary.training.recipe import SPECS, Recipe

if TYPE_CHECKING:
    from bestiary.training.train import Measurement

logger = logging.getLogger(__name__)
PROJECT = "bestiary"
GOOD = ("solved", "finished")  # outcomes after which a run counts as a success


@runtime_checkable
class Sink(Protocol):
    """Follows the events of a sweep."""

    name: str

    def follow(self, event: Event) -> None:
        """Take note of an event."""
        ...

    def close(self) -> None:
        """End the tracks that are still open: the sweep is over or was stopped."""
        ...


@runtime_checkable
class Track(Protocol):
    """One run in a tracker."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Record numbers of a step by name."""
        ...

    def end(self, end: dict[str, Any]) -> None:
        """Record how the run ended: `outcome`, and what else is known of it."""
        ...


def follow_events(events: Generator[Event], sinks: Sequence[Sink]) -> Generator[Event]:
    """Every event, after each sink has received it. A sink that fails receives no more."""
    with closing(events):
        try:
            for event in events:
                sinks = notify(sinks, lambda sink, event=event: sink.follow(event))
                yield event
        finally:
            notify(sinks, lambda sink: sink.close())


def notify(sinks: Sequence[Sink], act: Callable[[Sink], None]) -> list[Sink]:
    """Call `act` on each sink. Returns those that did not fail; a line is logged about each of the others."""
    kept = []
    for sink in sinks:
        try:
            act(sink)
            kept.append(sink)
        except Exception as fault:  # whatever it is, the runs go on
            reason = (str(fault).splitlines() or [""])[0]
            logger.warning("%s failed and is told no more (%s: %s)", sink.name, type(fault).__name__, reason)
    return kept


def make_sinks(names: str, *, group: str, folder: Path) -> list[Sink]:
    """The trackers in a list such as "tensorboard, wandb". TensorBoard's files go into `folder`.

    Raises LookupError for an unknown one, ImportError for one that is not installed.
    """
    sinks: list[Sink] = []
    for name in dict.fromkeys(name.strip() for name in names.split(",") if name.strip()):
        if name not in TRACKERS:
            raise LookupError(f"there is no tracker {name!r} {nearest(name, TRACKERS)}")
        if find_spec(name) is None:
            raise ImportError(f"tracking with {name} needs {name}: pip install 'bestiary[{name}]'")
        sinks.append(Tracker(name, partial(TRACKERS[name], group=group, folder=folder)))
    return sinks


class Tracker:
    """A sink with one track for each run that is training; `begin` opens a track."""

    def __init__(self, name: str, begin: Callable[[Recipe], Track]) -> None:
        self.name, self.begin = name, begin
        self.tracks: dict[str, Track] = {}
        self.seen: dict[str, list[Measurement]] = {}  # measurements of the current step

    def follow(self, event: Event) -> None:
        """Pass an event on to the track of its run."""
        key = event.recipe.key
        if event.kind == "started":
            if key in self.tracks:  # its worker died, or it was taken out of a stack
                self.end(key, {"outcome": "started over"})
            self.tracks[key], self.seen[key] = self.begin(event.recipe), []
        if key not in self.tracks:  # another worker's run
            return
        if event.kind == "measured":
            self.seen[key].append(event.detail)
            last = len(event.recipe.select or event.recipe.test) - 1
            if event.detail.split == "selection" and event.detail.segment == last:
                self.log_measurements(key)
        elif event.kind == "ended":
            outcome, seconds, note, *_ = event.detail
            self.end(key, {"outcome": outcome, "seconds": seconds, "note": note})
        elif event.kind == "failed":
            self.end(key, {"outcome": "failed", "note": str(event.detail)})

    def log_measurements(self, key: str) -> None:
        """Record the measurements of a step, once all of them have come."""
        if measurements := self.seen[key]:
            self.seen[key] = []
            self.tracks[key].log(summarize(measurements), measurements[-1].step)

    def end(self, key: str, end: dict[str, Any]) -> None:
        """Close a run's track, with what was measured last."""
        self.log_measurements(key)
        self.tracks.pop(key).end(end)

    def close(self) -> None:
        """End every track that is left, as stopped."""
        for key in list(self.tracks):
            self.end(key, {"outcome": "stopped"})


def summarize(measurements: "Sequence[Measurement]") -> dict[str, float]:
    """Loss per answer and accuracy of each stream: the mean over segments, and each segment if there are several."""
    found: dict[str, float] = {}
    for split, group in groupby(measurements, key=lambda seen: seen.split):
        parts = list(group)
        shares = [part.right / part.asked for part in parts]
        found[f"{split}/loss"] = sum(part.loss for part in parts) / sum(part.asked for part in parts)
        found[f"{split}/accuracy"] = sum(shares) / len(shares)
        if len(parts) > 1:
            for part, share in zip(parts, shares, strict=True):
                found[f"{split}/loss/{part.segment}"] = part.loss / part.asked
                found[f"{split}/accuracy/{part.segment}"] = share
    return found


def run_title(recipe: Recipe) -> str:
    """A run's key and what tells it from its neighbours."""
    pattern = ", ".join(map(str, recipe.pattern))
    return f"{recipe.key} dim={recipe.dim} rate={recipe.rate:g} seed={recipe.seed} {pattern}"[:128]


def flat_config(recipe: Recipe) -> dict[str, Any]:
    """A recipe as names and plain values: specs as their text, the options of a lone test task as `test.length`."""
    stored = recipe.json()
    options = {f"test.{name}": x for part in stored["test"] for name, x in part["options"].items()}
    plain = {n: ", ".join(part["text"] for part in x) if n in SPECS else x for n, x in stored.items()}
    everything = plain | (options if len(stored["test"]) == 1 else {})
    return {n: x if x is None or isinstance(x, str | int | float) else json.dumps(x) for n, x in everything.items()}


class TensorBoard:
    """A folder of event files for each run, and its recipe among the hyperparameters."""

    def __init__(self, recipe: Recipe, *, group: str, folder: Path) -> None:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        place = folder / filename(group) / filename(run_title(recipe))
        self.writer = SummaryWriter(str(place), purge_step=0)  # drop what an interrupted attempt has left
        given = {name: "none" if value is None else value for name, value in flat_config(recipe).items()}
        *begun, self.success = hparams(given, {"test/accuracy": 0.0, "test/loss": 0.0})
        self.write(*begun)
        self.writer.add_text("recipe", f"```json\n{json.dumps(recipe.json(), indent=1)}\n```", 0)

    def write(self, *summaries: Any) -> None:
        """Add summaries to the run's file."""
        file = self.writer.file_writer
        assert file is not None, "until it is closed"
        for summary in summaries:
            file.add_summary(summary)

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Record numbers at a step."""
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def end(self, end: dict[str, Any]) -> None:
        """Record how the run ended, and close the track."""
        self.writer.add_text("outcome", ", ".join(f"{name} {value}" for name, value in end.items() if value != ""), 0)
        if end["outcome"] in GOOD:
            self.write(self.success)
        self.writer.close()


def filename(text: str) -> str:
    """The text with "_" for what may not stand in a file name."""
    return re.sub(r"[^\w.,()=+-]+", "_", text)


class WeightsAndBiases:
    """A run of the project `bestiary`; where it goes is wandb's own affair (WANDB_MODE, WANDB_DIR, ...)."""

    def __init__(self, recipe: Recipe, *, group: str, folder: Path) -> None:
        import wandb

        # the process is the sweep's, so its output and its load say nothing of the run
        quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        named = {"project": PROJECT, "group": group, "name": run_title(recipe), "config": flat_config(recipe)}
        self.run = wandb.init(**named, reinit="create_new", settings=quiet)

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Record numbers at a step."""
        self.run.log(numbers, step=step)

    def end(self, end: dict[str, Any]) -> None:
        """Record how the run ended, and close the track."""
        self.run.summary.update(end)
        self.run.finish(exit_code=0 if end["outcome"] in GOOD else 1)


class Trackio:
    """A run of the project `bestiary` where trackio keeps its own (TRACKIO_DIR, TRACKIO_SPACE_ID, ...)."""

    def __init__(self, recipe: Recipe, *, group: str, folder: Path) -> None:
        import trackio

        named = {"name": run_title(recipe), "group": group, "config": flat_config(recipe)}
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        with redirect_stdout(io.StringIO()):  # a context of its own, since trackio ends the last run of the context
            self.run = Context().run(partial(trackio.init, PROJECT, **named, **quiet))
        self.step = 0

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Record numbers at a step."""
        self.step = step
        self.run.log(numbers, step=step)

    def end(self, end: dict[str, Any]) -> None:
        """Record how the run ended, and close the track."""
        self.run.log(end, step=self.step)
        with redirect_stdout(io.StringIO()):
            self.run.finish()


TRACKERS: dict[str, Callable[..., Track]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
}
