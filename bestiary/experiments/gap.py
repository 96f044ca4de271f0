"""How much of the gap to attention on real text is recall, and which hybrids close it? After Tables 1 and 2 of Zoology.

Language models are trained on the same text and their loss is split into AR hits, tokens whose bigram occurred
earlier in the context and is rare in training, and the rest (Arora et al., 2023, sections 3 and 5). `small` trains
models of about 1 million weights besides the embeddings on the sources of the Python standard library, with a short
convolution before every mixer, without which nothing recalls after so few tokens. The published sizes are the suite of
`bestiary pretrain zoology`, for a cluster. Where recall has not formed, no share of a gap is given.
"""

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._pretrained import MODELS, cached_losses, open_or_prepare, train_models
from bestiary.runs.files import read_object
from bestiary.slices import tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.corpus import Corpus
    from bestiary.lm.pretraining import Pretraining
    from bestiary.slices.losses import Text

REFERENCE, BASE = "attention", "base_conv"
PAGE = ("base_conv", "attention")  # the two models that the page compares


class Setting(NamedTuple):
    """What a scale trains on and measures."""

    source: str
    folder: str
    threshold: int
    contexts: int | None  # of the test split; all of it if None
    changes: Mapping[str, Any]
    only: tuple[str, ...] = ()


SETTINGS = {
    "smoke": Setting(
        "stdlib",
        "corpora/stdlib",
        50,
        100,
        {"dim": 32, "depth": 2, "steps": 100, "every": 50, "selection_rows": 16, "test_rows": 16},
        ("attention", "base_conv", "+ full attention", "+ programmatic selection"),
    ),
    "small": Setting("stdlib", "corpora/stdlib", 50, None, {}),
}
LAPTOP = {
    "dim": 128,
    "depth": 4,
    "channel": "mlp",
    "context": 256,
    "batch": 8,
    "steps": 1600,
    "rate": 4e-3,
    "warmup": 50,
    "every": 200,
    "selection_rows": 64,
    "test_rows": 64,
}


def with_short_conv(mixer: str) -> str:
    """A mixer behind a short convolution."""
    return f"serial('short_conv, {mixer}')"


ATTENTION = "attention(heads=2)"
LONG, SHORT = (with_short_conv(f"base_conv{given}") for given in ('(filter="implicit", taps=256)', ""))
LAYERS = {
    "attention": (with_short_conv(ATTENTION),),
    "base_conv": (LONG, SHORT),
    "hyena": (with_short_conv("hyena(taps=256)"),),
    "gated_delta": ("gated_delta(heads=2)",),
    "+ full attention": (LONG, with_short_conv(ATTENTION)),
    "+ sliding window of 32": (LONG, with_short_conv("attention(heads=2, window=32)")),
    "+ random selection": (LONG, with_short_conv('selected(select="random", heads=2)')),
    "+ programmatic selection": (LONG, with_short_conv('selected(select="repeat", heads=2)')),
    "+ learned selection": (LONG, with_short_conv('selected(select="learned", heads=2, penalty=1e-3)')),
    "+ learned selection of repeats": (
        LONG,
        with_short_conv('selected(select="learned_repeat", heads=2, share=0.27, open=400, ramp=700)'),
    ),
}


def models(
    scale: str,
    corpus: "Corpus",
    layers: Mapping[str, tuple[str, ...]] = LAYERS,
    only: tuple[str, ...] = (),
    **changes: Any,
) -> "dict[str, Pretraining]":
    """The recipes by the names that the table gives them; `changes` are fields of all."""
    from bestiary.lm.pretraining import Pretraining

    setting = find_setting(scale)
    given = {"corpus": corpus.hash, "vocab": corpus.vocab, **LAPTOP, **setting.changes, **changes}
    names = only or setting.only or tuple(layers)
    return {name: Pretraining(pattern=", ".join(layers[name]), **given) for name in names}


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """Train the models that are not trained yet, and slice their losses: rows of several kinds, named by `rows`."""
    setting = find_setting(scale)
    corpus = yield from open_corpus_with_news(setting)
    recipes = models(scale, corpus)
    text, losses = yield from train_and_measure(scale, corpus, recipes)
    yield from slice_rows(scale, recipes, text, losses)
    pair = {name: losses[name] for name in PAGE}
    for kind, rows in {
        "distance": tables.losses_by_distance(text, losses, setting.threshold),
        "count": tables.losses_by_count(text, losses, repeated=True),
        "count-new": tables.losses_by_count(text, losses, repeated=False),
        "kinds": tables.losses_by_kind(text, losses, setting.threshold),
        "threshold": tables.shares_by_threshold(text, pair, REFERENCE, setting.threshold),
    }.items():
        yield from ({"rows": kind, **row} for row in rows)


def open_corpus_with_news(setting: Setting) -> "Generator[dict[str, Any], None, Corpus]":
    """Open or write the corpus, yielding a row of news first."""
    yield {"news": f"the corpus: {setting.source}, kept in {setting.folder}"}
    return open_or_prepare(setting.source, Path(setting.folder))


def train_and_measure(
    scale: str, corpus: "Corpus", recipes: "Mapping[str, Pretraining]"
) -> "Generator[dict[str, Any], None, tuple[Text, dict[str, NDArray]]]":
    """Train the models, yielding rows of their logs; returns the test text and the losses of each model on it."""
    for row in train_models(recipes, corpus):
        yield {"rows": "course", **row}
    diverged = [name for name, recipe in recipes.items() if outcome(recipe) == "diverged"]
    for name in diverged:
        if name in (REFERENCE, BASE):
            raise ValueError(f"{name} diverged, and without it there is no gap")
        yield {"news": f"{name} diverged and is left out", "rows": "lost", "model": name}
    yield {"news": f"the losses of {len(recipes) - len(diverged)} models on the test text"}
    return read_losses(scale, corpus, {name: recipe for name, recipe in recipes.items() if name not in diverged})


def read_losses(
    scale: str, corpus: "Corpus", recipes: "Mapping[str, Pretraining]"
) -> "tuple[Text, dict[str, NDArray]]":
    """The test text, and the losses of trained models on it."""
    from bestiary.slices.losses import split_text

    context = next(iter(recipes.values())).context
    text = split_text(corpus, "test", context, find_setting(scale).contexts)
    return text, {name: cached_losses(recipe, text) for name, recipe in recipes.items()}


def slice_rows(
    scale: str, recipes: "Mapping[str, Pretraining]", text: "Text", losses: "Mapping[str, NDArray]"
) -> Iterator[dict[str, Any]]:
    """A row for each model: its perplexities, its share of the gap, and how much of the base's gap it closes."""
    from bestiary.lm.suites import count_parameters

    threshold = find_setting(scale).threshold
    found = tables.estimate_text(text, losses, threshold)
    shared = {"rows": "slices", "scale": scale, "threshold": threshold, "hits_share": found.share_of_hits().value}
    shared |= {"answers": text.documents.size, "documents": found.documents}
    for name in losses:
        recipe = recipes[name]
        row = shared | tables.perplexity_row(name, found) | {"parameters": count_parameters(recipe, embeddings=False)}
        row |= {"key": recipe.key, "tokens": recipe.tokens, "seconds": run_result(recipe)["seconds"]}
        row |= tables.share_columns(found, name, REFERENCE) if name != REFERENCE else {}
        yield row | (closed_columns(found, name) if name not in (REFERENCE, BASE) else {})


def find_setting(scale: str) -> Setting:
    """The setting of a scale. Raises ValueError for one that is too large for one machine."""
    if scale not in SETTINGS:
        raise ValueError(
            "the published size of `gap` is for a cluster: bestiary corpus pile --tokenizer gpt2, then torchrun ... "
            "bestiary pretrain zoology --size 360M, then bestiary slice; here there are smoke and small"
        )
    return SETTINGS[scale]


def closed_columns(found: Any, name: str) -> dict[str, Any]:
    """How much of the gap between the base and attention another model closes, overall and on hits."""
    row: dict[str, Any] = {}
    if not (found.recall_formed(REFERENCE) and found.gap(BASE, REFERENCE).low > 0):
        return row
    for part in ("overall", "hits"):
        row |= tables.interval_columns(f"closed_{part}", found.gap_closed(name, BASE, REFERENCE, part=part))
        row |= tables.interval_columns(
            f"closed_{part}_ppl", found.gap_closed(name, BASE, REFERENCE, part=part, log=False)
        )
    return row


def run_result(recipe: "Pretraining") -> dict[str, Any]:
    """How the run of a recipe ended, as stored."""
    return read_object(MODELS / recipe.key / "done")


def outcome(recipe: "Pretraining") -> str:
    """ "finished" or "diverged"."""
    return run_result(recipe)["outcome"]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Perplexity of each model by slice, the share of its gap in both measures, and how much of the gap it closes."""
    rows = table[table["rows"] == "slices"]
    shown = {"overall": "overall", "hits": "hits", "other": "other", "share": "share", "share_plain": "share (ppl)"}
    shown |= {"closed_overall": "closed", "closed_overall_ppl": "closed (ppl)", "closed_hits": "closed on hits"}
    ends = {f"{name}{end}": f"{title}{end}" for name, title in shown.items() for end in ("", "_low", "_high")}
    wanted = ["model", "parameters", "hits_share", "threshold", "formed", *ends.values()]
    rows = rows.rename(columns=ends)
    return rows[[name for name in [*wanted, "why", "seconds", "documents", "answers", "key"] if name in rows]]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Perplexity by distance and count, and the share by threshold."""
    shown = {kind: table[table["rows"] == kind] for kind in ("distance", "count", "count-new")}
    yield "", tables.curve_figure(shown)
    rows = table[(table["rows"] == "threshold") & (table["model"] == BASE)]
    if not rows.empty:
        yield "-threshold", tables.threshold_figure(rows)


def pages(table: pd.DataFrame, stem: Path) -> Iterator[Path]:
    """Write every table, and a page of the text with each token coloured by the gap of base_conv to attention."""
    from bestiary.slices.page import write_page

    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, part in table.groupby("rows"):
        place = stem.with_name(f"{stem.name}-{kind}.csv")
        part.dropna(axis=1, how="all").drop(columns="rows").to_csv(place, index=False)  # with all intervals
        yield place
    rows = table[table["rows"] == "slices"]
    scale = str(rows["scale"].iloc[0])
    setting = SETTINGS[scale]
    corpus = open_or_prepare(setting.source, Path(setting.folder))
    recipes = models(scale, corpus)
    text, losses = read_losses(scale, corpus, {name: recipes[name] for name in PAGE})
    found = tables.estimate_text(text, losses, setting.threshold)
    place = stem.with_suffix(".html")
    write_page(
        place,
        title="base_conv against attention",
        sentences=[*tables.summary_sentences(text, found, PAGE, setting.threshold), tables.selection_note(len(PAGE))],
        passages=tables.select_passages(text, list(losses.values()), setting.threshold),
        names=PAGE,
    )
    yield place
