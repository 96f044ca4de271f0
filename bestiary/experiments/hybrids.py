"""How many attention layers does a hybrid need, where, and how many positions must attend? An ablation of the gap.

Hybrids of gated convolutions with attention close the gap to attention on real text (Arora et al., 2023, section 5;
`gap`), with three attention layers at positions that the paper does not state. Here, on the same text and models as
in `gap`: one to three attention layers of four, spread out or together at either end, and at most k positions of a
context that attend. How much of the gap is closed is shown overall and on AR hits.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import gap
from bestiary.experiments.gap import ATTENTION, BASE, LAYERS, LONG, REFERENCE, SHORT, summary, with_short_conv
from bestiary.report.plot import Line, panels
from bestiary.slices.tables import fit_share_axis

__all__ = ["figures", "measure", "summary"]  # the summary is that of the gap

DEPTH = 4
MOST_POSITIONS = (16, 64)  # k, of contexts of 256


def replace_layers(mixer: str, *places: int) -> tuple[str, ...]:
    """The layers of the base, some of them replaced, in the shortest pattern that says so."""
    found = tuple(mixer if place in places else (LONG, SHORT)[place % 2] for place in range(DEPTH))
    return found[:2] if found == found[:2] * (DEPTH // 2) else found


def layers() -> dict[str, tuple[str, ...]]:
    """Patterns by name; those that `gap` has too are the same runs."""
    learned = {
        most: with_short_conv(f'selected(select="learned", heads=2, most={most}, penalty=1e-3)')
        for most in MOST_POSITIONS
    }
    return {
        REFERENCE: LAYERS[REFERENCE],
        BASE: LAYERS[BASE],
        "1 layer, the second": replace_layers(with_short_conv(ATTENTION), 1),
        "1 layer, the last": replace_layers(with_short_conv(ATTENTION), 3),
        "2 layers, spread": replace_layers(with_short_conv(ATTENTION), 1, 3),
        "2 layers, first": replace_layers(with_short_conv(ATTENTION), 0, 1),
        "2 layers, last": replace_layers(with_short_conv(ATTENTION), 2, 3),
        "3 layers, last": replace_layers(with_short_conv(ATTENTION), 1, 2, 3),
        "2 layers, learned, any k": LAYERS["+ learned selection"],
        "2 layers, learned, no penalty": replace_layers(with_short_conv('selected(select="learned", heads=2)'), 1, 3),
        **{f"2 layers, learned, k = {most}": replace_layers(mixer, 1, 3) for most, mixer in learned.items()},
    }


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """Train the models that are not trained yet, and slice their losses."""
    corpus = yield from gap.open_corpus_with_news(gap.find_setting(scale))
    patterns = layers()
    if scale == "smoke":
        patterns = {name: patterns[name] for name in (REFERENCE, BASE)} | {
            "1 layer, the last": (LONG, with_short_conv(ATTENTION))
        }
    recipes = gap.models(scale, corpus, patterns, only=tuple(patterns))
    text, losses = yield from gap.train_and_measure(scale, corpus, recipes)
    yield from gap.slice_rows(scale, recipes, text, losses)


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """How much of the gap is closed, by the number of attention layers at the end."""
    rows = table[
        (table["rows"] == "slices") & table["model"].isin(["1 layer, the last", "2 layers, last", "3 layers, last"])
    ]
    if rows.empty or "closed_overall" not in rows:
        return
    x = rows["model"].str[0].astype(int).tolist()
    lines = [
        Line(name, x, *(rows[f"closed_{part}{end}"].tolist() for end in ("", "_low", "_high")))
        for part, name in (("overall", "overall"), ("hits", "on hits"))
    ]
    note = "The last layers are attention, the others as in base_conv.\nOf the gap in log-perplexity between "
    note += "base_conv and attention;\nbands over documents, one seed."
    shown = panels({"": lines}, x="Attention layers of 4", y="Gap closed", note=note, size=(3.2, 2.6))
    yield "", fit_share_axis(shown, lines)
