"""What `slice`, `probe` and `evaluate` do with trained runs, Hugging Face models and files of log-probabilities."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from bestiary.corpus.gguf import is_gguf
    from bestiary.training.train import find_device

    place, _ = Path(name), find_device(device)
    if place.is_file() and not is_gguf(place):
        from bestiary.slices.logprobs import read_losses

        found = read_losses(place, shape)
        return LossSource(short_name(name), None, lambda _: found)
    from bestiary.corpus.tokenizers import open_tokenizer
    from bestiary.lm.names import is_run

    if is_run(place):
        from bestiary.lm.pretraining import open_run
        from bestiary.slices.losses import model_losses

        recipe, model = open_run(place)
        tokenizer = open_tokenizer(str(place / "tokenizer"))
        title = ", ".join(dict.fromkeys(map(str, recipe.pattern)))
        identity = (recipe.key, file_states(place), device)
        return LossSource(title, tokenizer, lambda contexts: model_losses(model, contexts, device=device), identity)
    return open_other(name, device=device, trust=trust)


def open_other(name: str, *, device: str, trust: bool) -> LossSource:
    """Open a model of transformers; before each context it reads the token that its tokenizer puts before a text."""
    from bestiary.corpus.tokenizers import open_tokenizer
    from bestiary.lm.huggingface import open_causal, token_losses
    from bestiary.lm.reader import first_token

    place = Path(name)
    model, encoder = open_causal(name, trust=trust, device=device)
    first = first_token(encoder)
    identity = (name, file_states(place), str(getattr(model.config, "_commit_hash", None)), device)
    identity += () if first is None else (f"after token {first}",)
    return LossSource(
        short_name(name),
        open_tokenizer(name),
        lambda contexts: token_losses(model, contexts, first=first),
        identity,
    )


def file_states(folder: Path) -> str:
    """Names, sizes and times of a file, or of the files of a folder; nothing if there is no such place."""
    places = folder.iterdir() if folder.is_dir() else [folder]
    files = sorted(path for path in places if path.is_file())
    return " ".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files)


def short_name(name: str) -> str:
    """A model's name without the folders before it, and without the suffix of a file: that of others may have dots."""
    return Path(name).stem if Path(name).is_file() else Path(name).name


def default_folder(text: str, models: Sequence[str]) -> Path:
    """Where results are written if nothing is said: a folder of these models on this text."""
    where = re.sub(r"[^\w.-]+", "-", Path(text).name)
    return FIGURES / "-".join(["slice", *map(short_name, models), "on", where])


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


class Measured(NamedTuple):
    """What was measured of several models on one text, by their names, in the order given."""

    losses: "dict[str, NDArray]"
    windowed: "dict[str, NDArray]"  # the same with a window
    others: dict[str, LossSource]  # models that read by another tokenizer, not measured yet


def slice_models(
    text: "Text",
    models: Sequence[str],
    *,
    threshold: str,
    window: int | None,
    out: Path | None,
    device: str,
    trust: bool,
) -> None:
    """Print the result, and write tables, figures, losses and pages; the last of several models is the reference."""
    from bestiary.cli.console import print_table
    from bestiary.slices import tables
    from bestiary.slices.hits import read_threshold

    out = out or default_folder(text.name, models)
    claim_folder(out)
    most = read_threshold(threshold, text.counts.total)
    if not text.facets.hits(most).any():
        raise ValueError(f"no token of {text.name} is a hit at threshold {most}; raise --threshold")
    losses, windowed, others = measure_models(text, models, window, out, device=device, trust=trust)
    found = tables.estimate_text(text, losses, most)
    sentences = tables.summary_sentences(text, found, list(losses), most)
    if window is not None:
        sentences += tables.far_sentences(text, losses, windowed, window)
    sentences += bits_per_byte_lines(text, losses, others, out)
    typer.echo("\n".join(sentences))
    content = text_tables(text, losses, losses | windowed, most)
    typer.echo("Perplexity on hits by threshold, in occurrences among the tokens counted:")
    print_table(tables.threshold_table(content["threshold"]))
    write_results(text, found, losses, most, content, sentences, out)


def measure_models(
    text: "Text", models: Sequence[str], window: int | None, out: Path, *, device: str, trust: bool
) -> Measured:
    """The losses of models, with and without a window. Raises LookupError or ValueError, mostly before measuring."""
    from bestiary.slices.losses import window_contexts, window_losses

    windows = None if window is None else window_contexts(text.contexts, window)
    sources = [open_source(name, device=device, trust=trust, shape=text.shape) for name in models]
    check_tokenizers(text, models, sources)
    found = Measured({}, {}, {})
    for source, given in zip(sources, models, strict=True):
        taken = source.name in found.losses or source.name in found.others
        name = f"{source.name} ({given})" if taken else source.name
        if source.tokenizer is not None and not source.tokenizer.is_equivalent(text.corpus.tokenizer):
            found.others[name] = source
            continue
        found.losses[name] = measured(source, text.contexts, out)
        if windows is not None and window is not None and source.tokenizer is not None:
            of = window_losses(measured(source, windows, out), text.shape[1], window)
            found.windowed[f"{name}, last {window:,}"] = of
    return found


def check_tokenizers(text: "Text", models: Sequence[str], sources: Sequence[LossSource]) -> None:
    """Raises ValueError if the first model, or the reference of several, reads by another tokenizer than the counts."""
    needed = {models[0]: sources[0]} | ({models[-1]: sources[-1]} if len(models) > 2 else {})
    for name, source in needed.items():
        if source.tokenizer is not None and not source.tokenizer.is_equivalent(text.corpus.tokenizer):
            raise ValueError(
                f"{name} reads by tokenizer {source.tokenizer.hash}, {text.corpus.folder} was counted by "
                f"{text.corpus.tokenizer.hash}; make a corpus by it: "
                f"bestiary corpus SOURCE --tokenizer {name} --out FOLDER"
            )


def text_tables(
    text: "Text", losses: "dict[str, NDArray]", shown: "dict[str, NDArray]", threshold: int
) -> dict[str, list[dict[str, Any]]]:
    """The tables of slices and curves by name; `shown` has the losses with a window as well."""
    from bestiary.slices import tables

    return {
        "kinds": list(tables.losses_by_kind(text, losses, threshold)),
        "position": list(tables.losses_by_position(text, shown)),
        "distance": list(tables.losses_by_distance(text, shown, threshold)),
        "count": list(tables.losses_by_count(text, losses, repeated=True)),
        "count-new": list(tables.losses_by_count(text, losses, repeated=False)),
        "threshold": list(tables.shares_by_threshold(text, losses, list(losses)[-1], threshold)),
    }


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
        contexts, counted, count = retokenize(text, source.tokenizer)
        bits = bits_per_byte(measured(source, contexts, out)[counted], count)
        lines.append(
            f"{name}: {bits:.4f} bits per byte; its tokenizer is another, so losses of tokens are not compared."
        )
    return lines


def write_results(
    text: "Text",
    found: "Estimates",
    losses: "dict[str, np.ndarray]",
    threshold: int,
    content: "dict[str, list[dict[str, Any]]]",
    sentences: Sequence[str],
    out: Path,
) -> None:
    """Write losses, tables, curves and a page for each model but the reference into a folder."""
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
    for name, row in zip(names[:-1], rows, strict=False):
        row |= tables.share_columns(found, name, names[-1])
    frames = {name: pd.DataFrame(part) for name, part in {"slices": rows, **content}.items()}
    for name, frame in frames.items():
        frame.to_csv(out / f"{name}.csv", index=False)
    curves = {name: frames[name] for name in tables.FACETS}
    paths = save_figure(tables.curve_figure(curves), out / "curves")
    pairs = [(name, names[-1]) for name in names[:-1]] or [(names[0],)]
    pages = [out / ("page.html" if i == 0 else f"page-{i + 1}.html") for i in range(len(pairs))]
    for page, pair in zip(pages, pairs, strict=True):
        write_page(
            page,
            title=" against ".join(pair),
            sentences=[*sentences, tables.selection_note(len(pair), text.unit)],
            passages=tables.select_passages(text, [losses[name] for name in pair], threshold),
            names=pair,
            figures=list(tables.page_figures(curves)),
            caption=tables.CURVE_NOTE,
        )
    for path in [*(out / f"{name}.csv" for name in frames), *paths, out / "tokens.npz", *pages]:
        typer.echo(str(path))
