"""How many attention layers does a hybrid need, where, and how much may each look up? An ablation of the gap.

Hybrids of gated convolutions with attention close the gap to attention on real text (Arora et al., 2023, section 5;
`gap`), with three attention layers at places that the paper does not tell. Here, on the same text and models as in
`gap`: one to three such layers of four, spread out or together at either end, and at most k positions of a context
that look anything up. Whether the gap is closed is seen overall and on AR hits.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import gap
from bestiary.experiments.gap import ATTENTION, BASE, LAYERS, LONG, REFERENCE, SHORT, local, summary
from bestiary.report.plot import Line, panels
from bestiary.slices.tables import unbounded

__all__ = ["figures", "measure", "summary"]  # the summary is that of the gap

DEPTH = 4
MOST = (16, 64)  # k, of contexts of 256


def placed(mixer: str, *places: int) -> tuple[str, ...]:
    """The layers of the base, some of them replaced, in the shortest pattern that says so."""
    found = tuple(mixer if place in places else (LONG, SHORT)[place % 2] for place in range(DEPTH))
    return found[:2] if found == found[:2] * (DEPTH // 2) else found


def layers() -> dict[str, tuple[str, ...]]:
    """Patterns by name; those that `gap` has too are the same runs."""
    learned = {most: local(f'selected(select="learned", heads=2, most={most}, penalty=1e-3)') for most in MOST}
    return {
        REFERENCE: LAYERS[REFERENCE],
        BASE: LAYERS[BASE],
        "1 layer, the second": placed(local(ATTENTION), 1),
        "1 layer, the last": placed(local(ATTENTION), 3),
        "2 layers, spread": placed(local(ATTENTION), 1, 3),
        "2 layers, first": placed(local(ATTENTION), 0, 1),
        "2 layers, last": placed(local(ATTENTION), 2, 3),
        "3 layers, last": placed(local(ATTENTION), 1, 2, 3),
        "2 layers, learned, any k": LAYERS["+ learned selection"],
        "2 layers, learned, no penalty": placed(local('selected(select="learned", heads=2)'), 1, 3),
        **{f"2 layers, learned, k = {most}": placed(mixer, 1, 3) for most, mixer in learned.items()},
    }


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """Train what is not trained, and slice."""
    corpus = yield from gap.begun(gap.setting_of(scale))
    wanted = layers()
    if scale == "smoke":
        wanted = {name: wanted[name] for name in (REFERENCE, BASE)} | {"1 layer, the last": (LONG, local(ATTENTION))}
    recipes = gap.models(scale, corpus, wanted, only=tuple(wanted))
    text, losses = yield from gap.measured(scale, corpus, recipes)
    yield from gap.sliced(scale, recipes, text, losses)


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """What is closed against the number of attention layers."""
    rows = table[
        (table["rows"] == "slices") & table["model"].isin(["1 layer, the last", "2 layers, spread", "3 layers, last"])
    ]
    if rows.empty or "closed_overall" not in rows:
        return
    x = rows["model"].str[0].astype(int).tolist()
    lines = [
        Line(name, x, *(rows[f"closed_{part}{end}"].tolist() for end in ("", "_low", "_high")))
        for part, name in (("overall", "overall"), ("hits", "on hits"))
    ]
    note = "Of the gap in log-perplexity between base_conv and attention; bands over documents, one seed."
    shown = panels({"": lines}, x="Attention layers of 4", y="Gap closed", note=note, size=(3.2, 2.6))
    yield "", unbounded(shown, lines)
