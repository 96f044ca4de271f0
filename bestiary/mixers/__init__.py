"""Sequence mixers, one file each, and the parts of one of your own: `from bestiary.mixers import Features, Mixer`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestiary.mixers._mixer import FastWeight, Features, Mixer, ShortConv, State
    from bestiary.ops.norm import normalize

__all__ = ["FastWeight", "Features", "Mixer", "ShortConv", "State", "normalize"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bestiary.mixers' has no attribute {name!r}")
    from bestiary.mixers import _mixer
    from bestiary.ops import norm

    return getattr(norm if name == "normalize" else _mixer, name)
