"""The verb `draw`: rows of a task as a file, for code that is not ours."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli._app import app, user_input

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".npz", ".parquet", ".jsonl")


@app.command()
def draw(
    task: Annotated[str, typer.Argument(help="The task, as in 'mqar(length=128, pairs=8)', or a file of yours.")],
    to: Annotated[Path, typer.Option(help="The file to write: .npz, .parquet or .jsonl.")],
    rows: Annotated[int, typer.Option(min=1, help="How many sequences.")] = 1000,
    split: Annotated[str, typer.Option(help="train, selection or test: their rows never meet.")] = "train",
    batch: Annotated[int, typer.Option(min=1, help="Rows of a training batch, which decide what is drawn.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the training rows.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write rows of a task to a file: tokens, targets, and what was asked there.

    Training rows are those that a recipe with this seed and batch size sees first; rows of the other streams are those
    that every run is scored on. Targets are -100 where nothing is asked. A .npz file holds an array (rows, time) for
    each name; the others have a row for each sequence, with lists.
    """
    from bestiary.report.words import count_noun
    from bestiary.tasks._dataset import draw_rows
    from bestiary.training.rows import CHUNK

    with user_input():
        if to.suffix not in SUFFIXES:
            raise ValueError(f"{str(to)!r}: the name of the file must end in {', '.join(SUFFIXES)}")
        if to.exists() and not overwrite:
            raise ValueError(f"{str(to)!r} exists; give another name, or --overwrite")
        if split not in ("train", "selection", "test"):
            raise ValueError(f"there is no stream {split!r}: it is train, selection or test")
        drawn = draw_rows(task, rows, split=split, batch=batch if split == "train" else CHUNK, seed=seed)
        write_arrays(drawn.arrays(), to)
    typer.echo(f"{to}: {count_noun(rows, 'row')} of {drawn.tokens.shape[1]:,} tokens")


def write_arrays(arrays: "dict[str, np.ndarray]", file: Path) -> None:
    """Write arrays of equal length by the name of the file, which appears whole or not at all."""
    import numpy as np
    import pandas as pd

    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{uuid.uuid4().hex}{file.suffix}")
    try:
        if file.suffix == ".npz":
            with beside.open("wb") as whole:
                np.savez_compressed(whole, **arrays)  # pyright: ignore[reportArgumentType]
        else:
            table = pd.DataFrame({name: values.tolist() for name, values in arrays.items()})
            if file.suffix == ".jsonl":
                table.to_json(beside, orient="records", lines=True)
            else:
                from bestiary.cli.data import connect_duckdb

                connect_duckdb().from_df(table).write_parquet(str(beside))
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
