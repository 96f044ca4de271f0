"""What `probe`, `evaluate` and experiments that measure by themselves do; what was measured is kept."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import typer

from bestiary.cli._errors import user_input
from bestiary.cli._progress import Progress, StatusLine

if TYPE_CHECKING:
    import pandas as pd

FIGURES = Path("figures")


def check_table_file(out: Path | None) -> None:
    """Raises OSError or ValueError, before any work, if a table cannot be written there or would replace a file."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        with out.open("rb+") as file:
            if not (start := file.read(5)) or start == b"task,":
                return
        raise ValueError(f"{out} is there and no table of `probe`: name another file, or remove it first")
    out.touch()
    out.unlink()


def journal_path(verb: str, name: str, subject: Mapping[str, Any]) -> Path:
    """Where what was measured is kept: a file for each model and setting."""
    key = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:12]
    return FIGURES / f"{verb}-{Path(name).name or 'model'}-{key}.jsonl"


def write_probe(table: "pd.DataFrame", out: Path) -> list[Path]:
    """Write the table, and beside it a figure by length and depth if something was hidden; returns the files."""
    from bestiary.lm.probe import depth_figure
    from bestiary.report.plot import save_figure
    from bestiary.runs.store import write_file

    write_file(out, table.to_csv(index=False))
    figure = depth_figure(table)
    return [out, *([] if figure is None else save_figure(figure, out.with_suffix("")))]


def probe_model(name: str, *, rows: int, device: str, trust: bool, **sizes: Any) -> "pd.DataFrame":
    """Recall asked in text: `rows` questions at each difficulty, rounded up to fours, without those answered before."""
    import pandas as pd

    from bestiary.lm.journal import Journal
    from bestiary.lm.models import open_model
    from bestiary.lm.probe import FORMAT, probe
    from bestiary.lm.questions import DRAW

    if sizes.get("tasks") == ["all"]:
        sizes["tasks"] = list(DRAW)
    contexts = -(-rows // 4)
    probe(lambda _: [], contexts=contexts, **cast(Any, sizes))  # refuses what is impossible before the model is opened
    model, tokenizer, fingerprint = open_model(name, device=device, trust=trust)
    subject = {"measures": "probe", "format": FORMAT, "model": fingerprint, "contexts": contexts}
    path = journal_path("probe", name, subject)
    with Journal(path, subject) as journal, Progress("questions answered") as progress:
        say_resumed(journal, path)
        options = {"contexts": contexts, "journal": journal, "progress": progress, **sizes}
        return pd.DataFrame(list(probe(model, tokenizer, **cast(Any, options))))


def evaluate_model(name: str, tasks: Sequence[str], *, limit: int | None, device: str, trust: bool) -> "pd.DataFrame":
    """Tasks of lm-evaluation-harness; a run of ours is converted first. Requests answered before are not run again."""
    from tempfile import TemporaryDirectory

    import pandas as pd

    from bestiary.lm.harness import evaluate
    from bestiary.lm.journal import Journal
    from bestiary.lm.models import open_model
    from bestiary.lm.names import check_name, is_run

    check_name(name)
    with TemporaryDirectory() as folder:
        if is_run(name):
            from bestiary.lm.conversion import export_run

            export_run(name, folder)
        model, tokenizer, fingerprint = open_model(folder if is_run(name) else name, device=device, trust=trust)
        subject = {"measures": "evaluate", "format": 1, "model": fingerprint}
        path = journal_path("evaluate", name, subject)
        with Journal(path, subject) as journal, Progress("requests answered") as progress:
            say_resumed(journal, path)
            results = evaluate(
                (model, tokenizer), tasks, limit=limit, device=device, journal=journal, progress=progress
            )
    for task, cut in {result.task: result.cut for result in results if result.cut}.items():
        typer.echo(f"bestiary: {task}: the model reads less than {cut:,} of the requests hold; they were cut", err=True)
    return pd.DataFrame(results)


def measure_rows(
    experiment: ModuleType, scale: str, threads: int, known: "pd.DataFrame | None" = None
) -> "pd.DataFrame":
    """The table of an experiment that measures by itself; its messages are printed on the way."""
    import pandas as pd
    import torch

    from bestiary.report.words import count_noun

    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    results = {} if known is None else {"known": known}
    with user_input(), StatusLine() as progress:
        try:
            for row in experiment.measure(scale, **results):
                if news := row.pop("news", ""):
                    progress.note(news)
                rows += [row] if row else []
                progress.show(f"measured {count_noun(len(rows), 'row')}")
        except KeyboardInterrupt:
            progress.note("stopped; what has been trained is kept, and the same command goes on from there")
            raise
        progress.show(f"measured {count_noun(len(rows), 'row')}", last=True)
    return pd.DataFrame(rows)


def say_resumed(journal: Any, path: Path) -> None:
    """Say so if some of it was measured before."""
    if journal.results:
        typer.echo(f"bestiary: going on with {path}; remove it to measure everything anew", err=True)
