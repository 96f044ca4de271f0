"""Reading twice lets a memory for the shorter list find what two lists share (after Arora et al., 2024, Prop. G.18).

The task `set_disjointness`, read `passes` times over. One layer of the trained mixer `based` keeps the shorter list and
asks for every element of the other; one ReLU layer with bias -1/3 says which was there; a second linear attention
averages what is left. If the second list is the shorter, the elements of the first have gone by before there is
anything to ask: one pass answers nothing, the second pass finds it.

The Taylor kernel is K(s) = 1 + s + s^2 / 2, with s = S c(x) . c(y) and codes c of unit length: chirps of a prime length
p, exp(2 pi i (a n^2 + b n) / p) for token a p + b, of which p^2 have inner products of at most 1 / sqrt(p). Then

    error = K(S / sqrt(p)) / K(S) <= 1 / (3 |shorter|)

makes |shorter| wrong elements weigh at most 1/3 of a right one, hence the bias. `based` divides by the sum of all
kernels; the start token, of code zero and so of kernel 1, has a value of its own, and the bias is 1/3 K(S) times that:
the sign of what is compared is the same. p > 3 |shorter| is needed, so that the state grows with the shorter list and
not with the longer, but as its cube: O(|shorter| times the code length), which the authors prove, wants a kernel with
fewer features than Taylor's.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.constructions._construction import Stack, Stream, TokenRows, code_width, signs
from bestiary.constructions.memories import selection_matrix, sign_matrix, zero_mixer
from bestiary.tasks._task import SILENT, Batch

STEEP = 20.0  # S / p: the kernel's error is then within a few per cent of the least, 1 / p


def two_passes(vocab: int, first: int, second: int, *, passes: int = 2, prime: int | None = None) -> Stack:
    """The construction for lists of these sizes. Raises ValueError if codes of length `prime` are too much alike."""
    shorter = min(first, second)
    if shorter < 1 or passes < 1:
        raise ValueError(f"lists of {first} and {second} read {passes} times leave nothing to compare")
    prime = least_prime(vocab, shorter) if prime is None else prime
    if not fits(prime, vocab, shorter):
        raise ValueError(
            f"codes of length {prime} have a kernel error of {error(prime):.3g}; {vocab} tokens and a shorter list of "
            f"{shorter} need a prime length from {math.isqrt(vocab - 1) + 1} and an error of at most 1 / (3 {shorter})"
        )
    bits = code_width(vocab)
    embed = _Placed(vocab, prime, roles(first, second, passes))
    with torch.no_grad():
        layers = [
            lookup_layer(embed.dim, prime, bits),
            threshold_layer(embed.dim, prime, bits),
            averaging_layer(2 * bits + 1, bits),
        ]
    return Stack(embed, layers, F.pad(signs(vocab, bits), (0, bits + 1)))


def fits(prime: int, vocab: int, shorter: int) -> bool:
    """Whether a length is prime and its codes are enough and different enough."""
    is_prime = prime > 2 and all(prime % d for d in range(2, math.isqrt(prime) + 1))
    return is_prime and prime**2 >= vocab and 3 * shorter * error(prime) <= 1


def least_prime(vocab: int, shorter: int) -> int:
    """The shortest code length that fits."""
    prime = 3
    while not fits(prime, vocab, shorter):
        prime += 2
    return prime


def kernel(s: float) -> float:
    """The Taylor kernel of Based."""
    return 1 + s + s * s / 2


def error(prime: int) -> float:
    """The largest kernel of two different codes, of which the kernel of equal ones is 1."""
    return kernel(STEEP * math.sqrt(prime)) / kernel(STEEP * prime)


def chirps(vocab: int, prime: int) -> Float[Tensor, "vocab width"]:
    """Codes of unit length, real and imaginary parts side by side; the marks before token 4 have none."""
    token, n = torch.arange(vocab).unsqueeze(1), torch.arange(prime)
    turn = (token // prime * n * n + token % prime * n) % prime * (2 * math.pi / prime)
    codes = torch.cat([turn.double().cos(), turn.double().sin()], dim=1) / math.sqrt(prime)
    return codes * (token > 3)


def roles(first: int, second: int, passes: int) -> Float[Tensor, "time 3"]:
    """At each position whether it is stored (in the first pass), asked about, or the start of all."""
    one, two = torch.zeros(2, first + second + 3, dtype=torch.float64)
    one[1 : first + 1] = two[first + 2 : first + second + 2] = 1.0
    stored, asked = (one, two) if first <= second else (two, one)
    made = torch.stack([stored, asked, torch.zeros_like(one)], dim=1).repeat(passes, 1)
    made[len(one) :, 0] = 0.0
    made[0, 2] = 1.0
    return made


class _Placed(nn.Module):
    """[code | role | bits of the token and their opposites]: an embedding, and a position vector beside it."""

    table: Tensor
    roles: Tensor

    def __init__(self, vocab: int, prime: int, roles: Float[Tensor, "time 3"]) -> None:
        super().__init__()
        bits = signs(vocab, code_width(vocab))
        table = torch.cat([chirps(vocab, prime), torch.zeros(vocab, 3), (1 + bits) / 2, (1 - bits) / 2], dim=1)
        self.register_buffer("table", table)
        self.register_buffer("roles", F.pad(roles, (2 * prime, 2 * bits.shape[1])))
        self.dim = table.shape[1]

    def forward(self, tokens: TokenRows, time: int) -> Stream:
        end = time + tokens.shape[1]
        if end > len(self.roles):
            raise ValueError(f"the lists are {len(self.roles)} tokens in all, the input is {end}")
        return self.table[tokens] + self.roles[time:end]


def lookup_layer(dim: int, prime: int, bits: int) -> nn.Module:
    """Based beside a copy of the token: channels 0 and 1 say how much of what is stored, and of the start, is alike."""
    width = 2 * prime
    made = zero_mixer(f"parallel(mixers='short_conv(taps=1, residual=False), based(features={width})')", dim)
    local, memory = made.parts
    local.conv.filter[0, width + 1] = 1.0  # asked
    local.conv.filter[0, dim - 2 * bits :] = 1.0
    size = math.sqrt(STEEP * prime) * width**0.25
    memory.q.weight.copy_(size * selection_matrix(width, dim, range(width)))
    memory.k.weight.copy_(memory.q.weight)
    memory.v.weight[0, width], memory.v.weight[1, width + 2] = 1.0, 1.0  # stored, and the start
    memory.out.weight[:2, :2] = torch.eye(2, dtype=torch.float64)
    return made


def threshold_layer(dim: int, prime: int, bits: int) -> nn.Module:
    """max(0, found - K(S) / 3 start + asked + bit - 2) for every bit and opposite, and a one."""
    made = nn.Linear(dim, 2 * bits + 1, dtype=torch.float64)
    made.weight.zero_()
    made.weight[:-1, 0], made.weight[:-1, 1] = 1.0, -kernel(STEEP * prime) / 3
    made.weight[:-1, 2 * prime + 1] = 1.0
    made.weight[:-1, dim - 2 * bits :] = torch.eye(2 * bits, dtype=torch.float64)
    made.bias[:-1], made.bias[-1] = -2.0, 1.0
    return nn.Sequential(made, nn.ReLU())


def averaging_layer(dim: int, bits: int) -> nn.Module:
    """The mean over all positions so far, as signs."""
    made = zero_mixer("linear_attention(feature='relu', features=1)", dim)
    made.q.weight[0, -1] = made.k.weight[0, -1] = 1.0
    made.v.weight.copy_(torch.eye(dim, dtype=torch.float64))
    made.out.weight.copy_(sign_matrix(dim, bits))
    return made


def read_again(batch: Batch, passes: int) -> Batch:
    """The same sequences read so many times, with the question at the end of the last."""
    silent = torch.full_like(batch.targets, SILENT).repeat(1, passes - 1)
    return Batch(batch.tokens.repeat(1, passes), torch.cat([silent, batch.targets], dim=1), {})
