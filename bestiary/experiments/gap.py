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

from bestiary.experiments._pretrained import MODELS, corpus_of, losses_of, trained
from bestiary.runs.store import read_json
from bestiary.slices import tables as slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.corpus import Corpus
    from bestiary.lm.pretraining import Pretraining
    from bestiary.slices.losses import Text

REFERENCE, BASE = "attention", "base_conv"
PAGE = ("base_conv", "attention")  # whose losses the page sets against each other


class Setting(NamedTuple):
    """What a scale trains and measures on."""

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


def local(mixer: str) -> str:
    """A mixer behind a short convolution, the same for all."""
    return f"serial('short_conv, {mixer}')"


ATTENTION = "attention(heads=2)"
LONG, SHORT = (local(f"base_conv{given}") for given in ('(filter="implicit", taps=256)', ""))
LAYERS = {
    "attention": (local(ATTENTION),),
    "base_conv": (LONG, SHORT),
    "hyena": (local("hyena(taps=256)"),),
    "gated_delta": ("gated_delta(heads=2)",),
    "+ full attention": (LONG, local(ATTENTION)),
    "+ sliding window of 32": (LONG, local("attention(heads=2, window=32)")),
    "+ random selection": (LONG, local('selected(select="random", heads=2)')),
    "+ programmatic selection": (LONG, local('selected(select="repeat", heads=2)')),
    "+ learned selection": (LONG, local('selected(select="learned", heads=2, penalty=1e-3)')),
}


def models(
    scale: str,
    corpus: "Corpus",
    layers: Mapping[str, tuple[str, ...]] = LAYERS,
    only: tuple[str, ...] = (),
) -> "dict[str, Pretraining]":
    """The recipes, by the names that the table has for them."""
    from bestiary.lm.pretraining import Pretraining

    setting = setting_of(scale)
    given = {"corpus": corpus.hash, "vocab": corpus.vocab, **LAPTOP, **setting.changes}
    names = only or setting.only or tuple(layers)
    return {name: Pretraining(pattern=", ".join(layers[name]), **given) for name in names}


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """Train what is not trained, and slice: rows of several kinds, told apart by `rows`."""
    setting = setting_of(scale)
    corpus = yield from begun(setting)
    recipes = models(scale, corpus)
    text, losses = yield from measured(scale, corpus, recipes)
    yield from sliced(scale, recipes, text, losses)
    pair = {name: losses[name] for name in PAGE}
    for kind, rows in {
        "distance": slices.by_distance(text, losses, setting.threshold),
        "count": slices.by_count(text, losses, repeated=True),
        "count-new": slices.by_count(text, losses, repeated=False),
        "kinds": slices.facet_rows(text, losses, setting.threshold),
        "threshold": slices.by_threshold(text, pair, REFERENCE),
    }.items():
        yield from ({"rows": kind, **row} for row in rows)


def begun(setting: Setting) -> "Generator[dict[str, Any], None, Corpus]":
    """The corpus, with news of it."""
    yield {"news": f"the corpus: {setting.source}, kept in {setting.folder}"}
    return corpus_of(setting.source, Path(setting.folder))


def measured(
    scale: str, corpus: "Corpus", recipes: "Mapping[str, Pretraining]"
) -> "Generator[dict[str, Any], None, tuple[Text, dict[str, NDArray]]]":
    """Train the models, yielding their courses; then the test text and each model's losses on it."""
    for row in trained(recipes, corpus):
        yield {"rows": "course", **row}
    lost = [name for name, recipe in recipes.items() if outcome(recipe) == "diverged"]
    for name in lost:
        if name in (REFERENCE, BASE):
            raise ValueError(f"{name} diverged, and without it there is no gap")
        yield {"news": f"{name} diverged and is left out", "rows": "lost", "model": name}
    yield {"news": f"the losses of {len(recipes) - len(lost)} models on the test text"}
    return read(scale, corpus, {name: recipe for name, recipe in recipes.items() if name not in lost})


def read(scale: str, corpus: "Corpus", recipes: "Mapping[str, Pretraining]") -> "tuple[Text, dict[str, NDArray]]":
    """The test text, and the losses of models that are trained."""
    from bestiary.slices.losses import of_split

    context = next(iter(recipes.values())).context
    text = of_split(corpus, "test", context, setting_of(scale).contexts)
    return text, {name: losses_of(recipe, text) for name, recipe in recipes.items()}


def sliced(
    scale: str, recipes: "Mapping[str, Pretraining]", text: "Text", losses: "Mapping[str, NDArray]"
) -> Iterator[dict[str, Any]]:
    """A row for each model: its perplexities, its share of the gap, and what it closes of the base's."""
    from bestiary.lm.suites import parameters

    threshold = setting_of(scale).threshold
    found = slices.bootstrap(text, losses, threshold)
    shared = {"rows": "slices", "scale": scale, "threshold": threshold, "hits_share": found.share_of_hits().value}
    shared |= {"answers": text.documents.size, "documents": found.documents}
    for name in losses:
        recipe = recipes[name]
        row = shared | slices.slices(name, found) | {"parameters": parameters(recipe, embeddings=False)}
        row |= {"key": recipe.key, "tokens": recipe.tokens, "seconds": done(recipe)["seconds"]}
        row |= slices.shares(found, name, REFERENCE) if name != REFERENCE else {}
        yield row | (closed(found, name) if name not in (REFERENCE, BASE) else {})


def setting_of(scale: str) -> Setting:
    if scale not in SETTINGS:
        raise ValueError(
            "the published size of `gap` is for a cluster: bestiary corpus pile --tokenizer gpt2, then torchrun ... "
            "bestiary pretrain zoology --size 360M, then bestiary slice; here there are smoke and small"
        )
    return SETTINGS[scale]


def closed(found: Any, name: str) -> dict[str, Any]:
    """How much of the gap between the base and attention another model closes, overall and on hits."""
    row: dict[str, Any] = {}
    if not (found.formed(REFERENCE) and found.gap(BASE, REFERENCE).low > 0):
        return row
    for part in ("overall", "hits"):
        row |= slices.columns(f"closed_{part}", found.closed(name, BASE, REFERENCE, part=part))
        row |= slices.columns(f"closed_{part}_ppl", found.closed(name, BASE, REFERENCE, part=part, log=False))
    return row


def done(recipe: "Pretraining") -> dict[str, Any]:
    """How its run ended."""
    return read_json(MODELS / recipe.key / "done")


def outcome(recipe: "Pretraining") -> str:
    return done(recipe)["outcome"]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Perplexity of each model by slice, the share of its gap in either measure, and what it closes of the base's."""
    rows = table[table["rows"] == "slices"].rename(columns={"share_plain": "share (ppl)", "closed_overall": "closed"})
    rows = rows.rename(columns={"closed_overall_ppl": "closed (ppl)", "closed_hits": "closed on hits"})
    wanted = ["model", "parameters", "overall", "hits", "other", "hits_share", "threshold", "formed", "share"]
    wanted += ["share (ppl)", "why", "closed", "closed (ppl)", "closed on hits", "seconds", "documents", "answers"]
    return rows[[name for name in [*wanted, "key"] if name in rows]]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Perplexity against distance and count, and how the share moves with the threshold."""
    shown = {kind: table[table["rows"] == kind] for kind in ("distance", "count", "count-new")}
    yield "", slices.curves(shown)
    rows = table[(table["rows"] == "threshold") & (table["model"] == BASE)]
    if not rows.empty:
        yield "-threshold", slices.threshold_figure(rows)


def pages(table: pd.DataFrame, stem: Path) -> Iterator[Path]:
    """Every table, and the text itself, each token coloured by what the gated convolution loses to attention."""
    from bestiary.slices.page import write_page

    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, part in table.groupby("rows"):
        place = stem.with_name(f"{stem.name}-{kind}.csv")
        part.dropna(axis=1, how="all").drop(columns="rows").to_csv(place, index=False)  # with all intervals
        yield place
    rows = table[table["rows"] == "slices"]
    scale = str(rows["scale"].iloc[0])
    setting = SETTINGS[scale]
    corpus = corpus_of(setting.source, Path(setting.folder))
    recipes = models(scale, corpus)
    text, losses = read(scale, corpus, {name: recipes[name] for name in PAGE})
    found = slices.bootstrap(text, losses, setting.threshold)
    place = stem.with_suffix(".html")
    write_page(
        place,
        title="base_conv against attention",
        words=[*slices.sentences(text, found, PAGE, setting.threshold), slices.EXTREME],
        passages=slices.passages(text, list(losses.values()), setting.threshold),
        names=PAGE,
    )
    yield place
