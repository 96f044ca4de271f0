"""What `slice`, `probe` and `evaluate` do with trained runs, Hugging Face models and files of log-probabilities."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from bestiary.cli._progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bestiary.corpus.tokenizers import Tokenizer
    from bestiary.slices.losses import Text
    from bestiary.slices.slices import Estimates


DEFAULT, FIGURES = Path("corpora/stdlib"), Path("figures")
MARK = "slice.json"  # marks a folder that `slice` may write to


class LossSource(NamedTuple):
    """A model or file that gives the losses of contexts of shape (n, length + 1), in tokens of its own tokenizer."""

    name: str
    tokenizer: "Tokenizer | None"  # None for a file, whose tokens are those of the text
    losses: "Callable[[NDArray], NDArray]"
    identity: tuple[str, ...] = ()  # tells a model from others and from itself after a change; () for a file


def open_text(
    text: str, corpus: Path | None, *, split: str, length: int, limit: int | None, order: int, column: str
) -> "Text":
    """Open the text to measure on: a split of a corpus, or any text with a corpus for its counts.

    Raises LookupError or ValueError.
    """
    from bestiary.corpus.corpus import SPLITS, open_corpus
    from bestiary.slices.losses import source_text, split_text

    if split not in SPLITS:
        raise LookupError(f"a corpus has no split {split!r}; give one of {', '.join(SPLITS)}")
    if not text or (Path(text) / "manifest.json").is_file():
        if text and corpus is not None:
            raise ValueError(f"{text} is a corpus itself; leave out --corpus, or the text")
        return split_text(open_corpus(Path(text or corpus or DEFAULT)), split, length, limit, order=order)
    if corpus is None:
        raise ValueError(f"{text} is no corpus; name one whose tokens and counts are to be used with --corpus")
    return source_text(text, open_corpus(corpus), length, limit, order=order, column=column)


def open_source(name: str, *, device: str, trust: bool, shape: tuple[int, int]) -> LossSource:
    """Open a model by the folder of its run, its Hugging Face name or folder, or a file of its log-probabilities."""
    from bestiary.training.train import find_device

    place, _ = Path(name), find_device(device)
    if place.is_file():
        from bestiary.slices.logprobs import read_losses

        found = read_losses(place, shape)
        return LossSource(place.stem, None, lambda _: found)
    from bestiary.corpus.tokenizers import open_tokenizer

    if is_run(place):
        from bestiary.lm.pretraining import open_run
        from bestiary.slices.losses import model_losses

        recipe, model = open_run(place)
        tokenizer = open_tokenizer(str(place / "tokenizer"))
        title = ", ".join(dict.fromkeys(map(str, recipe.pattern)))
        identity = (recipe.key, file_states(place), device)
        return LossSource(title, tokenizer, lambda contexts: model_losses(model, contexts, device=device), identity)
    from bestiary.lm.huggingface import open_causal, token_losses

    model, _ = open_causal(name, trust=trust, device=device)
    tokenizer = open_tokenizer(name)
    identity = (name, file_states(place), str(getattr(model.config, "_commit_hash", None)), device)
    return LossSource(place.name, tokenizer, lambda contexts: token_losses(model, contexts), identity)


def file_states(folder: Path) -> str:
    """Names, sizes and times of the files of a folder; nothing if there is no such folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return " ".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files)


def claim_folder(out: Path) -> None:
    """Make sure, before any work, that results can be written to a folder and that no one else's are in it.

    Raises ValueError.
    """
    from bestiary.runs.store import write_file

    try:
        out.mkdir(parents=True, exist_ok=True)
        ours = any((out / name).is_file() for name in (MARK, "tokens.npz"))
        if not ours and any(out.iterdir()):
            raise ValueError(f"{out} is not empty and not from `bestiary slice`: give another folder with --out")
        write_file(out / MARK, {"written by": "bestiary slice"})
    except OSError as fault:
        raise ValueError(f"{out} cannot be written ({fault.strerror}): give another folder with --out") from None


def slice_models(
    text: "Text", models: Sequence[str], *, threshold: int, out: Path | None, device: str, trust: bool
) -> None:
    """Print the result, and write tables, figures, losses and the page."""
    from bestiary.slices import tables

    out = out or FIGURES / "-".join(["slice", *(Path(name).stem for name in models)])
    claim_folder(out)
    if not text.facets.hits(threshold).any():
        raise ValueError(f"no token of {text.name} is a hit at threshold {threshold}; raise --threshold")
    sources = [open_source(name, device=device, trust=trust, shape=text.shape) for name in models]
    own, first = text.corpus.tokenizer, sources[0].tokenizer
    if first is not None and not first.is_equivalent(own):
        raise ValueError(
            f"{models[0]} reads by tokenizer {first.hash}, {text.corpus.folder} was counted by {own.hash}; "
            f"make a corpus by it: bestiary corpus SOURCE --tokenizer {models[0]} --out FOLDER"
        )
    losses, others = {}, {}
    for source in sources:
        name = source.name if source.name not in losses else f"{source.name} (reference)"
        if source.tokenizer is None or source.tokenizer.is_equivalent(own):
            losses[name] = measured(source, text.contexts, out)
        else:
            others[name] = source
    found = tables.estimate_text(text, losses, threshold)
    sentences = tables.summary_sentences(text, found, list(losses), threshold)
    sentences += bits_per_byte_lines(text, losses, others, out)
    typer.echo("\n".join(sentences))
    write_results(text, found, losses, threshold, sentences, out)


def measured(source: LossSource, contexts: "NDArray", out: Path) -> "NDArray":
    """The losses of a source, kept in the folder of the results while and after they are measured."""
    from bestiary.slices.measuring import measure

    if not source.identity:
        return source.losses(contexts)
    with Progress(f"contexts of {source.name}") as progress:
        return measure(source.losses, contexts, out / "measured", identity=source.identity, progress=progress)


def bits_per_byte_lines(
    text: "Text", losses: "dict[str, np.ndarray]", others: dict[str, LossSource], out: Path
) -> list[str]:
    """Bits per byte where tokenizers differ, since losses of different tokens cannot be compared."""
    from bestiary.slices.losses import bits_per_byte, retokenize

    if not others:
        return []
    lines = [f"{name}: {bits_per_byte(given, text.bytes):.4f} bits per byte." for name, given in losses.items()]
    for name, source in others.items():
        assert source.tokenizer is not None
        contexts, count = retokenize(text, source.tokenizer)
        bits = bits_per_byte(measured(source, contexts, out), count)
        lines.append(
            f"{name}: {bits:.4f} bits per byte; its tokenizer is another, so losses of tokens are not compared."
        )
    return lines


def write_results(
    text: "Text",
    found: "Estimates",
    losses: "dict[str, np.ndarray]",
    threshold: int,
    sentences: Sequence[str],
    out: Path,
) -> None:
    """Write losses, tables, curves and the page into a folder."""
    import numpy as np
    import pandas as pd

    from bestiary.report.plot import save_figure
    from bestiary.slices import tables
    from bestiary.slices.page import write_page

    names, hits = list(losses), text.facets.hits(threshold)
    arrays = {"contexts": text.contexts, "documents": text.documents, "hits": hits, "names": np.array(names)}
    arrays |= text.facets._asdict() | {f"losses_{i}": losses[name] for i, name in enumerate(names)}
    np.savez_compressed(out / "tokens.npz", **arrays)
    shared = {"text": text.name, "corpus": text.corpus.hash, "order": text.order, "threshold": threshold}
    shared |= {"tokens": hits.size, "hits_share": found.share_of_hits().value}
    rows = [shared | tables.perplexity_row(name, found) for name in names]
    rows[0] |= tables.share_columns(found, *names) if len(names) == 2 else {}
    content = {
        "slices": rows,
        "kinds": list(tables.losses_by_kind(text, losses, threshold)),
        "distance": list(tables.losses_by_distance(text, losses, threshold)),
        "count": list(tables.losses_by_count(text, losses, repeated=True)),
        "count-new": list(tables.losses_by_count(text, losses, repeated=False)),
        "threshold": list(tables.shares_by_threshold(text, losses, names[-1])),
    }
    frames = {name: pd.DataFrame(part) for name, part in content.items()}
    for name, frame in frames.items():
        frame.to_csv(out / f"{name}.csv", index=False)
    curves = {name: frames[name] for name in tables.FACETS}
    paths = save_figure(tables.curve_figure(curves), out / "curves")
    write_page(
        out / "page.html",
        title=" against ".join(names),
        sentences=[*sentences, tables.selection_note(len(names), text.unit)],
        passages=tables.select_passages(text, list(losses.values()), threshold),
        names=names,
        figures=list(tables.page_figures(curves)),
        caption=tables.CURVE_NOTE,
    )
    for path in [*(out / f"{name}.csv" for name in frames), *paths, out / "tokens.npz", out / "page.html"]:
        typer.echo(str(path))


def is_run(place: Path) -> bool:
    """Whether a folder is a trained run of this package, and not one converted for Hugging Face."""
    return (place / "recipe.json").is_file() and not (place / "config.json").is_file()
