"""A model for lm-evaluation-harness that keeps its answers and counts what it cuts. Needs `bestiary[eval]`."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from bestiary.lm.journal import Journal

UNLIMITED = 2**30  # tokens: more than anything has


class HarnessModel(HFLM):
    """`options` are those of the harness; a model whose configuration has no limit reads texts of any length.

    Requests whose answers are in `journal` are not run again, and equal ones once, unless their answers are sampled: a
    task with `repeats` asks for several samples. `progress` is called with how many requests are answered, and of how
    many. `cuts` counts, for each task, the requests that were longer than the model reads.
    """

    _DEFAULT_MAX_LENGTH = UNLIMITED

    def __init__(self, journal: Journal, progress: Callable[[int, int], None] | None, **options: Any) -> None:
        super().__init__(**options)
        self.journal, self.progress = journal, progress
        self.too_long: set[Any] = set()  # requests of this process
        self.cuts: Counter[str] = Counter()
        self.left = self.total = 0
        self.waiting: dict[str, list[str]] = {}  # the keys of what is not answered, by that of the first equal request
        self.cache_hook: Any = self  # the harness calls `add_partial` of it with every answer

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Keep the answer to a request."""
        cut = (request if kind == "loglikelihood" else request[0]) in self.too_long
        self.journal.add(self.waiting[request_key(kind, request)].pop(), {"answer": answer, "cut": cut})
        self.left -= 1
        self.show_progress()

    def show_progress(self) -> None:
        """Say how many requests are answered."""
        if self.progress is not None:
            self.progress(self.total - self.left, self.total)

    def answer(self, kind: str, run: Callable[..., Any], requests: list[Any]) -> list[Any]:
        """The answers to requests, from the journal and, what is not there, from the model."""
        keys = request_keys(kind, [request.args for request in requests])
        left = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.journal}
        self.waiting = {}
        for key, request in left.items():
            self.waiting.setdefault(request_key(kind, request.args), []).append(key)
        self.left, self.total = len(left), self.total + len(set(keys))
        self.show_progress()
        if 0 < len(left) < len(set(keys)):
            torch.manual_seed(len(left))  # with the seed of the first time, what was sampled then would come again
        if left:
            run(list(left.values()), disable_tqdm=True)
        for key, request in zip(keys, requests, strict=True):
            self.cuts[request.task_name] += self.journal[key]["cut"]
        answers = [self.journal[key]["answer"] for key in keys]
        return [tuple(answer) if isinstance(answer, list) else answer for answer in answers]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihoods of continuations, and whether greedy decoding gives them, one for each request."""
        return self.answer("loglikelihood", super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihoods of whole texts, one for each request."""
        return self.answer("loglikelihood_rolling", super().loglikelihood_rolling, requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """Continuations up to a stop text, one for each request."""
        return self.answer("generate_until", super().generate_until, requests)

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
        longest = self.max_length + 1
        self.too_long |= {request for request, before, after in requests if len(before) + len(after) > longest}
        return super()._loglikelihood_tokens(requests, **options)

    def tok_batch_encode(self, strings: Any, left_truncate_len: int | None = None, **options: Any) -> Any:
        """Tokenise a batch, noting the texts that are too long and will be cut from the left."""
        if left_truncate_len is not None and left_truncate_len < UNLIMITED // 2:
            self.too_long |= {text for text in strings if len(self.tok_encode(text)) > left_truncate_len}
        return super().tok_batch_encode(strings, left_truncate_len=left_truncate_len, **options)


def request_keys(kind: str, requests: Sequence[Sequence[Any]]) -> list[str]:
    """A name for each request: equal for equal ones, unless their answers are sampled, which are numbered from 0."""
    counts: Counter[str] = Counter()
    keys = []
    for request in requests:
        key = request_key(kind, request)
        keys.append(request_key(kind, request, counts[key]))
        counts[key] += kind == "generate_until" and is_sampled(request[1])
    return keys


def request_key(kind: str, request: Sequence[Any], number: int = 0) -> str:
    """A name for a request, and for each further one that is equal to it."""
    parts = [kind, *request, *([number] if number else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def is_sampled(options: Mapping[str, Any]) -> bool:
    """Whether options of generation ask for a sample; otherwise the same request has the same answer."""
    given = options.get("do_sample")
    return bool(options.get("temperature", 0) > 0 if given is None else given)
