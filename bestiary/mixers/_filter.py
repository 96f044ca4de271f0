"""Long filters: how their taps are parametrised."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def position_features(taps: int, features: int = 3) -> Float[Tensor, "taps features"]:
    """Time from 0 to 1 and (features - 1) / 2 complex exponentials (Poli et al., 2023, appendix D.2).

    Frequencies run from 1e-4 to (features - 1) / 2 - 1 in turns per filter length, as in the authors' code.
    """
    if features < 3 or features % 2 == 0:
        raise ValueError(f"positions have an odd number of features from 3 up, got {features}")
    bands = (features - 1) // 2
    angle = torch.outer(2 * math.pi * torch.arange(taps) / taps, torch.linspace(1e-4, bands - 1, bands))
    return torch.cat([torch.linspace(0, 1, taps).unsqueeze(1), angle.cos(), -angle.sin()], dim=1)
