"""A function of tensors that is recorded once and then replayed: on CUDA, one launch instead of thousands.

A CUDA graph repeats the same kernels on the same memory, so inputs are copied to where they were when it was recorded.
The function may change its own tensors in place (weights, the state of an optimizer) but must not branch on numbers. It
is first called a few times without recording, because libraries set things up at first use.
"""

import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

WARM = 3  # calls of each shape before it is recorded
MOST = 8  # shapes recorded, each of which holds what it computes with

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

log = logging.getLogger(__name__)


def capture_graph(call: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """A function that repeats the call on the device, and the tensor that will hold its result."""
    made, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)  # gone back to even if the capture fails
    with torch.cuda.device(device), torch.cuda.stream(here), torch.cuda.graph(made, stream=torch.cuda.Stream(device)):
        result = call()
    return made.replay, result


class CapturedFunction:
    """The function, recorded once for each of a few input shapes, and called directly where it cannot be recorded."""

    def __init__(self, function: Callable[..., Tensor], record: Record) -> None:
        self.function, self.record, self.able = function, record, True
        self.calls: Counter[tuple[torch.Size, ...]] = Counter()
        self.recorded: dict[tuple[torch.Size, ...], tuple[list[Tensor], Callable[[], None], Tensor]] = {}

    def __call__(self, *given: Tensor) -> Tensor:
        shapes = tuple(x.shape for x in given)
        self.calls[shapes] += 1
        if self.able and self.calls[shapes] > WARM and shapes not in self.recorded and len(self.recorded) < MOST:
            self.capture(shapes, [x.clone() for x in given])
        if shapes not in self.recorded:
            return self.function(*given)
        places, replay, result = self.recorded[shapes]
        for place, x in zip(places, given, strict=True):
            place.copy_(x)
        replay()
        return result.clone()

    def capture(self, shapes: tuple[torch.Size, ...], places: list[Tensor]) -> None:
        """Record the function for inputs of these shapes, which then have to stand at `places`."""
        try:
            self.recorded[shapes] = (places, *self.record(lambda: self.function(*places)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as fault:
            self.able = False
            log.warning("not captured in a graph, so slower: %s", str(fault).splitlines()[0])
