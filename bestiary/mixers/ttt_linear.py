"""TTT-Linear (Sun et al., 2024): memory is a linear map that learns, one gradient step per mini-batch of tokens.

    f(x; W, b) = x + LayerNorm(x W + b),   loss_t = |f(k_t) - v_t|^2 / 2,   eta_t = sigmoid(w x_t + c) / width
    W_t = W - max(0, 1/i + p_i) sum_j eta_j d loss_j / d W,   y_t = f(q_t; W_t),   the same for b
    output = W_o (GELU(W_g x) * LayerNorm(y))

W is that before the mini-batch of t, j runs over its tokens up to t, which is its i-th; mini-batches are 16 tokens
by absolute position and queries and keys are rotated by their place in theirs. With `backbone="mamba"`, the paper's
choice, q and k are two short convolutions of one projection; "transformer" has no convolution and no gate.
Initialisation as in the authors' code: linear maps and W N(0, 0.02), biases and p zero, convolutions PyTorch's.
Departs from the paper: no gradient of the model's loss passes through a step at an output whose variance is below 1e-6,
such as that of a zero input, where it would grow without bound. At a boundary the state holds no gradients of the inner
loss, which are zero there.
"""

from typing import ClassVar

from bestiary.mixers._ttt import TTT


class TTTLinear(TTT):
    """y_t = f(q_t; W_t), W_t = W - pace_i sum_j eta_j d |f(k_j; W) - v_j|^2 / 2 dW, f(x) = x + LayerNorm(x W + b)."""

    family: ClassVar = "test time"
    variants: ClassVar = ('heads=1, minibatch=5, backbone="transformer"',)
    hidden: ClassVar = ()
    speed: ClassVar = 1.0
