"""The LSTM, forward and backward: PyTorch's fused one against our loop.

python benchmarks/recurrent.py
"""

import time
from collections.abc import Callable
from unittest import mock

import torch
from _bench import interleaved, machine, ratio, told

from bestiary.mixers.lstm import LSTM

DIM, LENGTH, ROUNDS = 128, 256, 9


def main() -> None:
    torch.manual_seed(0)
    for batch in (1, 16, 64):
        mixer, x = LSTM(DIM), torch.randn(batch, LENGTH, DIM)

        def in_loop(mixer: LSTM = mixer, x: torch.Tensor = x) -> None:
            with mock.patch.object(mixer, "can_fuse", return_value=False):
                mixer(x)[0].square().mean().backward()

        def fused(mixer: LSTM = mixer, x: torch.Tensor = x) -> None:
            mixer(x)[0].square().mean().backward()

        ways: dict[str, Callable[[], None]] = {"loop": in_loop, "fused": fused}
        print(f"LSTM: batch {batch}, length {LENGTH}, width {DIM}; {machine()}; CPU time")
        taken = interleaved(ways, rounds=ROUNDS, clock=time.process_time)
        print(told(taken))
        print(f"  ratio {ratio(taken, 'loop', 'fused'):.2f}")


if __name__ == "__main__":
    main()
