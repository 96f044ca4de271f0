"""Trains the language models of an experiment, several at a time in processes of one thread, and reads their losses."""

import math
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bestiary.runs.digests import digest
from bestiary.runs.store import Store
from bestiary.sweep import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.corpus import Corpus
    from bestiary.lm.pretraining import Pretraining
    from bestiary.slices.losses import Text

REFUSALS = (ValueError, LookupError, OSError)  # one line says all of them: no traceback is kept
CORPUS, MODELS = Path("corpora/stdlib"), Path("models")  # where experiments keep them


def open_or_prepare(source: str = "stdlib", folder: Path = CORPUS, **how: Any) -> "Corpus":
    """Open a corpus with its counts, written first if it is not there."""
    from bestiary.corpus.prepare import prepare

    corpus = prepare(source, folder, **how)
    corpus.counts()
    return corpus


def train_models(
    recipes: "Mapping[str, Pretraining]", corpus: "Corpus", *, folder: Path = MODELS, workers: int | None = None
) -> Iterator[dict[str, Any]]:
    """Train the models that are not done, resuming where they stopped; rows of their logs, with `model` and `news`.

    Raises ChildProcessError if a model fails, once the others are done.
    """
    left = {name: recipe for name, recipe in recipes.items() if not (folder / recipe.key / "done").is_file()}
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    queue, failed = context.Queue(), {}
    todo, running = list(left.items()), {}
    try:
        while todo or running:
            while todo and len(running) < (workers or cores()):
                name, recipe = todo.pop(0)
                arguments = (name, recipe, corpus.folder, folder, queue)
                process = context.Process(target=train_in_process, args=arguments, daemon=True)
                process.start()
                running[name] = process
            try:
                name, row = queue.get(timeout=1.0)
            except Empty:
                for name in [name for name, process in running.items() if not process.is_alive()]:
                    failed[name] = f"the worker died with exit status {running.pop(name).exitcode}"
                continue
            if isinstance(row, dict):
                yield row | {"model": name, "news": progress_line(name, row, left[name])}
                continue
            running.pop(name).join()
            if row is not None:
                failed[name] = row
    finally:
        for process in running.values():
            process.terminate()
    if failed:
        raise ChildProcessError("; ".join(f"{name}: {why}" for name, why in failed.items()))


def train_in_process(name: str, recipe: "Pretraining", corpus: Path, folder: Path, queue: Any) -> None:
    """Train one model in a process of its own; puts its rows on the queue, then None, or a message if it failed.

    The message is one line, and names the file with the traceback if there is one.
    """
    import torch

    from bestiary.corpus.corpus import open_corpus
    from bestiary.lm.loop import pretrain

    torch.set_num_threads(1)
    store, begun = Store(folder), time.time()
    try:
        for row in pretrain(recipe, open_corpus(corpus), folder):
            queue.put((name, row))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as fault:
        told = store.failure(recipe.key, since=begun) is not None  # by the run itself, if it came as far as that
        if not told and not isinstance(fault, REFUSALS):
            store.record_failure(cast(Any, recipe), traceback.format_exc())
            told = True
        place = f" (the traceback is in {folder / recipe.key / 'failure.txt'})" if told else ""
        first = (str(fault).splitlines() or [""])[0]
        queue.put((name, f"{type(fault).__name__}: {first}{place}"))
        sys.exit(1)
    queue.put((name, None))


def progress_line(name: str, row: Mapping[str, Any], recipe: "Pretraining") -> str:
    """A row of a log as a sentence."""
    speed = f", {row['tokens_per_second']:,.0f} tokens/s" if row.get("tokens_per_second") else ""
    perplexity = math.exp(min(row["loss"], 700))
    return f"{name}: step {row['step']:,} of {recipe.steps:,}, {row['split']} perplexity {perplexity:,.2f}{speed}"


def cached_losses(recipe: "Pretraining", text: "Text", *, folder: Path = MODELS) -> "NDArray[np.float32]":
    """The losses of a trained model on a text (contexts, length), kept in the folder of its run."""
    from bestiary.lm.pretraining import open_run
    from bestiary.slices.losses import model_losses
    from bestiary.slices.measuring import measure

    run = folder / recipe.key
    _, model = open_run(run)
    identity = (recipe.key, digest(run / "weights.safetensors"))
    return measure(lambda contexts: model_losses(model, contexts), text.contexts, run / "losses", identity=identity)
