"""What `slice`, `probe` and `evaluate` do with models of ours, of Hugging Face, and with files of log-probabilities."""

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bestiary.corpus.tokenizers import Tokenizer
    from bestiary.slices.losses import Text
    from bestiary.slices.slices import Bootstrap


DEFAULT, FIGURES = Path("corpora/stdlib"), Path("figures")


class Judge(NamedTuple):
    """A model that gives losses: of contexts of shape (n, length + 1), by its own tokenizer."""

    name: str
    tokenizer: "Tokenizer | None"  # None for a file, which is by the tokens of the text
    losses: "Callable[[NDArray], NDArray]"


def sliced(
    text: str, corpus: Path | None, *, split: str, length: int, limit: int | None, order: int, column: str
) -> "Text":
    """The text to measure on. Raises LookupError or ValueError."""
    from bestiary.corpus.corpus import SPLITS, open_corpus
    from bestiary.slices.losses import of_source, of_split

    if split not in SPLITS:
        raise LookupError(f"a corpus has no split {split!r}; give one of {', '.join(SPLITS)}")
    if not text or (Path(text) / "manifest.json").is_file():
        if text and corpus is not None:
            raise ValueError(f"{text} is a corpus itself; leave out --corpus, or the text")
        return of_split(open_corpus(Path(text or corpus or DEFAULT)), split, length, limit, order=order)
    if corpus is None:
        raise ValueError(f"{text} is no corpus; name one whose tokens and counts are to be used with --corpus")
    return of_source(text, open_corpus(corpus), length, limit, order=order, column=column)


def opened(name: str, *, device: str, trust: bool, shape: tuple[int, int]) -> Judge:
    """A model by the folder of its run, its name or folder for Hugging Face, or a file of its log-probabilities."""
    from bestiary.training.train import found_device

    place, _ = Path(name), found_device(device)
    if place.is_file():
        from bestiary.slices.losses import of_file

        found = of_file(place, shape)
        return Judge(place.stem, None, lambda _: found)
    from bestiary.corpus.tokenizers import open_tokenizer

    if is_run(place):
        from bestiary.lm.pretraining import open_run
        from bestiary.slices.losses import of_model

        recipe, model = open_run(place)
        tokenizer = open_tokenizer(str(place / "tokenizer"))
        title = ", ".join(dict.fromkeys(map(str, recipe.pattern)))
        return Judge(title, tokenizer, lambda contexts: of_model(model, contexts, device=device, tell=news))
    from bestiary.lm.huggingface import open_causal, token_losses

    model, _ = open_causal(name, trust=trust, device=device)
    tokenizer = open_tokenizer(name)
    return Judge(place.name, tokenizer, lambda contexts: token_losses(model, contexts))


def news(done: int, total: int) -> None:
    typer.echo(f"\r{done:,} of {total:,} contexts", nl=False, err=True)


def report(text: "Text", models: Sequence[str], *, threshold: int, out: Path | None, device: str, trust: bool) -> None:
    """Print what the slices say, and write tables, figures, losses and the page."""
    from bestiary.slices import tables as of

    if not text.facets.hits(threshold).any():
        raise ValueError(f"no token of {text.name} is a hit at threshold {threshold}; raise --threshold")
    judges = [opened(name, device=device, trust=trust, shape=text.shape) for name in models]
    own, first = text.corpus.tokenizer, judges[0].tokenizer
    if first is not None and not first.alike(own):
        raise ValueError(
            f"{models[0]} reads by tokenizer {first.hash}, {text.corpus.folder} was counted by {own.hash}; "
            f"make a corpus by it: bestiary corpus SOURCE --tokenizer {models[0]} --out FOLDER"
        )
    losses, others = {}, {}
    for judge in judges:
        name = judge.name if judge.name not in losses else f"{judge.name} (reference)"
        if judge.tokenizer is None or judge.tokenizer.alike(own):
            losses[name] = judge.losses(text.contexts)
        else:
            others[name] = judge
    found = of.bootstrap(text, losses, threshold)
    words = of.sentences(text, found, list(losses), threshold)
    words += in_bytes(text, losses, others)
    typer.echo("\n".join(words))
    written(
        text,
        found,
        losses,
        threshold,
        words,
        out or FIGURES / "-".join(["slice", *(Path(name).stem for name in models)]),
    )


def in_bytes(text: "Text", losses: "dict[str, np.ndarray]", others: dict[str, Judge]) -> list[str]:
    """Bits per byte, where tokenizers differ: token by token such models cannot be compared."""
    from bestiary.slices.losses import bits_per_byte, retold

    if not others:
        return []
    lines = [f"{name}: {bits_per_byte(given, text.bytes):.4f} bits per byte." for name, given in losses.items()]
    for name, judge in others.items():
        assert judge.tokenizer is not None
        contexts, count = retold(text, judge.tokenizer)
        bits = bits_per_byte(judge.losses(contexts), count)
        lines.append(
            f"{name}: {bits:.4f} bits per byte; its tokenizer is another, so losses of tokens are not compared."
        )
    return lines


def written(
    text: "Text",
    found: "Bootstrap",
    losses: "dict[str, np.ndarray]",
    threshold: int,
    words: Sequence[str],
    out: Path,
) -> None:
    """Losses, tables, curves and the page."""
    import numpy as np
    import pandas as pd

    from bestiary.report.plot import save
    from bestiary.slices import tables as of
    from bestiary.slices.page import write_page

    out.mkdir(parents=True, exist_ok=True)
    names, hits = list(losses), text.facets.hits(threshold)
    arrays = {"contexts": text.contexts, "documents": text.documents, "hits": hits, "names": np.array(names)}
    arrays |= text.facets._asdict() | {f"losses_{i}": losses[name] for i, name in enumerate(names)}
    np.savez_compressed(out / "tokens.npz", **arrays)
    shared = {"text": text.name, "corpus": text.corpus.hash, "order": text.order, "threshold": threshold}
    shared |= {"tokens": hits.size, "hits_share": found.share_of_hits().value}
    rows = [shared | of.slices(name, found) for name in names]
    rows[0] |= of.shares(found, *names) if len(names) == 2 else {}
    tables = {
        "slices": rows,
        "kinds": list(of.facet_rows(text, losses, threshold)),
        "distance": list(of.by_distance(text, losses, threshold)),
        "count": list(of.by_count(text, losses, repeated=True)),
        "count-new": list(of.by_count(text, losses, repeated=False)),
        "threshold": list(of.by_threshold(text, losses, names[-1])),
    }
    for name, part in tables.items():
        pd.DataFrame(part).to_csv(out / f"{name}.csv", index=False)
    figure, svg = (
        of.curves({name: pd.DataFrame(tables[name]) for name in ("distance", "count", "count-new")}),
        StringIO(),
    )
    paths = save(figure, out / "curves")
    figure.savefig(svg, format="svg", metadata={"Date": None})
    pages, title = of.passages(text, list(losses.values()), threshold), " against ".join(names)
    words = [*words, of.EXTREME]
    write_page(out / "page.html", title=title, words=words, passages=pages, names=names, figures=[svg.getvalue()])
    for path in [*(out / f"{name}.csv" for name in tables), *paths, out / "tokens.npz", out / "page.html"]:
        typer.echo(str(path))


def is_run(place: Path) -> bool:
    """Whether a folder is a run of ours, and not what was converted from one."""
    return (place / "recipe.json").is_file() and not (place / "config.json").is_file()
