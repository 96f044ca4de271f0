"""Decays that are spread over the heads and fade with the position, against the sums they are defined by."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bestiary.mixers._taper import TaperedRates
from bestiary.mixers.gated_delta import GatedDelta
from bestiary.mixers.mamba2 import STEP, Mamba2
from bestiary.ops.drive import Drive


def factor_of(rates: TaperedRates, head: int, position: int) -> float:
    """A_h t^(-a_h), one head and position at a time."""
    steps = [math.log1p(math.exp(step)) for step in rates.steps.tolist()]
    log, gap = rates.first.item() + sum(steps[:head]), sum(steps) / len(steps)
    fading = (len(steps) - head) / len(steps) + (sum(steps[:head]) - head * gap) / math.log(rates.length)
    return math.exp(log) * position ** -min(max(fading, 0), 1)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_factors_are_those_of_the_definition(spread: float) -> None:
    rates = TaperedRates(-2.0, 1.5, 5, 40).double()
    torch.manual_seed(0)
    rates.steps.data += spread * torch.randn(4, dtype=torch.float64)
    found = rates(torch.zeros(1, 30, 1, dtype=torch.float64), 7)
    wanted = [[factor_of(rates, head, position) for head in range(5)] for position in range(8, 38)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=0)


def test_at_the_start_memories_last_from_one_token_to_the_trained_length() -> None:
    mixer = Mamba2(16, head=4, taper=64).double()
    assert isinstance(mixer.rate, TaperedRates)
    lasting = 1 / (STEP * mixer.rate(torch.zeros(1, 64, 1, dtype=torch.float64), 0))
    rising = [64 ** (1 - head / 7) for head in range(8)]
    torch.testing.assert_close(lasting[0], torch.tensor(rising, dtype=torch.float64), rtol=1e-4, atol=0)
    torch.testing.assert_close(lasting[63] / lasting[0], lasting[0], rtol=1e-4, atol=0)  # t^a with a from 1 to 0


def test_the_decay_of_mamba2_has_the_factors() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba2(16, head=8, taper=32).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    _, state = mixer(x[:, :4])
    steps = F.softplus(mixer.dt(x) + math.log(math.expm1(0.05)))
    compare(mixer.drive(x, None, 0)[0], steps, mixer.rate, 0)
    compare(mixer.drive(x[:, 4:], state.conv, state.read)[0], steps[:, 4:], mixer.rate, 4)


def test_the_decay_of_gated_delta_has_the_factors() -> None:
    torch.manual_seed(0)
    mixer, x = GatedDelta(16, heads=4, taper=32).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    _, state = mixer(x[:, :4])
    steps = F.softplus(mixer.decay(x) + mixer.dt)
    compare(mixer.drive(x, None)[0], steps, mixer.rate, 0)
    compare(mixer.drive(x[:, 4:], state.local)[0], steps[:, 4:], mixer.rate, 4)


def compare(drive: Drive, steps: torch.Tensor, rates: Any, read: int) -> None:
    """The log-decay is minus a step size times the factor of its head and position."""
    assert drive.g is not None
    times, heads = range(read + 1, read + 1 + steps.shape[1]), range(steps.shape[2])
    wanted = [[factor_of(rates, head, time) for head in heads] for time in times]
    torch.testing.assert_close(drive.g.squeeze(-1), -steps * torch.tensor(wanted).double(), rtol=1e-6, atol=0)


def test_one_head_cannot_be_spread() -> None:
    with pytest.raises(ValueError, match="a taper needs 2 heads"):
        GatedDelta(16, heads=1, taper=32)
    with pytest.raises(ValueError, match="a length of 2 or more"):
        Mamba2(16, head=8, taper=1)
