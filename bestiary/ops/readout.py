"""Cross-entropy of a linear read-out, a block of answers at a time, so that the logits never exist all at once.

For logits z = x W^T and a target t, the loss is log sum_c e^{z_c} - z_t and its gradient in z is softmax(z) - 1_t.
Both need one exponential of each logit, and a block of logits fits where it is fast to reach. So the gradients in
x and W are computed along with the loss, from the same exponentials, and only scaled when they are asked for. Where
they may need a gradient themselves they are computed again, from all logits at once.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bestiary.ops.precision import upcast, upcast_type

BLOCK = 2**21  # logits at a time: 8 MiB of float32, on CUDA 64 times as many
FEWEST = 256  # answers at a time, however large the vocabulary: products of fewer rows are slow


def cross_entropy(
    x: Float[Tensor, "*members answers dim"],
    weight: Float[Tensor, "*members vocab dim"],
    targets: Int[Tensor, "*members answers"],
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*members"], Int[Tensor, "*members"]]:
    """The summed loss in nats, and how many answers are right; negative targets count for nothing.

    With one more axis in front, the same for each of several models. Products are computed in `dtype`, by default that
    of x; exponentials and sums in float32 at least.
    """
    loss, right, _, _ = _Readout.apply(x, weight, targets, dtype or x.dtype)
    return loss, right


def is_highest(
    odds: Float[Tensor, "*members answers vocab"],
    total: Float[Tensor, "*members answers 1"],
    target: Int[Tensor, "*members answers 1"],
) -> Bool[Tensor, "*members answers"]:
    """Which targets have the highest logit, the first of equal ones as `argmax` has it.

    `odds` are exp(logit - highest logit) and `total` their sum: where that is below 2, no other logit is as high, and
    nothing has to be searched.
    """
    if odds.is_cuda:  # where a search costs little, and waiting for `any` much
        return (odds.argmax(dim=-1, keepdim=True) == target).squeeze(-1)
    found = odds.gather(-1, target) == 1
    doubtful = (found & (total >= 2)).squeeze(-1)
    found = found.squeeze(-1)
    if doubtful.any():
        found[doubtful] = odds[doubtful].argmax(dim=-1) == target[doubtful].squeeze(-1)
    return found


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loss, right = x.new_zeros(x.shape[:-2], dtype=upcast_type(x)), targets.new_zeros(x.shape[:-2])
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=upcast_type(weight))
        x, weight = x.to(dtype), weight.to(dtype)
        fewest = FEWEST if dtype.itemsize >= 4 else FEWEST // 2
        size = max(fewest, (BLOCK << 6 if x.is_cuda else BLOCK) // weight[..., 0].numel())
        blocks = (part.split(size, dim) for part, dim in ((x, -2), (targets, -1), (dx, -2)))
        for rows, given, drows in zip(*blocks, strict=True):
            asked, target = given >= 0, given.clamp(min=0).unsqueeze(-1)
            logits = upcast(rows @ weight.mT)
            highest = logits.amax(dim=-1, keepdim=True)
            of_target = logits.gather(-1, target)
            grad = logits.sub_(highest).exp_()
            total = grad.sum(-1, keepdim=True)
            loss += ((total.log() + highest - of_target).squeeze(-1) * asked).sum(-1)
            right += (is_highest(grad, total, target) & asked).sum(-1)
            grad.mul_(asked.unsqueeze(-1) / total).scatter_add_(-1, target, -asked.unsqueeze(-1).to(grad.dtype))
            if grad.dtype != dtype:
                grad = grad.to(dtype)
                drows.copy_(grad @ weight)
                dweight += upcast(grad.mT @ rows)
                continue
            torch.matmul(grad, weight, out=drows)
            dweight.addmm_(grad.T, rows) if x.ndim == 2 else dweight.baddbmm_(grad.mT, rows)
        return loss, right, dx, dweight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.dtype = inputs
        ctx.save_for_backward(*tensors, *output[2:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, targets, dx, dweight = ctx.saved_tensors
        scale = grads[0][..., None, None]
        if torch.is_grad_enabled():  # create_graph, or a transform of torch.func
            return *slopes(x, weight, targets, ctx.dtype, scale), None, None
        return scale * dx, (scale * dweight).to(weight.dtype), None, None


def slopes(x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the loss in x and the weight, times the scale, by operations that have gradients."""
    rows, columns = x.to(dtype), weight.to(dtype)
    odds, target = upcast(rows @ columns.mT).softmax(-1), targets.clamp(min=0).unsqueeze(-1)
    grad = odds.scatter_add(-1, target, -torch.ones_like(target, dtype=odds.dtype))
    grad = (grad * (targets >= 0).unsqueeze(-1) * scale).to(dtype)
    return (grad @ columns).to(x.dtype), (grad.mT @ rows).to(weight.dtype)
