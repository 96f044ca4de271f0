"""Cross-entropy of a linear read-out, a block of answers at a time, so that the logits never exist all at once.

For logits z = x W^T and a target t, the loss is log sum_c e^{z_c} - z_t and its gradient in z is softmax(z) - 1_t.
Both need one exponential of each logit, and a block of logits fits where it is fast to reach. So the gradients in
x and W are computed along with the loss, from the same exponentials, and only scaled when they are asked for.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 2**21  # logits at a time: 8 MiB of float32, on CUDA 64 times as many
FEWEST = 256  # answers at a time, however large the vocabulary: products of fewer rows are slow


def cross_entropy(
    x: Float[Tensor, "*members answers dim"],
    weight: Float[Tensor, "*members vocab dim"],
    targets: Int[Tensor, "*members answers"],
) -> tuple[Float[Tensor, "*members"], Int[Tensor, "*members"]]:
    """The summed loss in nats, and how many answers are right; negative targets count for nothing.

    With one more axis in front, the same for each of several models.
    """
    loss, right, _, _ = _Readout.apply(x, weight, targets)
    return loss, right


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loss, right = x.new_zeros(x.shape[:-2]), targets.new_zeros(x.shape[:-2])
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        size = max(FEWEST, (BLOCK << 6 if x.is_cuda else BLOCK) // weight[..., 0].numel())
        blocks = (part.split(size, dim) for part, dim in ((x, -2), (targets, -1), (dx, -2)))
        for rows, given, drows in zip(*blocks, strict=True):
            asked, target = given >= 0, given.clamp(min=0).unsqueeze(-1)
            logits = rows @ weight.mT
            highest, answer = logits.max(dim=-1, keepdim=True)
            of_target = logits.gather(-1, target)
            grad = logits.sub_(highest).exp_()
            total = grad.sum(-1, keepdim=True)
            loss += ((total.log() + highest - of_target).squeeze(-1) * asked).sum(-1)
            right += ((answer == target).squeeze(-1) & asked).sum(-1)
            grad.mul_(asked.unsqueeze(-1) / total).scatter_add_(-1, target, -asked.unsqueeze(-1).to(grad.dtype))
            torch.matmul(grad, weight, out=drows)
            dweight.addmm_(grad.T, rows) if x.ndim == 2 else dweight.baddbmm_(grad.mT, rows)
        return loss, right, dx, dweight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG004
        ctx.save_for_backward(*output[2:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, dweight = ctx.saved_tensors
        scale = grads[0][..., None, None]
        return scale * dx, scale * dweight, None
