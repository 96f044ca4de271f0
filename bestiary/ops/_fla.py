"""The recurrence by the kernels of flash-linear-attention (Yang & Zhang, 2024), an optional package.

The kernel is the least general one that computes the drive: simple GLA for a decay per head or none, GLA for a decay
per key, and the delta rule of diagonal plus low rank where something is erased. They take and return tensors of our
shapes. What we write "erase by a, read by b" is their (b, a).
"""

from typing import Any

import torch
from torch import Tensor

from bestiary.ops.drive import Drive


def run(drive: Drive, state: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in the type of the queries, the state in float32."""
    q, k, v, g, erase, rewrite = drive
    q, k = (x.expand(*v.shape[:-1], -1).contiguous() for x in (q, k))
    erase = (rewrite[0] * k, rewrite[1]) if rewrite is not None else erase
    how: dict[str, Any] = {"scale": 1.0, "initial_state": state.float(), "output_final_state": True}
    if erase is not None:
        from fla.ops.generalized_delta_rule import chunk_dplr_delta_rule  # pyright: ignore[reportMissingImports]

        decay = torch.zeros_like(k) if g is None else g.expand_as(k)
        a, b = erase
        return chunk_dplr_delta_rule(q, k, v, b.contiguous(), a.contiguous(), decay.contiguous(), **how)
    if g is not None and g.shape[-1] > 1:
        from fla.ops.gla import chunk_gla  # pyright: ignore[reportMissingImports]

        return chunk_gla(q, k, v, g, **how)
    from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]

    decay = torch.zeros_like(k[..., 0]) if g is None else g.expand(*k.shape[:-1], 1).squeeze(-1)
    return chunk_simple_gla(q, k, v, g=decay.contiguous(), **how)
