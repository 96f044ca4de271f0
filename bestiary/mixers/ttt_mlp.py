"""TTT-MLP (Sun et al., 2024): memory is a network of two layers that learns, one gradient step per mini-batch.

    f(x; W) = x + LayerNorm(GELU(x W1 + b1) W2 + b2),   loss_t = |f(k_t) - v_t|^2 / 2
    W_t = W - max(0, 1/i + p_i) sum_j eta_j d loss_j / d W,   eta_t = 0.1 sigmoid(w x_t + c) / width
    y_t = f(q_t; W_t),   output = W_o (GELU(W_g x) * LayerNorm(y))

The hidden layer is four times as wide as a head. W, without index, is before the mini-batch of t, j runs over its
tokens up to t, which is its i-th; all else is as in TTT-Linear. Initialisation as in the authors' code: linear maps
and W N(0, 0.02), biases and p zero, convolutions PyTorch's.
Departs from the paper: no gradient of the model's loss passes through a step at an output whose variance is below 1e-6,
such as that of a zero input, where it would grow without bound. At a boundary the state holds no gradients of the inner
loss, which are zero there.
"""

from typing import ClassVar

from bestiary.mixers._ttt import TTT


class TTTMLP(TTT):
    """y_t = f(q_t; W_t), W_t = W - pace_i sum_j eta_j d |f(k_j; W) - v_j|^2 / 2 dW, f a network of two layers."""

    family: ClassVar = "test time"
    variants: ClassVar = ('heads=1, minibatch=5, backbone="transformer"',)
    hidden: ClassVar = (4,)
    speed: ClassVar = 0.1
