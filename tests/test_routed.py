"""Memories that a router chooses among: their papers' recurrences, token by token, and what is not chosen stays."""

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_same, build_mixer, inputs, unit
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._cost import weighted_costs
from bestiary.spec import parse


def gated_delta_step(state: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """One head of one sequence: key by value."""
    shrink = torch.eye(len(k), dtype=torch.float64) - beta * torch.outer(k, k)
    return alpha * shrink @ state + beta * torch.outer(k, v)


@pytest.mark.parametrize(("memories", "top", "taps"), [(4, 2, 4), (3, 1, 2), (3, 3, 1)])
def test_mom(memories: int, top: int, taps: int) -> None:
    mixer, x, heads, width = build_mixer(f"mom(memories={memories}, top={top}, conv={taps})"), inputs(), 2, DIM // 2
    y = torch.zeros(BATCH, TIME, heads, width, dtype=torch.float64)
    maps = mixer.kv.weight.unflatten(0, (memories + 1, 2, DIM))
    gates = mixer.gates.weight.unflatten(0, (memories + 1, 2, heads))
    for b in range(BATCH):
        state = torch.zeros(memories + 1, heads, width, width, dtype=torch.float64)
        taken: list[list[Tensor]] = [[] for _ in range(memories + 1)]
        for t in range(TIME):
            p = (mixer.route.weight @ x[b, t]).softmax(0)
            best = p.topk(top).indices.tolist()
            for m in (*best, memories):
                weight = p[m] / p[best].sum() if m < memories else 1
                taken[m].append(torch.cat([mixer.q.weight @ x[b, t], *(maps[m] @ x[b, t])]))
                mixed = sum(mixer.conv.filter[i] * taken[m][-1 - i] for i in range(min(taps, len(taken[m]))))
                q, k, v = F.silu(mixed).reshape(3, heads, width)
                step, beta = gates[m] @ x[b, t]
                alpha, beta = (-mixer.rate.exp() * F.softplus(step + mixer.dt)).exp(), beta.sigmoid()
                for h in range(heads):
                    state[m, h] = gated_delta_step(state[m, h].clone(), unit(k[h]), v[h], alpha[h], beta[h])
                    y[b, t, h] += weight * (unit(q[h]) / width**0.5) @ state[m, h]
    assert_same(mixer(x)[0], mixer.answer(y, x))


def test_memories_that_are_not_chosen_stay_as_they_were() -> None:
    mixer, x = build_mixer("mom"), inputs(1)
    _, state = mixer(inputs(9))
    _, after = mixer(x, state)
    chosen = F.pad(mixer.weights(x)[0][:, 0] > 0, (0, 1), value=True)
    for before, now in zip(state, after, strict=True):
        same = (before == now).unflatten(1, (5, -1)).flatten(2).all(-1)
        assert torch.equal(same, ~chosen)


def test_uneven_use_of_memories_costs_in_training_alone() -> None:
    mixer, x = build_mixer("mom(memories=4, top=2, balance=0.5)"), inputs()
    p, chosen = mixer.weights(x)[1].flatten(0, 1), mixer.weights(x)[0].flatten(0, 1) > 0
    wanted = 0.5 * 4 * sum(chosen[:, m].double().mean() * p[:, m].mean() for m in range(4))
    assert_same(mixer.cost(x), wanted)
    (slope,) = torch.autograd.grad(wanted, mixer.route.weight)
    found = []
    for training in (False, True):
        with weighted_costs(2.0):
            y = mixer.train(training).parallel(x)
        found.append(torch.autograd.grad(y.sum(), mixer.route.weight)[0])
    assert_same(found[1] - found[0], 2 * slope)
    with torch.no_grad():
        mixer.route.weight.zero_()  # all are alike
    assert mixer.cost(x).item() == pytest.approx(0.5 * 2)


@pytest.mark.parametrize(("slots", "top"), [(8, 3), (5, 5), (6, 1)])
def test_raven(slots: int, top: int) -> None:
    mixer, x = build_mixer(f"raven(slots={slots}, top={top})"), inputs()
    q, k, v = (F.silu(m(x)).unflatten(-1, (2, -1)) for m in (mixer.q, mixer.k, mixer.v))
    q, k = (
        z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
        for z, norm in ((q, mixer.q_norm), (k, mixer.k_norm))
    )
    f = -mixer.decay.rate.exp() * F.softplus(x @ mixer.decay.project.weight.T + mixer.decay.dt)
    p = (x @ mixer.route.weight.T).sigmoid().unflatten(-1, (2, slots))
    y = torch.zeros_like(v)
    for b in range(BATCH):
        for h in range(2):
            keys, values = torch.zeros(2, slots, DIM // 2, dtype=torch.float64)
            for t in range(TIME):
                best = p[b, t, h].topk(top).indices.tolist()
                for slot in best:
                    a = (f[b, t, h] * p[b, t, h, slot] / (p[b, t, h, best].sum() + 1e-9)).exp()
                    keys = keys.index_copy(0, torch.tensor([slot]), (a * keys[slot] + (1 - a) * k[b, t, h])[None])
                    values = values.index_copy(0, torch.tensor([slot]), (a * values[slot] + (1 - a) * v[b, t, h])[None])
                y[b, t, h] = (keys @ q[b, t, h]).softmax(0) @ values
    y = F.silu(y.flatten(2))
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    assert_same(mixer(x)[0], mixer.out(y))


def test_slots_that_are_not_written_stay_as_they_were() -> None:
    mixer, x = build_mixer("raven(slots=9, top=4)"), inputs(1)
    _, state = mixer(inputs(9))
    _, after = mixer(x, state)
    written = mixer.routing(x)[:, 0] > 0
    assert (written.sum(-1) == 4).all()
    assert torch.equal((state.keys == after.keys).all(2), ~written)
    assert torch.equal((state.values == after.values).all(3), ~written)


@pytest.mark.parametrize("text", ["mom(top=5)", "mom(memories=1)", "raven(slots=4, top=5)", "raven(top=33)"])
def test_more_choices_than_there_are_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="to choose from"):
        parse("mixers", text)[0].build(DIM)


@pytest.mark.parametrize("text", ["mom", "raven", "multi_head_hyena", "pd_ssm", "two_mamba", "m2rnn"])
@pytest.mark.parametrize("dim", [8, 128])
def test_defaults_work_at_any_usual_width(text: str, dim: int) -> None:
    mixer = parse("mixers", text)[0].build(dim)
    y, _ = mixer(torch.randn(1, 5, dim))
    assert y.shape == (1, 5, dim)
    assert y.isfinite().all()


def test_initial_weights_are_those_of_the_authors_code() -> None:
    mom, raven, m2rnn, two, pd = (
        parse("mixers", text)[0].build(128) for text in ("mom", "raven", "m2rnn", "two_mamba", "pd_ssm")
    )
    for map in (*mom.kv.weight.chunk(10), mom.q.weight, mom.answer.out.weight):  # each with 128 inputs and outputs
        assert map.abs().max().item() == pytest.approx(2**-2.5 * (6 / 256) ** 0.5, rel=0.01)
    assert mom.gates.weight.abs().max().item() == pytest.approx(2**-2.5 * (6 / 130) ** 0.5, rel=0.01)
    for decay in (mom, raven.decay, m2rnn.decay):
        assert decay.rate.exp().max() <= 16
        assert 0.99e-3 <= F.softplus(decay.dt).min() <= F.softplus(decay.dt).max() <= 0.101
    for map in (raven.route, raven.q, m2rnn.qkv, m2rnn.out, two.qkv, two.decay):
        assert map.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(m2rnn.again[3], torch.eye(16))
    assert (m2rnn.skip == 1).all()
    assert pd.places.std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert pd.into.std().item() == pytest.approx(64**-0.5, rel=0.05)
