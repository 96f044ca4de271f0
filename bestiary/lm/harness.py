"""Evaluation with lm-evaluation-harness of any causal Hugging Face model, ours included.

The tasks of Based (Arora et al., 2024) that recall from real documents are `swde`, `fda` and `squad_completion`; their
data come from the hub. A task of your own is a YAML file in the folder `include`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from bestiary.corpus.hub import skip_without_network
from bestiary.lm.journal import Journal
from bestiary.spec import nearest

RECALL = ("swde", "fda", "squad_completion")


class TaskResult(NamedTuple):
    """One metric of a task."""

    task: str
    metric: str
    value: float
    error: float  # standard error of `value`; nan where the harness gives none
    asked: int  # documents
    shots: int
    cut: int  # requests longer than the model reads, whose beginnings were left out


def evaluate(
    model: str | Path | tuple[Any, Any],
    tasks: Sequence[str] = RECALL,
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch: int = 1,
    longest: int | None = None,
    include: Path | str | None = None,
    trust: bool = False,
    device: str = "cpu",
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TaskResult]:
    """Every metric of the tasks for a model: a name, a folder, or a model with its tokenizer.

    `limit` is the number of documents of each task, `longest` the number of tokens that the model may read: what its
    configuration says if not given, and without a limit if that says nothing. Our models read padded rows only where
    nothing is generated; there, `batch` must be 1. Requests whose answers are in `journal` are not run again;
    `progress` is called with how many requests are answered, and of how many.
    Raises LookupError for an unknown task, or one whose data cannot be loaded.
    """
    if find_spec("lm_eval") is None:
        raise ImportError("evaluating needs lm-evaluation-harness: pip install 'bestiary[eval]'")
    from lm_eval.evaluator import simple_evaluate

    from bestiary.lm.harness_model import HarnessModel
    from bestiary.lm.huggingface import open_causal

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    task_objects, manager = load_tasks(list(tasks), include)
    opened, tokenizer = model if isinstance(model, tuple) else open_causal(model, trust=trust, device=device)
    options = {"pretrained": opened, "tokenizer": tokenizer, "batch_size": batch, "max_length": longest}
    wrapper = HarnessModel(journal or Journal(), progress, **options)
    results = simple_evaluate(
        wrapper, tasks=task_objects, task_manager=manager, num_fewshot=shots, limit=limit, log_samples=False
    )
    return list(read_results(results or {}, wrapper.cuts))


def load_tasks(tasks: list[str], include: Path | str | None) -> tuple[list[Any], Any]:
    """The named tasks with their data, and the manager that loaded them. Raises LookupError."""
    import lm_eval.tasks

    shipped = Path(str(lm_eval.tasks.__file__)).parent
    folders = [str(shipped / name) for name in RECALL] + ([str(include)] if include is not None else [])
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = lm_eval.tasks.TaskManager(include_path=folders)
    for name in tasks:
        if name not in manager.all_tasks:
            raise LookupError(f"the harness has no task {name!r} {suggest_task(name, manager.all_tasks)}")
    skip_without_network()
    try:
        return list(manager.load(tasks)["tasks"].values()), manager
    except Exception as fault:  # the hub, its client and `datasets` each raise their own
        what = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise LookupError(
            f"the data of {', '.join(tasks)} cannot be had ({what}); those of the hub need a network"
        ) from None


def suggest_task(name: str, known: Sequence[str]) -> str:
    """What a message about an unknown task ends with. There are thousands, so only those for recall are listed."""
    return nearest(name, [*RECALL, *(task for task in known if task.startswith(name[:4]))][:12])


def read_results(results: Any, cuts: Mapping[str, int]) -> Iterator[TaskResult]:
    """The numbers in what the harness returns; `cuts` counts the requests of each task that were cut."""
    for task, numbers in results.get("results", {}).items():
        for key, value in numbers.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}_stderr,{kind}", "N/A")
            counts, shots = results["n-samples"][task], results["n-shot"].get(task, 0)
            error = float(error) if isinstance(error, int | float) else float("nan")
            name = metric if kind == "none" else f"{metric} ({kind})"
            asked = int(counts["effective"])
            yield TaskResult(task, name, float(value), error, asked, int(shots), cuts.get(task, 0))
