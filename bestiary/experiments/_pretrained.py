"""Language models that an experiment trains: several at a time, each in a process of one thread, and their losses."""

import math
import multiprocessing
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import numpy as np

from bestiary.sweep import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.corpus import Corpus
    from bestiary.lm.pretraining import Pretraining
    from bestiary.slices.losses import Text

CORPUS, MODELS = Path("corpora/stdlib"), Path("models")  # where experiments keep them


def corpus_of(source: str = "stdlib", folder: Path = CORPUS, **how: Any) -> "Corpus":
    """A corpus with its counts, made if it is not there."""
    from bestiary.corpus.corpus import prepare

    made = prepare(source, folder, **how)
    made.counts()
    return made


def trained(
    recipes: "Mapping[str, Pretraining]", corpus: "Corpus", *, folder: Path = MODELS, workers: int | None = None
) -> Iterator[dict[str, Any]]:
    """Train what is not done, going on where it stopped; rows of the logs as they are written, with `model` and `news`.

    Raises ChildProcessError if a model fails, once the others are done.
    """
    left = {name: made for name, made in recipes.items() if not (folder / made.key / "done").is_file()}
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    told, failed = context.Queue(), {}
    todo, at_work = list(left.items()), {}
    try:
        while todo or at_work:
            while todo and len(at_work) < (workers or cores()):
                name, made = todo.pop(0)
                process = context.Process(target=work, args=(name, made, corpus.folder, folder, told), daemon=True)
                process.start()
                at_work[name] = process
            try:
                name, row = told.get(timeout=1.0)
            except Empty:
                for name in [name for name, process in at_work.items() if not process.is_alive()]:
                    failed[name] = f"the worker died with exit status {at_work.pop(name).exitcode}"
                continue
            if isinstance(row, dict):
                yield row | {"model": name, "news": line(name, row, left[name])}
                continue
            at_work.pop(name).join()
            if row is not None:
                failed[name] = row
    finally:
        for process in at_work.values():
            process.terminate()
    if failed:
        raise ChildProcessError("; ".join(f"{name}: {why}" for name, why in failed.items()))


def work(name: str, recipe: "Pretraining", corpus: Path, folder: Path, told: Any) -> None:
    """What a process does: train one model and tell of it; None at the end, or what went wrong."""
    import torch

    from bestiary.corpus.corpus import open_corpus
    from bestiary.lm.loop import pretrain

    torch.set_num_threads(1)
    try:
        for row in pretrain(recipe, open_corpus(corpus), folder):
            told.put((name, row))
    except Exception as fault:
        told.put((name, f"{type(fault).__name__}: {fault}"))
        raise
    told.put((name, None))


def line(name: str, row: Mapping[str, Any], recipe: "Pretraining") -> str:
    speed = f", {row['tokens_per_second']:,.0f} tokens/s" if row.get("tokens_per_second") else ""
    perplexity = math.exp(min(row["loss"], 700))
    return f"{name}: step {row['step']:,} of {recipe.steps:,}, {row['split']} perplexity {perplexity:,.2f}{speed}"


def losses_of(recipe: "Pretraining", text: "Text", *, folder: Path = MODELS) -> "NDArray[np.float32]":
    """The losses of a trained model on a text, kept beside it."""
    from bestiary.lm.pretraining import open_run
    from bestiary.slices.losses import of_model

    split = text.name.partition(" ")[0]
    place = folder / recipe.key / f"losses-{text.corpus.hash}-{split}-{text.shape[0]}x{text.shape[1]}.npy"
    if place.is_file():
        return np.load(place)
    _, model = open_run(folder / recipe.key)
    found = of_model(model, text.contexts)
    beside = place.with_name(f".{place.name}")
    np.save(beside, found)
    beside.replace(place)
    return found
