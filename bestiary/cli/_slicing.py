"""What `slice`, `probe` and `evaluate` do with models of ours, of Hugging Face, and with files of log-probabilities."""

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import typer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from bestiary.text.losses import Text
    from bestiary.text.slices import Bootstrap
    from bestiary.text.tokenizers import Tokenizer


class Judge(NamedTuple):
    """A model that gives losses: of contexts of shape (n, length + 1), by its own tokenizer."""

    name: str
    tokenizer: "Tokenizer | None"  # None for a file, which is by the tokens of the text
    losses: "Callable[[NDArray], NDArray]"


def sliced(text: str, corpus: Path | None, *, split: str, length: int, limit: int | None) -> "Text":
    """The text to measure on. Raises LookupError or ValueError."""
    from bestiary.text.corpus import SPLITS, open_corpus
    from bestiary.text.losses import of_source, of_split

    if split not in SPLITS:
        raise LookupError(f"a corpus has no split {split!r}; give one of {', '.join(SPLITS)}")
    if corpus is None and (Path(text) / "manifest.json").is_file():
        return of_split(open_corpus(Path(text)), split, length, limit)
    if corpus is None:
        raise ValueError(f"{text} is no corpus; name one whose tokens and counts are to be used with --corpus")
    return of_source(text, open_corpus(corpus), length, limit)


def opened(name: str, *, device: str, trust: bool, shape: tuple[int, int]) -> Judge:
    """A model by the folder of its run, its name or folder for Hugging Face, or a file of its log-probabilities."""
    place = Path(name)
    if place.is_file():
        from bestiary.text.losses import of_file

        found = of_file(place, shape)
        return Judge(place.stem, None, lambda _: found)
    from bestiary.text.tokenizers import open_tokenizer

    if is_run(place):
        from bestiary.text.losses import of_model
        from bestiary.text.pretraining import open_run

        recipe, model = open_run(place)
        tokenizer = open_tokenizer(str(place / "tokenizer"))
        title = ", ".join(dict.fromkeys(map(str, recipe.pattern)))
        return Judge(title, tokenizer, lambda contexts: of_model(model, contexts, device=device, tell=news))
    from bestiary.interop.huggingface import open_causal, token_losses

    model, _ = open_causal(name, trust=trust, device=device)
    tokenizer = open_tokenizer(name)
    return Judge(place.name, tokenizer, lambda contexts: token_losses(model, contexts))


def news(done: int, total: int) -> None:
    typer.echo(f"\r{done:,} of {total:,} contexts", nl=False, err=True)


def report(
    text: "Text", models: Sequence[str], *, threshold: int, order: int, out: Path, device: str, trust: bool
) -> None:
    """Print what the slices say, and write tables, figures, losses and the page."""
    from bestiary.experiments import _slices as of

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
    if not text.grams(order).hits(threshold).any():
        raise ValueError(f"no token of {text.name} is a hit at threshold {threshold}; raise --threshold")
    found = of.bootstrap(text, losses, threshold, order)
    for line in of.sentences(text, found, list(losses), threshold, order):
        typer.echo(line)
    in_bytes(text, losses, others)
    written(text, found, losses, threshold, order, out)


def in_bytes(text: "Text", losses: "dict[str, np.ndarray]", others: dict[str, Judge]) -> None:
    """Bits per byte, where tokenizers differ: token by token such models cannot be compared."""
    from bestiary.text.losses import bits_per_byte, windows

    if not others:
        return
    for name, given in losses.items():
        typer.echo(f"{name}: {bits_per_byte(given, text):.4f} bits per byte")
    whole = text.corpus.tokenizer.decode(text.contexts[:, 1:].ravel().tolist())
    for name, judge in others.items():
        assert judge.tokenizer is not None
        contexts = windows(judge.tokenizer.encode([whole])[0], text.shape[1])
        bits = float(judge.losses(contexts).sum()) / 0.6931471805599453 / len(whole.encode())
        typer.echo(f"{name}: {bits:.4f} bits per byte; its tokenizer is another, so losses of tokens are not compared")


def written(
    text: "Text", found: "Bootstrap", losses: "dict[str, np.ndarray]", threshold: int, order: int, out: Path
) -> None:
    """Tables, curves, losses and the page."""
    import numpy as np
    import pandas as pd

    from bestiary.experiments import _slices as of
    from bestiary.plot import save
    from bestiary.text.page import write_page

    out.mkdir(parents=True, exist_ok=True)
    names = list(losses)
    tables = {
        "slices": [of.slices(name, found) for name in names],
        "kinds": list(of.facet_rows(text, losses, threshold)),
        "distance": list(of.by_distance(text, losses, threshold)),
        "count": list(of.by_count(text, losses, repeated=True)),
        "count-new": list(of.by_count(text, losses, repeated=False)),
        "threshold": list(of.by_threshold(text, losses, names[-1])),
    }
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(out / f"{name}.csv", index=False)
    figure = of.curves({name: pd.DataFrame(tables[name]) for name in ("distance", "count", "count-new")})
    paths = save(figure, out / "curves")
    facets = text.grams(order)
    arrays = {"contexts": text.contexts, "documents": text.documents, "hits": facets.hits(threshold)}
    arrays |= facets._asdict() | {f"losses_{i}": losses[name] for i, name in enumerate(names)}
    np.savez_compressed(out / "tokens.npz", **arrays)
    pages = of.passages(text, list(losses.values()), threshold)
    words, svg = of.sentences(text, found, names, threshold, order), StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    title = " against ".join(names)
    write_page(out / "page.html", title=title, words=words, passages=pages, names=names, figures=[svg.getvalue()])
    for path in [*(out / f"{name}.csv" for name in tables), *paths, out / "tokens.npz", out / "page.html"]:
        typer.echo(str(path))


def is_run(place: Path) -> bool:
    """Whether a folder is a run of ours, and not what was converted from one."""
    return (place / "recipe.json").is_file() and not (place / "config.json").is_file()


def causal(name: str, *, device: str, trust: bool) -> tuple[Any, Any]:
    """A model and its tokenizer, for whoever takes either kind."""
    if is_run(Path(name)):
        from bestiary.text.pretraining import open_run
        from bestiary.text.tokenizers import open_tokenizer

        return open_run(Path(name))[1].to(device), open_tokenizer(Path(name) / "tokenizer")
    from bestiary.interop.huggingface import open_causal

    return open_causal(name, trust=trust, device=device)


def probed(name: str, *, rows: int, device: str, trust: bool, **sizes: Sequence[int]) -> "pd.DataFrame":
    """Recall asked in text, `rows` questions of each kind, at each difficulty."""
    import pandas as pd

    from bestiary.text.probe import probe

    found = []
    for row in probe(*causal(name, device=device, trust=trust), contexts=-(-rows // 4), **cast(Any, sizes)):
        found.append(row)
        typer.echo(f"\rasked {sum(each.asked for each in found):,} questions", nl=False, err=True)
    typer.echo("", err=True)
    return pd.DataFrame(found)


def evaluated(name: str, tasks: Sequence[str], *, limit: int | None, device: str, trust: bool) -> "pd.DataFrame":
    """Tasks of lm-evaluation-harness; a run of ours is converted first."""
    from tempfile import TemporaryDirectory

    import pandas as pd

    from bestiary.interop.harness import evaluate

    with TemporaryDirectory() as folder:
        if is_run(Path(name)):
            from bestiary.interop.huggingface import export

            export(name, folder)
        model = folder if is_run(Path(name)) else name
        return pd.DataFrame(evaluate(model, tasks, limit=limit, trust=trust, device=device))
