"""How likely a causal language model, ours or one of transformers, finds answers to prompts."""

import copy
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.corpus.tokenizers import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


class Score(NamedTuple):
    """How likely a model finds an answer to a prompt."""

    log_likelihood: float  # of the whole answer, in nats
    greedy: bool  # whether the model writes this answer when it always takes the likeliest token


Reader = Callable[[Sequence[tuple[str, str]]], Sequence[Score]]  # scores pairs of prompt and answer, of one context


Step = Callable[["Tensor", Any], tuple["Tensor", Any]]  # (tokens, state) -> (logits, state)


def make_reader(model: Any, tokenizer: Any, *, rows: int = 16) -> Reader:
    """A `Reader` from a model and its tokenizer. What prompts have in common is read once, answers `rows` at a time."""
    import torch

    step = as_step(model)
    device, limit = next(model.parameters()).device, max_tokens(model)

    def read(questions: Sequence[tuple[str, str]]) -> list[Score]:
        pairs = [encode_pair(tokenizer, prompt, answer) for prompt, answer in questions]
        longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
        if limit is not None and longest > limit:
            raise ValueError(f"a prompt has {longest} tokens, the model reads {limit}: ask for fewer words or entries")
        shared = common_prefix([prompt[:-1] for prompt, _ in pairs])
        scores = []
        with torch.no_grad():
            state = step(torch.tensor([shared], device=device), None)[1] if shared else None
            for prompt, group in groupby(pairs, key=lambda pair: pair[0]):
                rest, answers = torch.tensor([prompt[len(shared) :]], device=device), [answer for _, answer in group]
                for i in range(0, len(answers), rows):
                    scores += score_answers(step, rest, answers[i : i + rows], copy.deepcopy(state))
        return scores

    return read


def as_step(model: Any) -> Step:
    """One of our models is a step as it is; for others, see `choose_step`."""
    from bestiary.model import Model

    return model if isinstance(model, Model) else choose_step(model)


def score_answers(step: Step, prompt: "Tensor", answers: list[list[int]], state: Any) -> list[Score]:
    """Scores of answers (lists of tokens) to a prompt of shape (1, time), read after `state`. Raises ValueError."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    logits, state = step(prompt, state)
    state = repeat_state(state, len(answers))
    tokens = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True, padding_value=-1)
    tokens = tokens.to(prompt.device)
    last, sums = logits[:, -1].expand(len(answers), -1), torch.zeros(len(answers), dtype=torch.float64)
    greedy = torch.ones(len(answers), dtype=torch.bool)
    for i in range(tokens.shape[1]):
        token, present = tokens[:, i].clamp(min=0), tokens[:, i] >= 0
        log_probabilities = last.double().log_softmax(-1)
        sums += log_probabilities.gather(1, token.unsqueeze(1)).squeeze(1).where(present, 0).cpu()
        greedy &= ((log_probabilities.argmax(-1) == token) | ~present).cpu()
        if i + 1 < tokens.shape[1]:
            logits, state = step(token.unsqueeze(1), state)
            last = logits[:, -1]
    if bool(sums.isnan().any()):
        raise ValueError("the model's logits are not numbers (nan): it diverged, or its weights are damaged")
    return [Score(*pair) for pair in zip(sums.tolist(), greedy.tolist(), strict=True)]


def repeat_state(state: Any, count: int) -> Any:
    """The state of one row, repeated for `count` rows."""
    import torch

    if isinstance(state, torch.Tensor):
        return state.expand(count, *state.shape[1:])
    if isinstance(state, tuple | list):
        parts = [repeat_state(part, count) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if hasattr(state, "reorder_cache"):
        state.reorder_cache(torch.zeros(count, dtype=torch.long, device=cache_device(state)))
    return state


def cache_device(cache: Any) -> Any:
    """The device that a cache of transformers is on."""
    import torch

    for layer in getattr(cache, "layers", ()):
        for value in vars(layer).values():
            if isinstance(value, torch.Tensor):
                return value.device
    return torch.device("cpu")


def choose_step(model: Any) -> Step:
    """A model of transformers with its cache if that gives the same logits, else without a cache."""
    import torch

    tokens = torch.arange(2, 8, device=model.device).unsqueeze(0) % model.get_input_embeddings().weight.shape[0]
    expected, _ = uncached_step(model)(tokens, None)
    step = cached_step(model)
    with torch.no_grad():
        try:
            _, state = step(tokens[:, :3], None)
            logits, _ = step(tokens[:, 3:].expand(2, -1), repeat_state(state, 2))
        except Exception:  # whatever goes wrong with a cache, the model itself still works
            return uncached_step(model)
    rounding = 0.01 if expected.dtype in (torch.float32, torch.float64) else 0.25
    same = (logits - expected[:, 3:]).abs().max() <= rounding * expected.std()
    return step if bool(same) else uncached_step(model)


def cached_step(model: Any) -> Step:
    """A model of transformers as a step whose state is its cache, with the name of the argument that takes it."""

    def step(tokens: "Tensor", state: Any) -> tuple["Tensor", Any]:
        import torch

        name, cache = ("", None) if state is None else state
        parts = [tokens] if state is None else tokens.split(1, dim=1)  # some caches take one token at a time
        logits = []
        for part in parts:
            out = model(input_ids=part, use_cache=True, **({} if cache is None else {name: cache}))
            name = next(name for name in ("past_key_values", "cache_params") if out.get(name) is not None)
            cache = out[name]
            logits.append(out.logits)
        return torch.cat(logits, dim=1), (name, cache)

    return step


def uncached_step(model: Any) -> Step:
    """A model of transformers as a step whose state is all tokens so far, read again each time."""

    def step(tokens: "Tensor", state: Any) -> tuple["Tensor", Any]:
        import torch

        whole = tokens if state is None else torch.cat([state, tokens], dim=1)
        with torch.no_grad():
            return model(input_ids=whole, use_cache=False).logits[:, -tokens.shape[1] :], whole

    return step


def max_tokens(model: Any) -> int | None:
    """How many tokens a model with learned positions can read; None if there is no limit."""
    if hasattr(model, "positions"):
        return None if model.positions is None else model.positions.num_embeddings
    config = getattr(model, "config", None)
    rotary = getattr(config, "rope_parameters", None) is not None
    return None if rotary else getattr(config, "max_position_embeddings", None)


def encode_pair(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of prompt + answer, cut where those of the prompt alone begin to differ."""
    whole, alone = encode_text(tokenizer, prompt + answer), encode_text(tokenizer, prompt)
    cut = len(common_prefix([whole[:-1], alone]))
    return whole[:cut], whole[cut:]


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, with the one that the tokenizer puts in front, without those that it puts at the end."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode([text])[0].tolist()
    tokens, first = tokenizer.encode(text, add_special_tokens=False), first_token(tokenizer)
    return tokens if first is None else [first, *tokens]


def first_token(tokenizer: Any) -> int | None:
    """The token that a tokenizer of transformers puts in front of every text; None if it puts none."""
    first = tokenizer.bos_token_id
    return first if first is not None and tokenizer.encode("a")[:1] == [first] else None


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The longest list that all rows begin with."""
    low, high = min(rows), max(rows)
    size = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:size]
