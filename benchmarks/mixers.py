"""Every mixer: time of a training pass, growth of that time with length, and speed of decoding.

    python benchmarks/mixers.py peers [names ...]   against the same layer of transformers or torch on a CPU, in turns
    python benchmarks/mixers.py decay               the recurrence with a decay per key against one per head
    python benchmarks/mixers.py length [names ...]  forward and backward from 256 to 8,192 tokens; fitted exponent
    python benchmarks/mixers.py decode [names ...]  tokens a second, one at a time, after 1,024 and 16,384 tokens

One thread, one layer of width 128. `length` and `decode` count the processor's time, which other programs on the
machine disturb less than the clock's; on one thread they are the same. In `length` the batch is
the same at every length, 4 sequences, or 1 where pairs of positions are compared; the exponent is that of the time of
a pass, fitted to all four lengths.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _bench import interleaved, machine, ratio, told
from torch import Tensor, nn

from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.spec import names, parse
from bestiary.training.train import keep_freed_memory

DIM, BATCH, LENGTHS, CONTEXTS = 128, 16, (256, 1024, 4096, 8192), (1024, 16384)


def train(mixer: nn.Module, call: Callable[[Tensor], Any], batch: int, length: int) -> Callable[[], None]:
    x = torch.randn(batch, length, DIM)

    def once() -> None:
        mixer.zero_grad()
        y = call(x)
        (y[0] if isinstance(y, tuple) else y).square().mean().backward()

    return once


def ours(name: str) -> Any:
    torch.manual_seed(0)
    return parse("mixers", name)[0].build(DIM)


def peers(chosen: list[str]) -> None:
    from transformers import logging

    logging.set_verbosity_error()
    print(f"forward and backward, batch {BATCH}, length 256, width {DIM}, CPU time; {machine()}")
    print(f"  {'layer':14} {'peer':34} {'peer, ms':>9} {'ours, ms':>9} {'ratio':>7}")
    for name, peer, one, other in pairs_of_layers():
        if chosen and name.partition("(")[0] not in chosen:
            continue
        ways = {"ours": train(one, one.parallel, BATCH, 256), "peer": train(other[0], other[1], BATCH, 256)}
        taken = interleaved(ways, rounds=5, clock=time.process_time)
        times = [statistics.median(taken[way]) * 1e3 for way in ("peer", "ours")]
        cells = "".join(f" {t:9.1f}" for t in times)
        print(f"  {name:14} {peer:34}{cells} {ratio(taken, 'peer', 'ours'):7.2f}", flush=True)


def pairs_of_layers() -> Iterator[tuple[str, str, Any, tuple[nn.Module, Callable[[Tensor], Any]]]]:
    """Our layer's name and its peer's, our layer, and the peer with the function that calls it."""
    import transformers as hf
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    places = torch.arange(256).unsqueeze(0)
    llama = hf.LlamaConfig(hidden_size=DIM, num_attention_heads=2, num_key_value_heads=2, attn_implementation="sdpa")
    angles = LlamaRotaryEmbedding(llama)(torch.zeros(1, 256, DIM), places)
    attention = LlamaAttention(llama, layer_idx=0)
    lightning = MiniMaxLightningAttention(
        hf.MiniMaxConfig(hidden_size=DIM, num_attention_heads=2, layer_types=["linear_attention"], num_hidden_layers=1),
        0,
    )
    heads = {"num_heads": 4, "head_dim": 64, "n_groups": 1}
    mamba2 = Mamba2Mixer(hf.Mamba2Config(hidden_size=DIM, expand=2, **heads), 0)
    delta = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 48}
    gated_delta = Qwen3NextGatedDeltaNet(hf.Qwen3NextConfig(hidden_size=DIM, linear_value_head_dim=96, **delta), 0)
    gemma = hf.RecurrentGemmaConfig(hidden_size=DIM, lru_width=DIM, num_attention_heads=4)
    griffin = RecurrentGemmaRecurrentBlock(gemma, 0)
    rwkv = RwkvSelfAttention(hf.RwkvConfig(hidden_size=DIM, num_hidden_layers=1), layer_id=0)
    xlstm = hf.xLSTMConfig(hidden_size=DIM, num_heads=2, num_hidden_layers=1, autocast_kernel_dtype="float32")
    mlstm = xLSTMLayer(xlstm)
    mamba = MambaMixer(hf.MambaConfig(hidden_size=DIM), 0)
    fused, several = nn.LSTM(DIM, DIM, batch_first=True), nn.MultiheadAttention(DIM, 2, batch_first=True, bias=False)
    mask = nn.Transformer.generate_square_subsequent_mask(256)

    def torch_attention(x: Tensor) -> Tensor:
        return several(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]

    def lightly(x: Tensor) -> Tensor:
        return lightning(x, position_embeddings=None, attention_mask=None)[0]

    def llama_attention(x: Tensor) -> Tensor:
        return attention(x, position_embeddings=angles, attention_mask=None)[0]

    yield "attention", "LlamaAttention, sdpa", ours("attention(heads=2)"), (attention, llama_attention)
    plain = ours("attention(heads=2, rotary=False)")
    yield "attention", "torch.nn.MultiheadAttention", plain, (several, torch_attention)
    yield "lightning", "MiniMaxLightningAttention", ours("lightning(heads=2, layer=0, layers=1)"), (lightning, lightly)
    yield "mlstm", "xLSTMLayer", ours("mlstm(heads=2)"), (mlstm, mlstm)
    yield "gated_delta", "Qwen3NextGatedDeltaNet", ours("gated_delta"), (gated_delta, gated_delta)
    yield "mamba2", "Mamba2Mixer", ours("mamba2"), (mamba2, mamba2)
    yield (
        "rg_lru",
        "RecurrentGemmaRecurrentBlock",
        ours("rg_lru(heads=4)"),
        (griffin, lambda x: griffin(x, places, None, use_cache=False)),
    )
    yield "rwkv4", "RwkvSelfAttention", ours("rwkv4"), (rwkv, rwkv)
    yield "lstm", "torch.nn.LSTM", ours("lstm"), (fused, fused)
    yield "mamba", "MambaMixer", ours("mamba"), (mamba, mamba)


def decay() -> None:
    """Both drives with the same queries, keys and values, of width 128 in two heads."""

    def way(width: int, rewrite: bool) -> Callable[[], None]:
        def once() -> None:
            q, k, v = (torch.randn(32, 256, 2, 64, requires_grad=True) for _ in range(3))
            g = (-0.1 * torch.randn(32, 256, 2, width).exp()).requires_grad_()
            unit, beta = nn.functional.normalize(k, dim=-1), torch.rand(32, 256, 2, 1)
            drive = Drive(q, unit, v, g, rewrite=(-beta, g.exp() * unit) if rewrite else None)
            run(drive, torch.zeros(32, 2, 64, 64))[0].square().mean().backward()

        return once

    print(f"the recurrence forward and backward, batch 32, length 256, two heads of 64 keys; {machine()}")
    for name, rewrite in {"gated linear": False, "gated delta": True}.items():
        taken = interleaved({"per key": way(64, rewrite), "per head": way(1, rewrite)}, rounds=9)
        print(f"{name}\n{told(taken)}\n  ratio: {ratio(taken, 'per key', 'per head'):.2f}", flush=True)


def length(chosen: list[str]) -> None:
    print(f"microseconds a token, forward and backward, width {DIM}; {machine()}")
    print(f"  {'mixer':20}" + "".join(f"{n:>9,}" for n in LENGTHS) + "   exponent")
    for name in chosen:
        mixer, spent = ours(name), []
        batch = 1 if mixer.family in ("softmax", "sparse") else 4
        for n in LENGTHS:
            once, tries = train(mixer, mixer.parallel, batch, n), []
            once()
            for _ in range(3):
                begun = time.process_time()
                once()
                tries.append(time.process_time() - begun)
            spent.append(statistics.median(tries) / (batch * n) * 1e6)
        slope = statistics.linear_regression([math.log(n) for n in LENGTHS], [math.log(t) for t in spent]).slope
        print(f"  {name:20}" + "".join(f"{t:9.2f}" for t in spent) + f"   {1 + slope:8.2f}", flush=True)


@torch.no_grad()
def decode(chosen: list[str]) -> None:
    print(f"tokens a second, one sequence, width {DIM}; {machine()}")
    print(f"  {'mixer':20}" + "".join(f"after {n:>7,}" for n in CONTEXTS) + "     slower")
    for name in chosen:
        speeds = list(speeds_of(ours(name).eval()))
        print(f"  {name:20}" + "".join(f"{s:13,.0f}" for s in speeds) + f"   {speeds[0] / speeds[-1]:8.2f}", flush=True)


def speeds_of(mixer: Any) -> Iterator[float]:
    state, read, token = None, 0, torch.randn(1, 1, DIM)
    for context in CONTEXTS:
        while read < context:
            _, state = mixer(torch.randn(1, 512, DIM), state)
            read += 512
        begun, after = time.process_time(), state
        for _ in range(50):
            _, after = mixer(token, after)
        yield 50 / (time.process_time() - begun)


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    what, *chosen = sys.argv[1:] or ["peers"]
    match what:
        case "peers":
            peers(chosen)
        case "decay":
            decay()
        case "length":
            length(chosen or names("mixers"))
        case "decode":
            decode(chosen or names("mixers"))
        case _:
            sys.exit(f"{what!r} is none of peers, decay, length, decode")
