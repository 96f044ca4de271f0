"""Sparse attentions, each by its formula and its rule of what is seen, written out plainly, in float64."""

import importlib
import math

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_same, build_mixer, inputs, rotate_plainly, split_heads
from torch import Tensor

from bestiary.mixers._softmax import hash_numbers
from bestiary.ops.selection import top_mask


def attended(q: Tensor, k: Tensor, v: Tensor, seen: list[int]) -> Tensor:
    """Softmax attention of one query over the positions seen, of one sequence and head."""
    weights = torch.stack([q @ k[j] / math.sqrt(len(q)) for j in seen]).softmax(0)
    return sum((w * v[j] for w, j in zip(weights, seen, strict=True)), torch.zeros_like(v[0]))


def best(scores: dict[int, float], count: int) -> set[int]:
    return set(sorted(scores, key=lambda place: (scores[place], place))[-count:])


def test_big_bird_attends_to_what_its_blocks_say() -> None:
    mixer, x = build_mixer("big_bird(heads=2, block=3, window=2, random=1)"), inputs()
    q, k, v = (split_heads(z, 2) for z in (mixer.q(x), mixer.k(x), mixer.v(x)))
    q, k, y = rotate_plainly(q), rotate_plainly(k), torch.zeros_like(v)
    blocks = mixer.choose_blocks(torch.arange(TIME), TIME)[0]
    for b in range(BATCH):
        for h in range(2):
            for i in range(TIME):
                seen = [j for j in range(i + 1) if j // 3 in blocks[h, i].tolist()]
                y[b, i, h] = attended(q[b, i, h], k[b, :, h], v[b, :, h], seen)
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


def test_big_bird_sees_near_first_and_few_random_blocks() -> None:
    mixer = build_mixer("big_bird(heads=4, block=3, window=2, random=2)")
    blocks = mixer.choose_blocks(torch.arange(60), 60)[0]
    assert blocks.shape == (4, 60, 5)
    for i, rows in enumerate(blocks.unbind(1)):
        own = i // 3
        fixed = {0, own, max(0, own - 1)}
        for row in rows.tolist():
            seen = [block for block in row if block >= 0]
            assert len(seen) == len(set(seen))
            assert fixed <= set(seen) <= set(range(own + 1))
            assert len(set(seen) - fixed) == min(2, own + 1 - len(fixed))


def test_big_bird_draws_alike_however_long_the_sequence() -> None:
    mixer = build_mixer("big_bird(heads=2, block=2, window=1, random=2)")
    long, short = mixer.choose_blocks(torch.arange(80), 80), mixer.choose_blocks(torch.arange(40, 50), 50)
    assert torch.equal(long[:, :, 40:50], short)
    assert torch.equal(long[:, :, [7, 43]], mixer.choose_blocks(torch.tensor([[7, 43]]), 80))
    assert not torch.equal(long[0, 0], long[0, 1])
    other = build_mixer("big_bird(heads=2, block=2, window=1, random=2, seed=1)")
    assert not torch.equal(long, other.choose_blocks(torch.arange(80), 80))


def test_drawn_numbers_are_uniform_and_depend_on_every_key() -> None:
    one, two = torch.arange(100).unsqueeze(1), torch.arange(100)
    found = hash_numbers(0, one, two).double() / 2**32
    assert found.min() >= 0
    assert found.max() < 1
    counts = torch.histc(found, bins=10, min=0, max=1)
    assert ((counts - 1000).square() / 1000).sum() < 30  # chi-squared of 9 degrees of freedom: 1 in 2000 by chance
    assert len(found.unique()) > 9990
    assert abs(torch.corrcoef(torch.stack([found[:, :-1].flatten(), found[:, 1:].flatten()]))[0, 1]) < 0.05


def test_top_takes_the_highest_and_of_equals_the_later() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_mask(scores, 3).tolist() == [[False, True, False, True, True], [False, False, True, True, True]]
    assert top_mask(scores, 9).all()


def test_moba() -> None:
    mixer, x = build_mixer("moba(heads=2, block=4, top=2)"), inputs()
    q, k, v = (split_heads(z, 2) for z in (mixer.q(x), mixer.k(x), mixer.v(x)))
    q, k, y = rotate_plainly(q), rotate_plainly(k), torch.zeros_like(v)
    for b in range(BATCH):
        for h in range(2):
            for i in range(TIME):
                scores = {c: (q[b, i, h] @ k[b, 4 * c : 4 * c + 4, h].mean(0)).item() for c in range(i // 4)}
                blocks = {i // 4} | best(scores, 1)
                seen = [j for j in range(i + 1) if j // 4 in blocks]
                y[b, i, h] = attended(q[b, i, h], k[b, :, h], v[b, :, h], seen)
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


def test_nsa() -> None:
    mixer, x = build_mixer("nsa(heads=4, groups=2, block=3, selected=4, window=5)"), inputs()
    q, kv = split_heads(mixer.q(x), 4), mixer.kv(x).unflatten(-1, (3, 2, 2, 16))  # branch, key or value, group
    gates, around = mixer.gate(x).sigmoid().unflatten(-1, (3, 4)), rotate_plainly(q)
    (ks, vs), (kw, vw), (kc, vc) = (kv[:, :, branch].unbind(2) for branch in range(3))
    ks, kw, y = rotate_plainly(ks), rotate_plainly(kw), torch.zeros_like(q)
    for b in range(BATCH):
        for g in range(2):
            raw = [[z[b, 3 * c : 3 * c + 3, g].flatten() for c in range(TIME // 3)] for z in (kc, vc)]
            kb, vb = (torch.stack([press(z) for z in part]) for press, part in zip(mixer.compress, raw, strict=True))
            for i in range(TIME):
                complete = list(range((i + 1) // 3))
                pair, value = (2 * g, 2 * g + 1), torch.zeros(len(complete), dtype=torch.float64)
                for h in pair:
                    value += torch.stack([q[b, i, h] @ kb[c] / 4 for c in complete]).softmax(0) if complete else 0
                own = i // 3
                fixed = {0, own, max(0, own - 1)}
                blocks = fixed | best({c: value[c].item() for c in range(own) if c not in fixed}, 4 - len(fixed))
                seen, near = [j for j in range(i + 1) if j // 3 in blocks], list(range(max(0, i - 4), i + 1))
                for h in pair:
                    turn, (coarse, fine, local) = around[b, i, h], gates[b, i, :, h]
                    y[b, i, h] = fine * attended(turn, ks[b, :, g], vs[b, :, g], seen)
                    y[b, i, h] += local * attended(turn, kw[b, :, g], vw[b, :, g], near)
                    if complete:
                        y[b, i, h] += coarse * attended(q[b, i, h], kb, vb, complete)
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


def test_nsa_keeps_compressed_blocks_the_open_one_and_a_window() -> None:
    _, state = build_mixer("nsa(heads=4, groups=2, block=4, window=6)")(inputs())
    assert [kept.shape[-2] for kept in state] == [TIME, 5, TIME % 4, TIME // 4]


def test_dsa() -> None:
    mixer, x = build_mixer("dsa(heads=2, index_heads=3, index=20, top=6)"), inputs()
    q, p = split_heads(mixer.q(x), 2).split([32, 16], dim=-1)
    latent = mixer.down(x) / (mixer.down(x).square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.norm.weight
    k, v = split_heads(mixer.up(latent), 2).split([32, 32], dim=-1)
    whole_q = torch.cat([q, rotate_plainly(p)], -1)
    whole_k = torch.cat([k, rotate_plainly(mixer.turn(x)).unsqueeze(2).expand(-1, -1, 2, -1)], -1)
    a, b = split_heads(mixer.index_q(x), 3), mixer.index_k(x)
    b = (b - b.mean(-1, keepdim=True)) / (b.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    b = b * mixer.index_norm.weight + mixer.index_norm.bias
    a, b = (torch.cat([rotate_plainly(z[..., :16]), z[..., 16:]], -1) for z in (a, b))
    weight, y = mixer.index_weight(x) / math.sqrt(3), torch.zeros_like(v)
    for n in range(BATCH):
        for i in range(TIME):
            found = (a[n, i] @ b[n].T / math.sqrt(20)).relu()  # index heads by tokens
            scores = dict(enumerate((weight[n, i] @ found)[: i + 1].tolist()))
            seen = sorted(best(scores, 6))
            for h in range(2):
                y[n, i, h] = attended(whole_q[n, i, h], whole_k[n, :, h], v[n, :, h], seen)
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


def test_the_indexer_of_dsa_learns_what_logits_learn() -> None:
    mixer, x = build_mixer("dsa(top=6)"), inputs()
    kept = mixer.update_cache(x, None)
    scores = mixer.scores(x, torch.arange(TIME), kept.index_keys).detach().requires_grad_()
    mixer.scores = lambda *_: scores
    mixer(x)[0].square().sum().backward()
    assert scores.grad is not None
    seen = scores.grad != 0
    assert (seen.sum(-1) == (torch.arange(TIME) + 1).clamp(max=6))[..., 1:].all()  # a single token has all the weight
    torch.testing.assert_close(scores.grad.sum(-1), torch.zeros(BATCH, 1, TIME, dtype=torch.float64))


def test_the_indexer_of_dsa_passes_no_gradient_on() -> None:
    mixer, x = build_mixer("dsa(queries=20, top=6)"), inputs().requires_grad_()
    learning = torch.autograd.grad(mixer(x)[0].square().sum(), [x, mixer.low[0].weight, mixer.index_k.weight])
    fixed = mixer.scores(x, torch.arange(TIME), mixer.update_cache(x, None).index_keys).detach()
    mixer.scores = lambda *_: fixed
    still = torch.autograd.grad(mixer(x)[0].square().sum(), [x, mixer.low[0].weight])
    assert_same(learning[0], still[0])
    assert_same(learning[1], still[1])
    assert learning[2].any()


@pytest.mark.hf
def test_dsa_is_hugging_faces() -> None:
    transformers = pytest.importorskip("transformers")
    model = importlib.import_module("transformers.models.deepseek_v32.modeling_deepseek_v32")
    config = transformers.DeepseekV32Config(
        hidden_size=DIM,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=20,
        kv_lora_rank=12,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        index_topk=6,
        index_head_dim=12,
        index_n_heads=16,
        attn_implementation="eager",
    )
    mixer = build_mixer("dsa(heads=4, latent=12, queries=20, index_heads=16, index=12, top=6)").float()
    x, other = inputs().float(), model.DeepseekV32Attention(config, layer_idx=0)

    def interleaved(rows: Tensor) -> Tensor:
        """Rotated channels lie beside their partners there, but not in the indexer."""
        return rows.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)

    with torch.no_grad():
        parts = [part.split([16, 8]) for part in mixer.q.weight.unflatten(0, (4, 24))]
        other.q_b_proj.weight.copy_(torch.cat([torch.cat([plain, interleaved(turn)]) for plain, turn in parts]))
        other.kv_a_proj_with_mqa.weight.copy_(torch.cat([mixer.down.weight, interleaved(mixer.turn.weight)]))
        for theirs, ours in (
            (other.q_a_proj, mixer.low[0]),
            (other.q_a_layernorm, mixer.low[1]),
            (other.kv_a_layernorm, mixer.norm),
            (other.kv_b_proj, mixer.up),
            (other.o_proj, mixer.out),
            (other.indexer.wq_b, mixer.index_q),
            (other.indexer.wk, mixer.index_k),
            (other.indexer.k_norm, mixer.index_norm),
            (other.indexer.weights_proj, mixer.index_weight),
        ):
            theirs.load_state_dict(ours.state_dict())
        angles = model.DeepseekV32RotaryEmbedding(config)(x, torch.arange(TIME).unsqueeze(0))
        mask = torch.full((BATCH, 1, TIME, TIME), -torch.inf).triu(1)
        torch.testing.assert_close(mixer(x)[0], other(x, angles, mask)[0], rtol=1e-4, atol=1e-5)
