"""How many positions must attend for a hybrid to close the gap on real text, and who should choose them?

The text, the models and the recipe are those of `gap`, at its rate of 4e-3 and three seeds. Two of the four layers of
BaseConv are attention at selected positions: at random ones, at tokens that occurred before (programmatic), or at those
that a router learns to select, among all positions or among repeated tokens. Zoology's learned selection closes 72 % of
the gap on hits with 256 positions of 2,048 as printed (Arora et al., 2023, section 5), and 75 % in log-perplexity, as
here, by the perplexities of its Table 2; its router keeps the best scores of a sequence, which looks ahead, and those
here do not. "selected" is the share of positions of the test text that attend, in the layer with more of them.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import gap, gap_seeds
from bestiary.experiments._text_rows import measure_models
from bestiary.report.plot import Line, panels
from bestiary.slices.tables import fit_share_axis

SEEDS = range(3)
TICKS = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0}


def hybrid(options: str) -> tuple[str, ...]:
    """The layers of a hybrid whose attention selects its positions."""
    return gap.LONG, gap.with_short_conv(f"selected(heads=2, {options})")


REPEATS = {
    f"+ learned selection of repeats, {name}": hybrid(f'select="learned_repeat", share={share}, open=400, ramp=700')
    for name, share in (("1/8", 0.13), ("1/4", 0.27), ("1/2", 0.52))
}
LAYERS = {
    **{name: gap.LAYERS[name] for name in ("attention", "base_conv", "+ full attention", "+ programmatic selection")},
    **REPEATS,
    "+ learned selection": gap.LAYERS["+ learned selection"],
    "+ learned selection, pruned, 1/4": hybrid("share=0.27, open=700, ramp=500"),
    "+ random selection, 1/4": gap.LAYERS["+ random selection"],
}


def measure(scale: str, known: pd.DataFrame | None = None) -> Iterator[dict[str, Any]]:
    """A row for each model and seed. Models are trained unless they are trained already, or known."""
    corpus = yield from gap.open_corpus_with_news(gap.find_setting(scale))
    names = tuple(LAYERS)[:3] if scale == "smoke" else tuple(LAYERS)
    models = [pair for seed in SEEDS for pair in gap.models(scale, corpus, LAYERS, only=names, seed=seed).items()]
    yield from (yield from measure_models(scale, corpus, models, known))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The share of positions that attend, perplexities, and the shares of the gap closed, with intervals over seeds."""
    found, shares = gap_seeds.summary(table), table.groupby("model")["selected"].mean()
    found.insert(1, "selected", found["model"].map(shares))
    return found.drop(columns="rate")


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """How much of the gap is closed, overall and on hits, against the share of positions that attend."""
    found = summary(table)
    found = found[found["selected"].notna() | (found["model"] == "+ full attention")].fillna({"selected": 1.0})
    kinds = found["model"].str.removeprefix("+ ").str.replace(r", 1/\d$", "", regex=True)
    contents: dict[str, list[Line]] = {}
    for part, title in (("overall", "All tokens"), ("hits", "AR hits")):
        contents[title] = []
        for kind, rows in found.groupby(kinds, sort=False):
            rows = rows[rows[f"closed_{part}"].notna()].sort_values("selected")
            ends = (rows[f"closed_{part}{end}"].tolist() for end in ("", "_low", "_high"))
            contents[title].append(Line(str(kind), rows["selected"].round(2).tolist(), *ends))
    drawn = [line for lines in contents.values() for line in lines]
    if any(line.y for line in drawn):
        note = f"Between {gap.BASE} (0) and {gap.REFERENCE} (1) in log-perplexity; 95 % intervals over seeds."
        shown = panels(contents, x="Share of positions that attend", y="Gap closed", note=note, whiskers=True)
        for axis in shown.axes:
            axis.set_xticks(list(TICKS.values()), list(TICKS))
        yield "", fit_share_axis(shown, drawn)
