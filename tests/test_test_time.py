"""Mixers that learn while they read: their papers' updates written out, with gradients from autograd, in float64."""

import math
from typing import Any

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_same, build_mixer, inputs, unit
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import parse


def convolved(x: Tensor, conv: Any) -> Tensor:
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for i in range(min(t + 1, len(conv.filter))):
            y[:, t] += conv.filter[i] * x[:, t - i]
    return y if conv.bias is None else y + conv.bias


def turned(x: Tensor, place: int) -> Tensor:
    """Rotary positions of one vector, channel i paired with i + width / 2."""
    half = len(x) // 2
    y = torch.empty_like(x)
    for i in range(half):
        angle = place / 10_000 ** (i / half)
        y[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        y[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return y


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt() * scale + shift


def network(x: Tensor, weights: list[Tensor], scale: Tensor, shift: Tensor, features: Tensor | None = None) -> Tensor:
    """x + LayerNorm(layers), one vector or features of it, GELU in its tanh form between the layers."""
    y = (x if features is None else features) @ weights[0][:-1] + weights[0][-1]
    for weight in weights[1:]:
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        y = y @ weight[:-1] + weight[-1]
    return x + normed(y, scale, shift)


def gradient(k: Tensor, v: Tensor, weights: list[Tensor], scale: Tensor, shift: Tensor) -> list[Tensor]:
    """Of |f(k) - v|^2 / 2, by autograd."""
    given = [weight.detach().requires_grad_() for weight in weights]
    loss = (network(k, given, scale, shift) - v).square().sum() / 2
    return list(torch.autograd.grad(loss, given))


@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
@pytest.mark.parametrize(("name", "speed"), [("ttt_linear", 1.0), ("ttt_mlp", 0.1)])
def test_ttt(name: str, speed: float, backbone: str) -> None:
    heads, size = 4, 5
    mixer, x = build_mixer(f"{name}(heads={heads}, minibatch={size}, backbone={backbone!r})"), inputs()
    width = DIM // heads
    q = x @ mixer.q.weight.T
    q, k = (
        (convolved(q, mixer.conv_q), convolved(q, mixer.conv_k)) if backbone == "mamba" else (q, x @ mixer.k.weight.T)
    )
    v, eta = x @ mixer.v.weight.T, speed / width * mixer.eta(x).sigmoid()
    y = torch.zeros_like(x)
    for b in range(BATCH):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scale, shift = mixer.network.scale[h, 0], mixer.network.shift[h, 0]
            start = [weight[h].detach() for weight in mixer.network.start]
            for t in range(TIME):
                i = t % size
                learned = [torch.zeros_like(w) for w in start] if i == 0 else learned
                slopes = gradient(turned(k[b, t, part], i), v[b, t, part], start, scale, shift)
                learned = [s + eta[b, t, h] * slope for s, slope in zip(learned, slopes, strict=True)]
                pace = max(0.0, 1 / (i + 1) + mixer.pace[i].item())
                now = [w - pace * s for w, s in zip(start, learned, strict=True)]
                y[b, t, part] = network(turned(q[b, t, part], i), now, scale, shift)
                start = now if i == size - 1 else start
    y = F.layer_norm(y, (DIM,), mixer.norm.weight, mixer.norm.bias, 1e-6)
    if backbone == "mamba":
        y = F.gelu(x @ mixer.gate.weight.T, approximate="tanh") * y
    assert_same(mixer(x)[0], y @ mixer.out.weight.T)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 5])
def test_titans(depth: int, chunk: int) -> None:
    heads, width = 4, 16
    mixer, x = build_mixer(f"titans(heads={heads}, depth={depth}, chunk={chunk})"), inputs()
    mixed = convolved(x @ mixer.streams.project.weight.T, mixer.streams.conv)
    q, k, v = ((z * z.sigmoid()).unflatten(-1, (heads, -1)) for z in mixed.chunk(3, dim=-1))
    q, k = unit(q), unit(k)
    theta, eta, alpha = mixer.theta(x).sigmoid() / width, mixer.eta(x).sigmoid(), mixer.alpha(x).sigmoid()
    y = torch.zeros_like(v)
    for b in range(BATCH):
        for h in range(heads):
            scale, shift = mixer.network.scale[h, 0], mixer.network.shift[h, 0]
            memory = [weight[h].detach() for weight in mixer.network.start]
            momentum = [torch.zeros_like(weight) for weight in memory]
            for t in range(TIME):
                anchor = memory if t % chunk == 0 else anchor
                slopes = gradient(k[b, t, h], v[b, t, h], anchor, scale, shift)
                momentum = [eta[b, t, h] * s - theta[b, t, h] * g for s, g in zip(momentum, slopes, strict=True)]
                memory = [(1 - alpha[b, t, h]) * m + s for m, s in zip(memory, momentum, strict=True)]
                y[b, t, h] = network(q[b, t, h], memory, scale, shift)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.answer.norm.weight
    assert_same(mixer(x)[0], mixer.answer.out(y.flatten(2) * mixer.answer.gate(x).sigmoid()))


def polynomial(x: Tensor, powers: Tensor, degree: int) -> Tensor:
    """a_1 x and a_2 x_i x_j, counted sqrt(2) times if i != j: dot products are a_1^2 q.k + a_2^2 (q.k)^2."""
    features = [powers[0] * x[i] for i in range(len(x))]
    if degree == 2:
        for i in range(len(x)):
            features += [powers[1] * x[i] * x[j] * (1 if i == j else math.sqrt(2)) for j in range(i, len(x))]
    return torch.stack(features)


@pytest.mark.parametrize(("chunk", "window", "degree", "depth"), [(1, 3, 1, 2), (5, 7, 2, 1)])
def test_atlas(chunk: int, window: int, degree: int, depth: int) -> None:
    heads, width = 8, 8
    options = f"heads={heads}, depth={depth}, chunk={chunk}, window={window}, degree={degree}"
    mixer, x = build_mixer(f"atlas({options})"), inputs(13)
    mixed = convolved(x @ mixer.streams.project.weight.T, mixer.streams.conv)
    q, k, v = ((z * z.sigmoid()).unflatten(-1, (heads, -1)) for z in mixed.chunk(3, dim=-1))
    q, k = unit(q), unit(k)
    theta, eta, alpha = mixer.theta(x).sigmoid() / width, mixer.eta(x).sigmoid(), mixer.alpha(x).sigmoid()
    gamma, y = mixer.gamma(x).sigmoid(), torch.zeros_like(v)
    for b in range(BATCH):
        for h in range(heads):
            scale, shift = mixer.network.scale[h, 0], mixer.network.shift[h, 0]
            memory = [weight[h].detach() for weight in mixer.network.start]
            momentum = [torch.zeros_like(weight) for weight in memory]
            for t in range(13):
                anchor = [weight.clone().requires_grad_() for weight in memory] if t % chunk == 0 else anchor
                loss = torch.zeros(())
                for i in range(max(0, t - window + 1), t + 1):
                    found = network(
                        k[b, i, h], anchor, scale, shift, polynomial(k[b, i, h], mixer.network.powers, degree)
                    )
                    loss = loss + gamma[b, i, h] * (found - v[b, i, h]).square().sum() / 2
                slopes = torch.autograd.grad(loss, anchor)
                momentum = [eta[b, t, h] * s - theta[b, t, h] * g for s, g in zip(momentum, slopes, strict=True)]
                memory = [((1 - alpha[b, t, h]) * m + s).detach() for m, s in zip(memory, momentum, strict=True)]
                features = polynomial(q[b, t, h], mixer.network.powers, degree)
                y[b, t, h] = network(q[b, t, h], memory, scale, shift, features)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.answer.norm.weight
    assert_same(mixer(x)[0], mixer.answer.out(y.flatten(2) * mixer.answer.gate(x).sigmoid()))


def test_atlas_with_a_window_of_one_token_is_titans() -> None:
    (titans, atlas), x = (build_mixer("titans"), build_mixer("atlas(window=1, degree=1, depth=2)")), inputs()
    with torch.no_grad():
        atlas.network.powers.fill_(1)
        atlas.gamma.weight.zero_()
        atlas.gamma.bias.fill_(50)  # gamma = 1
    atlas.load_state_dict(titans.state_dict(), strict=False)
    assert_same(atlas(x)[0], titans(x)[0])


def miras_loss(miss: Tensor, delta: Tensor | None) -> Tensor:
    """What has Yaad's slope at `miss`, or Moneta's loss, |r| smooth near zero."""
    if delta is None:
        return (miss.square() + 1e-6).pow(1.5).sum()
    if miss.square().sum() <= delta.square():
        return miss.square().sum() / 2
    return delta * (10 * miss).cosh().log().sum() / 10  # of slope delta tanh(10 r)


@pytest.mark.parametrize(("form", "chunk", "depth"), [("yaad", 1, 2), ("moneta", 5, 1)])
def test_miras(form: str, chunk: int, depth: int) -> None:
    heads, width, time = 8, 8, 13
    mixer, x = build_mixer(f"miras(form={form!r}, heads={heads}, chunk={chunk}, depth={depth})"), inputs(13)
    mixed = convolved(x @ mixer.streams.project.weight.T, mixer.streams.conv)
    q, k, v = ((z * z.sigmoid()).unflatten(-1, (heads, -1)) for z in mixed.chunk(3, dim=-1))
    q, k = unit(q), unit(k)
    eta, alpha, y = mixer.eta(x).sigmoid() / width, mixer.alpha(x).sigmoid(), torch.zeros_like(v)
    delta = width**0.5 * (1 + mixer.delta(x).exp()).log() if form == "yaad" else None
    near = []
    for b in range(BATCH):
        for h in range(heads):
            scale, shift = mixer.network.scale[h, 0], mixer.network.shift[h, 0]
            memory = [weight[h].detach() for weight in mixer.network.start]
            for t in range(time):
                anchor = [weight.clone().requires_grad_() for weight in memory] if t % chunk == 0 else anchor
                miss = network(k[b, t, h], anchor, scale, shift) - v[b, t, h]
                turn = None if delta is None else delta[b, t, h]
                near.append(turn is not None and bool(miss.square().sum() <= turn.square()))
                slopes = torch.autograd.grad(miras_loss(miss, turn), anchor)
                memory = [
                    ((1 - alpha[b, t, h]) * m - eta[b, t, h] * g).detach() for m, g in zip(memory, slopes, strict=True)
                ]
                y[b, t, h] = network(q[b, t, h], memory, scale, shift)
    assert form == "moneta" or 0.1 < sum(near) / len(near) < 0.9  # both sides of delta are seen
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.answer.norm.weight
    assert_same(mixer(x)[0], mixer.answer.out(y.flatten(2) * mixer.answer.gate(x).sigmoid()))


@pytest.mark.parametrize(("chunk", "slots"), [(1, 6), (5, 9)])
def test_lattice(chunk: int, slots: int) -> None:
    """One gradient step a token on |v - S k|^2 / 2, through the normalisation of each slot, by autograd."""
    heads, width = 8, 8
    mixer, x = build_mixer(f"lattice(heads={heads}, slots={slots}, chunk={chunk})"), inputs()
    mixed = convolved(x @ mixer.streams.project.weight.T, mixer.streams.conv)
    mixed = (mixed * mixed.sigmoid()).split([heads * slots, heads * slots, heads * width], dim=-1)
    q, k, v = (z.unflatten(-1, (heads, -1)) for z in mixed)
    q, k, beta, y = unit(q), unit(k), mixer.beta(x).sigmoid(), torch.zeros_like(v)
    for b in range(BATCH):
        for h in range(heads):
            now = F.normalize(mixer.start[h].detach(), dim=-1)
            for t in range(TIME):
                anchor, sum_of_steps = (now, torch.zeros_like(now)) if t % chunk == 0 else (anchor, sum_of_steps)
                given = anchor.clone().requires_grad_()
                loss = (v[b, t, h] - k[b, t, h] @ F.normalize(given, dim=-1)).square().sum() / 2
                sum_of_steps = sum_of_steps - beta[b, t, h] * torch.autograd.grad(loss, given)[0]
                assert (sum_of_steps * anchor).sum(-1).abs().max() < 1e-10  # nothing along the slots
                now = F.normalize(anchor + sum_of_steps, dim=-1).detach()
                y[b, t, h] = q[b, t, h] @ now
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.answer.norm.weight
    assert_same(mixer(x)[0], mixer.answer.out(y.flatten(2) * mixer.answer.gate(x).sigmoid()))


@pytest.mark.parametrize("name", ["ttt_linear", "ttt_mlp", "titans"])
def test_nothing_but_weights_is_kept_at_the_end_of_a_minibatch(name: str) -> None:
    mixer, x = build_mixer(name), inputs()
    _, inside = mixer(x[:, :15])
    _, boundary = mixer(x[:, :16])
    assert (inside[2] if name != "titans" else inside[3]) != ()
    assert (boundary[2] if name != "titans" else boundary[3]) == ()


def test_ttt_needs_heads_of_even_width() -> None:
    with pytest.raises(ValueError, match="an even head width, 6 / 2 is odd"):
        parse("mixers", "ttt_linear")[0].build(6)
