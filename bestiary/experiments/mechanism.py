"""Where is a key bound to its value, and what carries the pair to the question? Interventions on trained models.

Two layers of the same mixer are trained on MQAR and opened (see `bestiary explain`): streams and states are exchanged
between rows that differ in which key has which value, and short convolutions keep the newest token's tap alone.
"Mechanistic evaluation of transformers and state space models" (Arora et al., 2025) finds that attention and Based bind
key and value in the context, as induction heads do, and that state-space models do it only at the end, of which Mamba
succeeds by its short convolution. The rate of each mixer is the better of two, by the mean over seeds of the accuracy
that is shown (and not of one on the selection stream, as elsewhere).
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._opened import open_named, size_of
from bestiary.explain.explanation import explain_model
from bestiary.report.plot import Line, panels
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import Diverged, train

MIXERS = {
    "attention": "attention(heads=2)",
    "conv, attention": "conv_attention(heads=2)",
    "DeltaNet": "delta_net(heads=2)",
    "Based": "based(heads=2, features=8)",
    "conv, Based": "serial('short_conv, based(heads=2, features=8)')",
    "Mamba, D = 0": "mamba(skip=0.0)",
    "BaseConv": "base_conv",
}
TASK = "mqar(vocab=64, length=32, pairs=4)"
SIZES = {
    "smoke": {"steps": 30, "dim": 16, "rates": (1e-2,), "seeds": 2, "cases": 8, "rows": 16},
    "small": {"steps": 1200, "dim": 64, "rates": (2e-3, 8e-3), "seeds": 3, "cases": 64, "rows": 256},
}
SOLVED = 0.9  # of the questions, from which on a model is said to recall
PLACES = ("key", "value", "after the value", "question")


def recipes(scale: str) -> Iterator[Recipe]:
    """Two layers of each mixer, at each rate and seed."""
    size = size_of(SIZES, scale)
    for pattern in MIXERS.values():
        for rate in size["rates"]:
            for seed in range(size["seeds"]):
                settings = {"steps": size["steps"], "dim": size["dim"], "rate": rate, "seed": seed}
                yield clean(pattern, train=TASK, depth=2, every=size["steps"] // 2, batch=64, **settings)


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """A row for each number that was found of each model, named by `what`, `layer` and `place`."""
    look = open_smoke if scale == "smoke" else open_model
    yield from open_named(MIXERS, list(recipes(scale)), look, kind="mechanism", scale=scale)


def open_model(recipe: Recipe, size: str = "small") -> list[dict[str, Any]]:
    """Train a model and return what `explain` finds of it; of one that diverged, that nothing is right."""
    model, how = recipe.build(), SIZES[size]
    try:
        for _ in train(recipe, model):
            pass
    except Diverged:
        return [{"what": "right", "layer": -1, "place": "", "value": 0.0}]
    found = explain_model(model, recipe.test[0].build(), cases=how["cases"], rows=how["rows"])
    right = found.errors[found.errors["answer"] == "right"]["share"]
    rows = [{"what": "right", "layer": -1, "place": "", "value": float(right.iloc[0]) if len(right) else 0.0}]
    for row in found.keys.itertuples():
        rows.append({"what": "key at", "layer": int(row.layer), "place": row.place, "value": row.effect})
    for row in found.states.itertuples():
        layer = -1 if row.layer == "all" else int(row.layer)
        rows.append({"what": "state at", "layer": layer, "place": row.cut, "value": row.effect})
    for row in found.parts.itertuples():
        rows.append({"what": "without", "layer": int(row.layer), "place": row.part, "value": row.accuracy})
    return rows


def open_smoke(recipe: Recipe) -> list[dict[str, Any]]:
    """`open_model` on few rows."""
    return open_model(recipe, "smoke")


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each mixer at the rate with the higher mean accuracy."""
    right = table[table["what"] == "right"].groupby(["name", "rate"])["value"].mean()
    chosen = {name: right[name].idxmax() for name in right.index.unique("name")}
    return table[table["rate"] == table["name"].map(chosen)]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each mixer how many seeds recall, and of those, where the key is after layer 0, and what is needed.

    "after layer 0" is where the stream decides the answer once layer 0 is passed, in how many seeds: the value's place,
    or the one behind it, if the layer only binds; the question, if it has recalled as well. "state of layer" is the
    effect of that layer's state before the question. "without a convolution" is the accuracy where the one that is
    needed most has the newest token's tap alone. Effects and accuracies are means over the seeds that recall.
    """
    rows = []
    for name, part in best_rates(table).groupby("name", sort=False):
        right, solved = recalling(part)
        row: dict[str, Any] = {"mixer": name, "rate": part["rate"].iloc[0], "right": right.mean()}
        row |= {"worst": right.min(), "best": right.max(), "recall": f"{int((right >= SOLVED).sum())} of {len(right)}"}
        streams = solved[(solved["what"] == "key at") & (solved["layer"] == 1)]
        where = streams.loc[streams.groupby("seed")["value"].idxmax()]
        counts = where["place"].value_counts(sort=False)
        row["after layer 0"] = ", ".join(f"{place} ({count})" for place, count in counts.items())
        row["effect"] = where["value"].mean()
        states = solved[solved["what"] == "state at"]
        last = states[states["place"] == "before the question"].groupby("layer")["value"].mean()
        row |= {f"state of layer {layer}": last.get(layer, float("nan")) for layer in (0, 1)}
        convolutions = solved[(solved["what"] == "without") & solved["place"].str.startswith("convolution")]
        row["without a convolution"] = convolutions.groupby("seed")["value"].min().mean()
        rows.append(row)
    return pd.DataFrame(rows).round(3).replace(-0.0, 0.0)


def recalling(part: pd.DataFrame) -> "tuple[pd.Series[float], pd.DataFrame]":
    """The accuracy of each seed of a mixer, and the rows of those seeds that recall."""
    right = part[part["what"] == "right"].set_index("seed")["value"]
    return right, part[part["seed"].isin(right[right >= SOLVED].index)]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Where the key is before each layer, mean and range over the seeds that recall."""
    contents = {}
    for name, part in best_rates(table).groupby("name", sort=False):
        _, solved = recalling(part)
        lines = []
        for place in PLACES:
            values = solved[(solved["what"] == "key at") & (solved["place"] == place)].groupby("layer")["value"]
            if len(values):
                found = [values.mean(), values.min(), values.max()]
                x = [layer + 1 for layer in found[0].index]
                lines.append(Line(place, x, *(column.clip(0, 1).tolist() for column in found)))
        if lines:
            contents[str(name)] = lines
    if contents:
        note = (
            "Effect of the stream there on the answer, before layer 0, before layer 1, and before the head (1, 2, 3)."
        )
        yield "", panels(contents, x="Stream", y="Effect", note=note, size=(1.4, 2.3))
