"""In-context recall of MAD (Poli et al., 2024, section 3.1)."""

from typing import ClassVar

from bestiary.spec import Positive
from bestiary.tasks._mad import PairRecall
from bestiary.tasks._task import Scored


class InContextRecall(PairRecall):
    """Read pairs whose keys return, and say the value of each key that was shown before.

        tokens   k3 v9 k1 v8 k3 v9 k1 v8 ... k3
        targets   .  .  .  . v9  . v8  . ... v9

    Tokens 0 to vocab//2 - 1 are keys, the others values. Each sequence draws a map from keys to values, in which values
    may recur, and length/2 - 1 keys with replacement, each shown with its value. The last key is one of the different
    keys shown, each equally likely. `length` counts as MAD does: the last value is not read, so that a model reads
    length - 1 tokens.

    With `multi_query=False` the last token of the vocabulary marks the last key, stands before it, and only that key
    is asked:

        tokens   k3 v9 k1 v8 ... => k1
        targets   .  .  .  . ...  . v8

    `scored="answer"` asks where MAD tests; `"all"`, the preset `train`, asks for the next token everywhere, as MAD
    trains, and `solve` then knows only the answers; `chance` and `plateau` are those of the answers. MAD's settings
    are the defaults and one value of one of the axes at a time; with another number of training sequences (12800, or
    6400, 3200, 1600, 800) that is a matter of the recipe.

    Facets: `distance` from a question back to its key, `shown` (how often that key was shown before) and `load` (how
    many different keys were).
    """

    family: ClassVar = "mad"
    variants: ClassVar = ("vocab=8, length=40", "multi_query=False", "vocab=64, length=64")
    presets: ClassVar = {"train": "scored='all'"}
    axes: ClassVar = {"vocab": (16, 32, 64, 128), "length": (128, 256, 512, 1024)}

    def __init__(
        self, *, vocab: Positive = 16, length: Positive = 128, multi_query: bool = True, scored: Scored = "answer"
    ) -> None:
        super().__init__(vocab=vocab, length=length, multi_query=multi_query, noise=0.0, noise_vocab=0, scored=scored)
