"""Noisy in-context recall of MAD (Poli et al., 2024, section 3.1)."""

from typing import Annotated, ClassVar

from annotated_types import Ge, Lt

from bestiary.spec import Positive
from bestiary.tasks._mad import PairRecall
from bestiary.tasks._task import Scored


class NoisyRecall(PairRecall):
    """Read pairs whose keys return, among pairs of noise, and say the value of each key that was shown before.

        tokens   k3 v9 z5 z7 k1 v8 k3 v9 z7 z7 ... k3
        targets   .  .  .  .  .  . v9  .  .  . ... v9

    As `in_context_recall`, but the last `noise_vocab` tokens are noise (before the mark, if `multi_query=False`), and
    each pair but the last gives way to two tokens of noise with probability `noise`. One slot, each equally likely,
    always holds a pair, so that there is something to ask.

    Options, training with `scored="all"` and facets (`distance`, `shown`, `load`) are those of `in_context_recall`.
    MAD's settings are the defaults and one value of one of the axes at a time; the vocabularies include the noise.

    Departs from the paper: its code draws the protected slot among all slots, the last one included, which holds no
    noise in any case. Then no slot is protected, and a sequence may show no pair at all. Here it is one of the others.
    """

    family: ClassVar = "mad"
    variants: ClassVar = (
        "vocab=14, length=40, noise_vocab=4, noise=0.5",
        "multi_query=False, noise=0.8",
        "length=24, noise=0.95",
    )
    presets: ClassVar = {"train": "scored='all'"}
    axes: ClassVar = {
        "vocab": (32, 48, 80, 144),
        "length": (128, 256, 512, 1024),
        "noise": (0.2, 0.4, 0.6, 0.8),
    }

    def __init__(
        self,
        *,
        vocab: Positive = 32,
        length: Positive = 128,
        noise: Annotated[float, Ge(0), Lt(1)] = 0.2,
        noise_vocab: Positive = 16,
        multi_query: bool = True,
        scored: Scored = "answer",
    ) -> None:
        super().__init__(
            vocab=vocab,
            length=length,
            multi_query=multi_query,
            noise=noise,
            noise_vocab=noise_vocab,
            scored=scored,
        )
