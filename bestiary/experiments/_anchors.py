"""Published numbers that `calibration` measures again: what was published, and the recipe by which it is measured here.

`departs` says in what a recipe differs from the published one, or is smaller. Published numbers "read" or "digitised"
come from a plot, to about 0.01; "independent" ones are reruns by others than the authors.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from bestiary.experiments.figure2 import PUBLISHED, RATES, WIDTHS, published_mixers
from bestiary.experiments.frontier import PUBLISHED as PUBLISHED_FRONTIER
from bestiary.experiments.frontier import WINDOW, published_models
from bestiary.experiments.frontier import pattern_name as frontier_name
from bestiary.spec import parse
from bestiary.training.recipe import Recipe, based, clean, iclr24, zoology23

Measure = Literal["accuracy", "scaled", "solves"]


class Anchor(NamedTuple):
    """A published number. `recipe` is run at each of `rates` with the first seed, and at the best with all seeds."""

    name: str
    source: str
    family: str  # of mixers, for the colour of its dot
    published: float  # a share, not per cent
    recipe: Recipe
    rates: tuple[float, ...]
    departs: str  # from the source
    spread: float = 0.0  # the published standard deviation over seeds
    measure: Measure = "accuracy"  # or scaled, so that guessing is 0; or the share of seeds that reach 0.95
    best: bool = False  # of the seeds, as published, and not their mean

    def runs(self, rate: float | None = None, seeds: range = range(3)) -> list[Recipe]:
        """The recipes at one rate and all seeds, or without a rate those to choose the rate from."""
        if rate is None:
            return [self.recipe.model_copy(update={"rate": tried, "seed": 0}) for tried in self.rates]
        return [self.recipe.model_copy(update={"rate": rate, "seed": seed}) for seed in seeds]


ZOOLOGY = "Zoology (Arora et al., 2023), figure 2"
BASED = "Zoology's README, after Based (Arora et al., 2024); digitised"
REVISITING = "Okpekpe & Orvieto (2025), first version, table 1"
NEGATIVE = "Grazzi et al. (2024), parity"
REGULAR = "PD-SSM (Terzić et al., 2025), table 2"
PRODUCT = "DeltaProduct (Siems et al., 2025), S3"
LOG_LINEAR = "Log-linear attention (Guo et al., 2025), table 6"
MECHANISTIC = "Mechanistic evaluation (2505.15105)"
OWN_START = "full batches; our initialisation"  # what `iclr24` and `based` say of themselves


def small_anchors() -> Iterator[Anchor]:
    """What two cores measure in an afternoon."""
    yield from attention_of_figure2()
    yield from short_convolutions()
    yield from one_layer()
    yield from group_words()
    yield from parity()
    yield from regular_languages()
    yield from delta_net_loads()
    yield from sliding_windows()
    yield from log_linear_attention()
    yield from one_question()


def attention_of_figure2() -> Iterator[Anchor]:
    """Attention on 64 tokens with 4 pairs."""
    stopped = "full batches; stopped at 0.99; one of the four rates; three seeds for one"
    for dim, published in ((64, 0.997), (128, 0.999)):
        recipe = zoology23("attention(dropout=0.1, init='zoology23', rotary=False)", dim=dim, stop=0.99)
        yield Anchor(f"attention, width {dim}", ZOOLOGY, "attention", published, recipe, (2.15e-3,), departs=stopped)
    recipe = iclr24("attention(dropout=0.1, rotary=False)", dim=64)
    source = "independent rerun of Zoology on a CPU, stopped at 0.99 after 20 epochs"
    yield Anchor("attention, rate 1e-4", source, "attention", 0.9917, recipe, (1e-4,), OWN_START)


def short_convolutions() -> Iterator[Anchor]:
    """Gated DeltaNet with 8 pairs, with and without a convolution that reaches the token before."""
    for conv, published in ((1, 0.23), (2, 1.0)):
        recipe = clean(f"gated_delta(conv={conv}, init='short')", train="mqar(pairs=8)")
        departs = "the recipe is not published: the clean recipe with our short initialisation"
        name = f"gated DeltaNet, short start, conv {conv}"
        yield Anchor(name, "independent, 8 pairs", "delta", published, recipe, (5e-3, 1e-2), departs=departs)


def one_layer() -> Iterator[Anchor]:
    """One layer: which parts let it solve 64 tokens with 4 pairs?"""
    solved = {
        "attention": ("attention", "attention", 0),
        "convolution on q": ("conv_attention(q=3, k=0)", "attention", 0),
        "convolution on k": ("conv_attention(k=3)", "attention", 1),
        "convolution on v": ("conv_attention(k=0, v=3)", "attention", 1),
        "convolution on q, k, v": ("conv_attention(q=3, k=3, v=3)", "attention", 1),
        "Mamba": ("mamba", "state space", 1),
        "Mamba, no convolution": ("mamba(conv=1)", "state space", 1),
        "Mamba, no gate": ("mamba(gate=False)", "state space", 1),
    }
    for name, (pattern, family, published) in solved.items():
        epochs = 50 if published else 10
        regime = {"depth": 1, "channel": "mlp", "dropout": 0.0, "stop": 0.95, "steer": "selection", "every": 49}
        regime |= {"steps": 196 * epochs, "warmup": 980, "hold": 1}
        regime |= {"positions": 0, "decay": "matrices", "clip": 1.0}
        recipe = iclr24(pattern, dim=64, **regime)
        departs = "width 64, one rate of many; a run stops at 0.95 on selection, which is also what counts as solved"
        departs += "" if published else "; 10 of 50 epochs with all of the warm-up, the peak at half the rate"
        name = f"one layer, {name}"
        yield Anchor(name, REVISITING, family, published, recipe, (3e-3,), measure="solves", departs=departs)


def group_words() -> Iterator[Anchor]:
    """Products in the group S3, four times as long as trained."""
    solved = {
        "DeltaProduct, 2 steps": ("delta_product(heads=8, steps=2, init='fla')", 1),
        "DeltaProduct, 1 step": ("delta_product(heads=8, steps=1, init='fla')", 0),
        "DeltaNet": ("delta_net(heads=8)", 0),
    }
    short, long = (f"group_words(group='S3', length={length})" for length in (32, 128))
    regime = {"train": short, "select": short, "test": long, "depth": 1, "channel": "mlp", "dim": 128, "steps": 1500}
    regime |= {"batch": 64, "selection_rows": 256, "test_rows": 512, "every": 50}
    for name, (pattern, published) in solved.items():
        recipe = clean(pattern, **regime, stop=None if published else 0.999)  # longer words come after the trained ones
        departs = "32 elements, tested on 128, for 128 and 512; 1,500 steps of 64 fresh words for 4,900 of 2,048"
        yield Anchor(name, PRODUCT, "delta", published, recipe, (2e-3, 5e-3), measure="solves", departs=departs)


def on_longer_strings(pattern: str, task: str, **regime: Any) -> Recipe:
    """A small model of width 128 that reads strings of up to 40 symbols in training and of 40 to 256 in the test."""
    sizes = {"dim": 128, "steps": 3000, "batch": 64, "warmup": 300, "every": 100, "stop": None, "test_rows": 2000}
    tasks = {"train": f"{task}(length=40)", "select": f"{task}(length=40)", "test": f"{task}(least=40, length=256)"}
    return clean(pattern, **tasks, **(sizes | regime))


def parity() -> Iterator[Anchor]:
    """Parity of up to 256 bits after training on up to 40, by two sources: the best of their seeds, or the mean."""
    means = {"attention": (0.522, 0.004), "DeltaNet": (0.584, 0.011), "DeltaNet, negative": (0.972, 0.017)}
    mixers = {
        "attention": ("attention(heads=4)", "attention", 0.022),
        "mLSTM": ("mlstm(heads=4)", "state space", 0.087),
        "sLSTM": ("slstm(heads=4)", "recurrent", 1.0),
        "Mamba": ("mamba", "state space", 0.0),
        "DeltaNet": ("delta_net(heads=4)", "delta", 0.017),
        "DeltaNet, negative": ("delta_net(heads=4, negative=True)", "delta", 1.0),
    }
    for name, (pattern, family, published) in mixers.items():
        recipe = on_longer_strings(pattern, "parity", channel="mlp", floor=1e-6)
        departs = "3,000 steps of 64 rows for 100,000 of 1,024"
        given = {"measure": "scaled", "best": True, "departs": departs}
        yield Anchor(f"parity, {name}", NEGATIVE, family, published, recipe, (1e-3, 3e-3), **given)
        if name in means:
            departs = "3,000 steps of 64 rows for 100,000 of 256; our blocks; two rates; accuracy at the end"
            share, spread = means[name]
            yield Anchor(f"parity, {name}, mean", REGULAR, family, share, recipe, (1e-3, 3e-3), departs, spread)


def regular_languages() -> Iterator[Anchor]:
    """Regular languages in the same way: even pairs, which most solve, and what attention does not learn."""
    published = {
        ("parity", "LSTM"): (1.0, 0.0),
        ("even_pairs", "LSTM"): (1.0, 0.0),
        ("even_pairs", "sLSTM"): (1.0, 0.0),
        ("even_pairs", "attention"): (0.904, 0.104),
        ("even_pairs", "Mamba"): (1.0, 0.0),
        ("even_pairs", "DeltaNet"): (1.0, 0.0),
        ("even_pairs", "gated DeltaNet"): (1.0, 0.0),
        ("even_pairs", "DeltaNet, negative"): (1.0, 0.0),
        ("even_pairs", "RWKV-7"): (0.881, 0.142),
        ("cycle_navigation", "attention"): (0.244, 0.005),
        ("modular_arithmetic", "attention"): (0.236, 0.007),
    }
    mixers = {
        "LSTM": ("lstm", "recurrent", "none"),
        "sLSTM": ("slstm(heads=4)", "recurrent", "none"),
        "attention": ("attention(heads=4)", "attention", "mlp"),
        "Mamba": ("mamba", "state space", "none"),
        "DeltaNet": ("delta_net(heads=4)", "delta", "none"),
        "gated DeltaNet": ("gated_delta(heads=4)", "delta", "none"),
        "DeltaNet, negative": ("delta_net(heads=4, negative=True)", "delta", "none"),
        "RWKV-7": ("rwkv7(layers=2), rwkv7(layer=1, layers=2)", "delta", "none"),
    }
    for (task, name), (share, spread) in published.items():
        pattern, family, channel = mixers[name]
        recipe = on_longer_strings(pattern, task, channel=channel, floor=1e-5)
        departs = "3,000 steps of 64 rows for 100,000 of 256; our blocks; accuracy at the end, not the best"
        named = f"{task.replace('_', ' ')}, {name}"
        yield Anchor(named, REGULAR, family, share, recipe, (2e-3,), departs, spread)


def delta_net_loads() -> Iterator[Anchor]:
    """DeltaNet of width 64 on 256 tokens."""
    for pairs, published in ((16, 1.0), (32, 1.0), (64, 0.998)):
        task = f"mqar(length=256, pairs={pairs})"
        recipe = clean("delta_net(init='fla')", train=task, batch=64, steps=2500, every=50)
        departs = "the recipe is not published: the clean recipe, batches of 64; N(0, 0.02) as Zoology draws all maps"
        name = f"DeltaNet, {pairs} pairs"
        yield Anchor(name, "independent, width 64", "delta", published, recipe, (5e-3,), departs=departs)


def sliding_windows() -> Iterator[Anchor]:
    """Attention to the last few tokens, on the mixture of Based; its window does not count the token itself."""
    published = dict(zip((2**k for k in range(3, 11)), (y for _, y in PUBLISHED_FRONTIER[WINDOW]), strict=True))
    for window, share in published.items():
        pattern = f"base_conv, attention(rotary=False, window={window + 1})"
        recipe = based(pattern, dim=64, steps=2 * 707, hold=1, stop=None)
        departs = f"{OWN_START}; width 64 for 128, 2 of 32 epochs, one of four rates"
        yield Anchor(f"window of {window}", BASED, "attention", share, recipe, (3.16e-3,), departs=departs)


def log_linear_attention() -> Iterator[Anchor]:
    """Attention on 256 tokens with 4 to 64 pairs: "at least 99" at every width."""
    task = ", ".join(f"mqar(length=256, pairs={pairs})" for pairs in (4, 8, 16, 32, 64))
    for dim in (16, 32, 64):
        recipe = clean("attention", train=task, dim=dim, batch=64, steps=4000, every=100)
        departs = "rates and steps are not published: the clean recipe, batches of 64"
        name = f"attention, width {dim}, 4 to 64 pairs"
        yield Anchor(name, LOG_LINEAR, "attention", 0.99, recipe, (5e-3,), departs=departs)


def one_question() -> Iterator[Anchor]:
    """32 pairs and one question."""
    mixers = {
        "attention": ("attention(rotary=False)", "attention", 1.0, 66),
        "attention, no positions": ("attention(rotary=False)", "attention", 0.056, 0),
        "Based": ("base_conv, based(features=8)", "linear attention", 0.9906, 0),
    }
    regime: dict[str, Any] = {"train": "associative_recall(vocab=8192, pairs=32)", "batch": 512, "channel": "mlp"}
    regime |= {"steps": 16 * 196, "distinct": (196,), "shuffle": "rows", "every": 196, "stop": 0.99}
    for name, (pattern, family, published, positions) in mixers.items():
        recipe = clean(pattern, positions=positions, **regime)
        departs = "pairs drawn with replacement; width 64; two rates for several from 3e-5 to 3e-2"
        name = f"one question, {name}"
        yield Anchor(name, MECHANISTIC, family, published, recipe, (1e-3, 3e-3), departs=departs)


FAMILIES = {"Attention": "attention", WINDOW: "attention", "BaseConv": "convolution", "Hyena": "convolution"} | {
    "H3": "state space",
    "Mamba": "state space",
    "Mamba-2": "state space",
    "Based": "linear attention",
    "GLA": "linear attention",
    "RWKV": "recurrent",
    "RWKV-7": "delta",
    "DeltaNet": "delta",
    "Gated DeltaNet": "delta",
}


def paper_anchors() -> Iterator[Anchor]:
    """Every cell of Figure 2 of Zoology and 35 points of its frontier, in their own regimes; for a GPU."""
    for (length, cells), pairs in zip(PUBLISHED.items(), (4, 8, 16, 64), strict=True):
        patterns = published_mixers(length)
        for mixer, shares in cells.items():
            for dim, share in zip(WIDTHS, shares, strict=True):
                name = f"{mixer}, width {dim}, length {length}"
                recipe = zoology23(patterns[mixer], length=length, pairs=pairs, dim=dim)
                yield Anchor(name, ZOOLOGY, FAMILIES[mixer], share, recipe, RATES, cell_departs(mixer, length))
    points: dict[str, list[tuple[int, str]]] = {}
    for dim, pattern in published_models():
        points.setdefault(frontier_name(pattern), []).append((dim, pattern))
    for mixer, models in points.items():
        known = PUBLISHED_FRONTIER[mixer]
        if len(known) != len(models):
            continue  # attention, Mamba and Mamba-2: some of their models have no point
        for (dim, pattern), (_, share) in zip(sorted(models, key=relative_state), known, strict=True):
            recipe = based(pattern, dim=dim)
            name = f"{mixer} on the mixture, {pattern}, width {dim}"
            departs = f"{OWN_START}; three seeds for one"
            yield Anchor(name, BASED, FAMILIES[mixer], share, recipe, (1e-3, 3.16e-3, 1e-2, 3.16e-2), departs)


def cell_departs(mixer: str, length: int) -> str:
    """In what a cell of Figure 2 departs from the code that made it, as far as that is known."""
    own = {"RWKV": "; averages not rounded to bfloat16"}
    own["H3"] = "; perhaps weight decay 0.1 there" if length == 64 else "; its four rates there are from 5e-4 to 1e-2"
    return "full batches; three seeds for one" + own.get(mixer, "")


def relative_state(model: tuple[int, str]) -> float:
    """A number that grows with the state of models of one mixer, in whose order the published points are."""
    dim, pattern = model
    options = dict(parse("mixers", pattern)[-1].options)
    features = options.get("features", 0)
    return dim * (1 + features + features**2 / 2) * (options.get("window") or 1)
