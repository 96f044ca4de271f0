"""One layer of attention without softmax recalls from triplets, whatever their number (Arora et al., 2023, Prop. 4.3).

Row i is [onehot k_i | onehot v_i | onehot q_i]. W_K, W_V and W_Q select the three blocks, and

    y_i = sum_{j<i} (q_i . k_j) v_j,     q . k = 1 where the tokens are the same, else 0

is the one-hot value of the query's key, if it came before. For c tokens: one layer, width 3c + 1, O(c^2) weights of
which 3c are not zero, none of them depending on the number of rows; O(N c^2 + N^2 c) time. A code one channel
narrower must give two tokens the same code, and mistakes exactly those.
"""

import torch
from torch import Tensor

from bestiary.constructions._construction import Stack, Triplets
from bestiary.constructions._positioned import Inputs, Outputs, sparse_matrix
from bestiary.mixers._mixer import Mixer


def triplet_attention(vocab: int, *, width: int | None = None) -> Stack:
    """The construction for `vocab` tokens; with a `width` below it, the last tokens share the last channel."""
    width = vocab if width is None else width
    if not 0 < width <= vocab:
        raise ValueError(f"one-hot codes of {vocab} tokens have a width of 1 to {vocab}, not {width}")
    table = torch.eye(width, dtype=torch.float64)[torch.arange(vocab).clamp(max=width - 1)]
    return Stack(Triplets(table), [_Unnormalised(3 * width + 1, width)], table)


class _Unnormalised(Mixer):
    """y_i = sum_{j<i} (W_Q x_i . W_K x_j) W_V x_j."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        for block, name in enumerate(("key", "value", "query")):
            selected = sparse_matrix({(c, block * width + c): 1.0 for c in range(width)}, (width, dim))
            self.register_buffer(name, selected)

    def empty_output(self, x: Inputs) -> Outputs:
        return x.new_zeros(*x.shape[:2], self.width)

    def forward(self, x: Inputs, state: tuple[Tensor, Tensor] | None = None) -> tuple[Outputs, tuple[Tensor, Tensor]]:
        k, v, q = (torch.sparse.mm(w, x.flatten(0, 1).T).T.unflatten(0, x.shape[:2]) for w in self.buffers())
        if state is not None:
            k, v = (torch.cat(pair, dim=1) for pair in zip(state, (k, v), strict=True))
        scores = (q @ k.mT).tril(k.shape[1] - q.shape[1] - 1)
        return scores @ v, (k, v)
