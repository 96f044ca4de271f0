"""Tasks and mixers with a fault that the doctor must find, as files that a user might have written."""

from pathlib import Path

SHUFFLED = '''
from typing import ClassVar
import torch
from bestiary.tasks.mqar import MQAR

class Shuffled(MQAR):
    """MQAR whose answers belong to other rows."""

    def sample(self, count, rng):
        batch = super().sample(count, rng)
        order = torch.randperm(count, generator=rng)
        asked = batch.targets != -100
        values = batch.targets[asked].view(count, -1)[order]
        return batch._replace(targets=batch.targets.masked_scatter(asked, values.flatten()))
'''
MIXER = '''
import torch
from bestiary.mixers.attention import Attention

class {name}(Attention):
    """Attention with a fault."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        {init}

    def forward(self, x, state=None):
        {forward}

    def parallel(self, x, where=None):
        from bestiary.mixers._mixer import take
        return take(self(x)[0], where)
'''
MIXERS = {
    "Frozen": ("self.requires_grad_(False)", "return super().forward(x, state)"),
    "Cut": ("pass", "y, state = super().forward(x, state); return y.detach(), state"),
    "Leaks": ("pass", "y, state = super().forward(x.flip(1), state); return y.flip(1), state"),
    "Breaks": ("pass", "y, state = super().forward(x, state); return y / (y.sum() * 0), state"),
}


def write_file(folder: Path, name: str) -> str:
    """The file of a task or mixer with a fault; its path as a pattern names it."""
    place = folder / f"{name.lower()}.py"
    init, forward = MIXERS.get(name, ("", ""))
    place.write_text(SHUFFLED if name == "Shuffled" else MIXER.format(name=name, init=init, forward=forward))
    return str(place)
