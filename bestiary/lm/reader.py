"""How likely a causal language model, of transformers or of ours, finds answers to prompts."""

import copy
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.corpus.tokenizers import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


class Score(NamedTuple):
    """How a model rates an answer to a prompt."""

    log_likelihood: float  # nats, of the whole answer
    greedy: bool  # it is what the model goes on to write, taking the likeliest token each time


Reader = Callable[[Sequence[tuple[str, str]]], Sequence[Score]]  # from prompts and answers, those of one context


Step = Callable[["Tensor", Any], tuple["Tensor", Any]]  # tokens and what was read, to logits and what was read then


def reader(model: Any, tokenizer: Any, *, rows: int = 16) -> Reader:
    """A model as a `Reader`. What prompts share is read once; `rows` answers are read at a time."""
    import torch

    from bestiary.model import Model

    step = model if isinstance(model, Model) else carrying(model)
    device, limit = next(model.parameters()).device, longest(model)

    def read(asked: Sequence[tuple[str, str]]) -> list[Score]:
        pairs = [encoded(tokenizer, *row) for row in asked]
        most = max(len(before) + len(after) for before, after in pairs)
        if limit is not None and most > limit:
            raise ValueError(f"a prompt has {most} tokens, the model reads {limit}: ask for fewer words or entries")
        shared = common([before[:-1] for before, _ in pairs])
        found = []
        with torch.no_grad():
            state = step(torch.tensor([shared], device=device), None)[1] if shared else None
            for before, group in groupby(pairs, key=lambda pair: pair[0]):
                rest, answers = torch.tensor([before[len(shared) :]], device=device), [after for _, after in group]
                for i in range(0, len(answers), rows):
                    found += rated(step, rest, answers[i : i + rows], copy.deepcopy(state))
        return found

    return read


def rated(step: Step, prompt: "Tensor", answers: list[list[int]], state: Any) -> list[Score]:
    """How likely answers are after what was read and a prompt (1, time)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    logits, state = step(prompt, state)
    state = spread(state, len(answers))
    tokens = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True, padding_value=-1)
    tokens = tokens.to(prompt.device)
    last, sums = logits[:, -1].expand(len(answers), -1), torch.zeros(len(answers), dtype=torch.float64)
    greedy = torch.ones(len(answers), dtype=torch.bool)
    for i in range(tokens.shape[1]):
        now, there = tokens[:, i].clamp(min=0), tokens[:, i] >= 0
        chances = last.double().log_softmax(-1)
        sums += chances.gather(1, now.unsqueeze(1)).squeeze(1).where(there, 0).cpu()
        greedy &= ((chances.argmax(-1) == now) | ~there).cpu()
        if i + 1 < tokens.shape[1]:
            logits, state = step(now.unsqueeze(1), state)
            last = logits[:, -1]
    return [Score(*pair) for pair in zip(sums.tolist(), greedy.tolist(), strict=True)]


def spread(state: Any, count: int) -> Any:
    """The state of one row, for so many."""
    import torch

    if isinstance(state, torch.Tensor):
        return state.expand(count, *state.shape[1:])
    if isinstance(state, tuple | list):
        parts = [spread(part, count) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if hasattr(state, "reorder_cache"):
        state.reorder_cache(torch.zeros(count, dtype=torch.long, device=state_device(state)))
    return state


def state_device(state: Any) -> Any:
    """Where a cache of transformers lies."""
    import torch

    for layer in getattr(state, "layers", ()):
        for value in vars(layer).values():
            if isinstance(value, torch.Tensor):
                return value.device
    return torch.device("cpu")


def carrying(model: Any) -> Step:
    """A model of transformers token by token with its cache, or, if that is not the same, by reading all again."""
    import torch

    tokens = torch.arange(2, 8, device=model.device).unsqueeze(0) % model.get_input_embeddings().weight.shape[0]
    wanted, _ = reading_again(model)(tokens, None)
    step = with_cache(model)
    with torch.no_grad():
        try:
            _, state = step(tokens[:, :3], None)
            found, _ = step(tokens[:, 3:].expand(2, -1), spread(state, 2))
        except Exception:  # whatever a cache fails with, the model itself can be asked
            return reading_again(model)
    rounding = 0.01 if wanted.dtype in (torch.float32, torch.float64) else 0.25
    same = (found - wanted[:, 3:]).abs().max() <= rounding * wanted.std()
    return step if bool(same) else reading_again(model)


def with_cache(model: Any) -> Step:
    def step(tokens: "Tensor", state: Any) -> tuple["Tensor", Any]:
        import torch

        name, cache = ("", None) if state is None else state
        parts = [tokens] if state is None else tokens.split(1, dim=1)  # some caches take one token at a time
        found = []
        for part in parts:
            out = model(input_ids=part, use_cache=True, **({} if cache is None else {name: cache}))
            name = next(name for name in ("past_key_values", "cache_params") if out.get(name) is not None)
            cache = out[name]
            found.append(out.logits)
        return torch.cat(found, dim=1), (name, cache)

    return step


def reading_again(model: Any) -> Step:
    def step(tokens: "Tensor", state: Any) -> tuple["Tensor", Any]:
        import torch

        whole = tokens if state is None else torch.cat([state, tokens], dim=1)
        with torch.no_grad():
            return model(input_ids=whole, use_cache=False).logits[:, -tokens.shape[1] :], whole

    return step


def longest(model: Any) -> int | None:
    """How many tokens a model with learned positions can read; None if there is no end."""
    if hasattr(model, "positions"):
        return None if model.positions is None else model.positions.num_embeddings
    config = getattr(model, "config", None)
    rotary = getattr(config, "rope_parameters", None) is not None
    return None if rotary else getattr(config, "max_position_embeddings", None)


def encoded(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of both, where the tokens of the whole part."""
    whole, before = tokens_of(tokenizer, prompt + answer), tokens_of(tokenizer, prompt)
    cut = len(common([whole[:-1], before]))
    return whole[:cut], whole[cut:]


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """As the tokenizer begins a text, but without what some put at the end."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode([text])[0].tolist()
    tokens, first = tokenizer.encode(text, add_special_tokens=False), tokenizer.bos_token_id
    return tokens if first is None or tokenizer.encode("a")[:1] != [first] else [first, *tokens]


def common(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with."""
    low, high = min(rows), max(rows)
    size = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:size]
