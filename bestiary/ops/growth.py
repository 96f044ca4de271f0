"""Caches that grow by a few entries at a time without being copied for each.

`append` is torch.cat along time, the second axis from the right, and its result is a value like any other: what later
happens to a longer cache never shows in a shorter one. Its entries lie in a buffer with room to spare, twice as large
whenever it is full. The newest cache of a buffer is continued in place, behind its own end. An older one, from which
another branch goes on, is copied into a buffer of its own. Only the entries count as memory, not the room to spare. As
caches may share their entries, nobody else may change them in place.

`without_waste` copies what keeps a much larger tensor alive, such as the last inputs of a long sequence.
"""

from threading import Lock
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bestiary.ops.backend import capturing, shows_numbers, under_transform

Entries = Shaped[Tensor, "*rest _ width"]

SMALL = 64  # numbers that are not worth a copy


class Buffer:
    """Memory for the entries of caches, of which the first `used` are taken."""

    def __init__(self, old: Entries, end: int) -> None:
        self.entries = old.new_empty(*old.shape[:-2], 2 * end, old.shape[-1])
        self.entries[..., : old.shape[-2], :] = old
        self.used = end


_buffers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of caches that `append` has returned
_lock = Lock()


def append(old: Entries, new: Entries) -> Entries:
    """The old entries, then the new: torch.cat, but in a time that does not grow with the old."""
    if not can_share(old, new):
        return torch.cat([old, new], dim=-2)
    start, end = old.shape[-2], old.shape[-2] + new.shape[-2]
    buffer = claim(_buffers.get(old), start, end) or Buffer(old.detach(), end)
    buffer.entries[..., start:end, :] = new.detach()
    cache = buffer.entries.data[..., :end, :]  # later writes do not count as changes of it, as they lie behind its end
    _buffers[cache] = buffer
    return cache


def without_waste(state: Any) -> Any:
    """The state, its tensors copied where their memory has room for more than twice as many numbers.

    As it is where gradients are recorded, which need the whole anyway, and where nothing is computed or all is traced.
    """
    if isinstance(state, tuple | list):
        parts = [without_waste(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    recorded = torch.is_grad_enabled() and isinstance(state, Tensor) and state.requires_grad
    if type(state) is not Tensor or recorded or not shows_numbers(state):
        return state
    room = state.untyped_storage().nbytes() // state.element_size()
    return state.clone() if room > 2 * state.numel() + SMALL else state


def claim(buffer: Buffer | None, start: int, end: int) -> Buffer | None:
    """The buffer, if it has room and nothing behind `start`: then it is taken up to `end`."""
    with _lock:
        if buffer is None or buffer.used != start or end > buffer.entries.shape[-2]:
            return None
        if buffer.entries.is_inference() and not torch.is_inference_mode_enabled():
            return None
        buffer.used = end
        return buffer


def can_share(old: Tensor, new: Tensor) -> bool:
    """Whether the entries may lie in a buffer: no gradients are recorded and nothing is traced or transformed."""
    return (
        type(old) is type(new) is Tensor
        and not (torch.is_grad_enabled() and (old.requires_grad or new.requires_grad))
        and (old.dtype, old.device, old.shape[:-2], old.shape[-1])
        == (new.dtype, new.device, new.shape[:-2], new.shape[-1])
        and not (old.is_meta or under_transform() or torch.compiler.is_compiling() or capturing(old))
    )
