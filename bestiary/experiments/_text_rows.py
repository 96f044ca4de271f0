"""A row for each language model: how it was trained, and its loss on AR hits and on other tokens.

A row is of one model alone, so that models which were trained apart can be compared, and a model whose row is known,
from an earlier table, is not trained again.
"""

import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from bestiary.experiments import gap
from bestiary.experiments._pretrained import MODELS, train_models

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.corpus.corpus import Corpus
    from bestiary.lm.pretraining import Pretraining
    from bestiary.slices.losses import Text

PARTS = ("overall", "hits", "other")
COLUMNS = ("key", "model", "rate", "seed", "outcome", "selection", "formed", *(f"{part}_nats" for part in PARTS))


def measure_models(
    scale: str, corpus: "Corpus", models: "Sequence[tuple[str, Pretraining]]", known: pd.DataFrame | None
) -> Generator[dict[str, Any], None, list[dict[str, Any]]]:
    """Train the named models that are neither trained nor known, yielding rows of news. Returns a row for each model.

    `known` has such rows of models by their `key`. Raises ValueError if it is another table.
    """
    rows = known_rows(known)
    left = [(name, recipe) for name, recipe in models if recipe.key not in rows]
    yield {"news": f"{len(models)} models of {scale}, of which {len(models) - len(left)} are known"}
    for row in train_models({describe(name, recipe): recipe for name, recipe in left}, corpus):
        yield {"news": row["news"]}
    if left:
        yield {"news": f"the losses of {len(left)} models on the test text"}
    rows |= {row["key"]: row for row in sliced(scale, corpus, left)}
    return [rows[recipe.key] | {"model": name} for name, recipe in models]


def known_rows(known: pd.DataFrame | None) -> dict[str, dict[str, Any]]:
    """The rows of a table by their keys. Raises ValueError for a table that is not of such rows."""
    if known is None:
        return {}
    if missing := sorted(set(COLUMNS) - set(known)):
        raise ValueError(f"these are no results of language models: there is no column {', '.join(missing)}")
    return {row["key"]: row for row in known.to_dict("records")}


def describe(name: str, recipe: "Pretraining") -> str:
    """What tells a model from others in the news."""
    return f"{name}, width {recipe.dim}, {recipe.steps:,} steps, rate {recipe.rate:g}, seed {recipe.seed}"


def sliced(scale: str, corpus: "Corpus", models: "Sequence[tuple[str, Pretraining]]") -> Iterator[dict[str, Any]]:
    """The row of each trained model; one that diverged has no losses."""
    from bestiary.lm.suites import count_parameters
    from bestiary.slices import tables

    threshold = gap.find_setting(scale).threshold
    finished = {recipe.key: recipe for _, recipe in models if gap.outcome(recipe) != "diverged"}
    text, losses = gap.read_losses(scale, corpus, finished) if finished else (None, {})
    for name, recipe in models:
        ended = gap.run_result(recipe)
        row: dict[str, Any] = {field: getattr(recipe, field) for field in ("key", "dim", "steps", "rate", "seed")}
        row |= {"model": name, "scale": scale, "threshold": threshold, "tokens": recipe.tokens}
        row |= {"parameters": count_parameters(recipe, embeddings=False), "seconds": ended["seconds"]}
        row |= {"outcome": ended["outcome"], "selection": selection_loss(recipe), "formed": False}
        row |= {f"{part}_nats": math.nan for part in PARTS}
        if text is not None and recipe.key in losses:
            found = tables.estimate_text(text, {name: losses[recipe.key]}, threshold)
            row |= {f"{part}_nats": float(found.log_perplexity(name, part)[0]) for part in PARTS}
            row |= {"formed": found.recall_formed(name), "hits_share": found.share_of_hits().value}
            row["selected"] = share_selected(recipe, text)
        yield row


def share_selected(recipe: "Pretraining", text: "Text", contexts: int = 200) -> float:
    """The share of positions of a text that attend in the `selected` layer with the most of them; NaN without one."""
    import torch

    from bestiary.lm.pretraining import open_run
    from bestiary.mixers.selected import Selected

    _, model = open_run(MODELS / recipe.key)
    layers = [layer for layer in model.modules() if isinstance(layer, Selected)]
    seen: list[list[Tensor]] = [[] for _ in layers]
    for layer, found in zip(layers, seen, strict=True):
        cast(Any, layer).attends = partial(record, found, layer.attends)
    with torch.no_grad():
        model.parallel(torch.from_numpy(text.contexts[:contexts, :-1].astype("int64")))
    return max((float(torch.cat(found).float().mean()) for found in seen), default=math.nan)


def record(found: "list[Tensor]", attends: "Callable[..., Tensor]", *given: Any) -> "Tensor":
    """Whether positions attend, kept in a list too."""
    found.append(attends(*given))
    return found[-1]


def selection_loss(recipe: "Pretraining") -> float:
    """The last loss on the selection split, in nats; infinite for a model that diverged."""
    if gap.outcome(recipe) == "diverged":
        return math.inf
    lines = map(json.loads, (MODELS / recipe.key / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "selection"][-1]


def gaps(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """The loss of each model less that of attention, in nats, by seed (rows) and model; NaN where one is missing."""
    wide = rows.pivot(index="seed", columns="model", values=f"{part}_nats")
    return wide.sub(wide[gap.REFERENCE], axis=0)


def gaps_closed(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """How much of the gap between base_conv and attention each model closes, by seed (rows) and model.

    NaN in seeds whose attention recalls nothing, or where there is no gap, and for these two models.
    """
    behind = gaps(rows, part)
    formed = rows[rows["model"] == gap.REFERENCE].set_index("seed")["formed"].astype(bool)
    base = behind[gap.BASE].where(formed & (behind[gap.BASE] > 0))
    return 1 - behind.drop(columns=[gap.REFERENCE, gap.BASE]).div(base, axis=0)
