"""Does linear attention need a short convolution in front of it to recall? An experiment of one's own.

The same mixer, alone and behind a short convolution, at several widths, with three seeds each. Nothing but the recipes
is needed: a table and a figure are made of whatever differs between them.
"""

from collections.abc import Iterator

from bestiary.training.recipe import Recipe, clean

MIXERS = {"alone": "linear_attention", "behind a convolution": "short_conv, linear_attention"}


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer at every width, with every seed."""
    widths, seeds, steps = {"smoke": ((8, 16), 2, 20), "small": ((16, 32, 64), 3, 400)}.get(
        scale, ((16, 32, 64, 128), 5, 4000)
    )
    for pattern in MIXERS.values():
        for dim in widths:
            for seed in range(seeds):
                task = "mqar(vocab=64, length=32, pairs=4, filler='zero')"
                yield clean(pattern, train=task, dim=dim, depth=2, rate=1e-2, steps=steps, seed=seed)
