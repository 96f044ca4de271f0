"""Verbs on real text: corpus, pretrain, slice, generate, probe, convert and evaluate."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.cli._app import Device, app, refuse, user_input
from bestiary.cli._progress import StatusLine
from bestiary.cli._trust import TrustFiles
from bestiary.cli.runs import parse_settings

if TYPE_CHECKING:
    from bestiary.corpus.corpus import Corpus
    from bestiary.lm.pretraining import Pretraining

Corpora = Annotated[Path, typer.Option("--corpus", help="Folder of a corpus (see `bestiary corpus`).")]
Models = Annotated[Path, typer.Option("--store", help="Folder of the trained models.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that a model's folder brings.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many contexts, spread evenly over the text.")]
DEFAULT = Path("corpora/stdlib")
PAPER_RATE = "0.125/M"  # of bestiary.slices.hits, which would import numpy here
MODEL = "A trained model's folder, a causal model of Hugging Face, or a GGUF file"


@app.command()
def corpus(
    source: Annotated[
        str,
        typer.Argument(help="stdlib; a file or folder of text, JSONL or Parquet; hf:NAME; pile, fineweb, wikitext."),
    ] = "stdlib",
    out: Annotated[Path, typer.Option(help="Folder to write.")] = DEFAULT,
    tokenizer: Annotated[
        str, typer.Option(help="bpe (trained here), bytes, a folder or GGUF file, a hub name.")
    ] = "bpe",
    vocab: Annotated[int, typer.Option(min=258, help="Entries of a BPE trained here.")] = 4096,
    column: Annotated[str, typer.Option(help="Of JSON lines, Parquet and data sets.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="End with the document that fills so many tokens.")] = None,
    memory: Annotated[int, typer.Option(min=1, help="MiB for counting bigrams.")] = 1024,
    selection: Annotated[float, typer.Option(min=0, max=1, help="Share of the documents for selection.")] = 0.05,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the documents for the test.")] = 0.05,
) -> None:
    """Tokenise a text, split it by document, and count its bigrams."""
    from bestiary.cli.console import print_table as show_table

    with user_input():
        shares = (selection, test)
        made = prepared(source, out, tokenizer=tokenizer, vocab=vocab, column=column, limit=limit, shares=shares)
        counts = made.counts(memory=memory * 2**20)
    rows = [{"split": split, **part} for split, part in made.manifest["splits"].items()]
    import pandas as pd

    show_table(pd.DataFrame(rows))
    typer.echo(f"{made.folder}: {made.vocab:,} tokens of {made.manifest['tokenizer']['name']}, hash {made.hash}")
    typer.echo(f"{counts.total:,} bigrams in training, {counts.distinct:,} of them different")
    if made.manifest["skipped"]:
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in made.manifest["skipped"].items())
        typer.echo(f"skipped: {skipped}")
    if made.unit == "piece":
        typer.echo("long documents were cut into pieces, and each piece was put into a split by itself")


def prepared(source: str, out: Path, **how: Any) -> "Corpus":
    """A corpus, written if it is not there, with progress on the way."""
    from bestiary.corpus.prepare import prepare
    from bestiary.report.words import count_noun

    with StatusLine() as line:

        def progress(documents: int, tokens: int) -> None:
            line.show(f"{count_noun(documents, 'document')}, {count_noun(tokens, 'token')}")

        return prepare(source, out, **how, progress=progress)


@app.command()
def pretrain(
    suite: Annotated[str, typer.Argument(help="zoology, or a pattern of mixers such as '2*base_conv, attention'.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Fields of the recipe: steps=2000 dim=256 ...")] = None,
    size: Annotated[
        str, typer.Option(help="Of the suite: 1M, 3M, 10M, 70M, 150M, 360M or 1.4B; 1M if not given.")
    ] = "",
    only: Annotated[str, typer.Option(help="Models of the suite, between commas; all if not given.")] = "",
    corpus: Corpora = DEFAULT,
    store: Models = Path("models"),
    device: Device = "cpu",
    accumulate: Annotated[int, typer.Option(min=1, help="Parts in which a step reads its sequences.")] = 1,
    parallel: Annotated[str, typer.Option(help="none, ddp or fsdp; the last two under torchrun.")] = "none",
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the models with their sizes.")] = False,
    trust_checkpoint: Annotated[
        bool,
        typer.Option(
            "--trust-checkpoint", help="Resume from a sharded checkpoint of version 0.1: a pickle, which can run code."
        ),
    ] = False,
) -> None:
    """Train language models. The same command resumes a stopped run from its last checkpoint."""
    from bestiary.corpus.corpus import open_corpus
    from bestiary.lm.loop import check_corpus, check_parts
    from bestiary.lm.loop import pretrain as train

    with user_input():
        text = open_corpus(corpus)
        check_model_store(store)
        recipes = select_recipes(suite, size, only, text, parse_settings(settings or ()))
        for recipe in recipes.values():
            recipe.check()
            check_corpus(recipe, text)
            check_parts(recipe, accumulate, parallel)
    if dry_run:
        show_recipes(recipes)
        return
    options: dict[str, Any] = {"device": device, "accumulate": accumulate, "parallel": parallel}
    options |= {"save_every": save_every, "compile": compile, "trust_checkpoint": trust_checkpoint}
    for name, recipe in recipes.items():
        if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts
            done = ", done already" if (store / recipe.key / "done").is_file() else ""
            typer.echo(f"{name}: {store / recipe.key}{done}")
        with user_input():
            for row in train(recipe, text, store, **options):
                typer.echo(format_row(row, recipe))


def check_model_store(store: Path) -> None:
    """Raises ValueError for a folder that is something else than one of trained models."""
    kinds = {"manifest.json": "a corpus", "config.json": "a Hugging Face model", "recipe.json": "a single run"}
    for file, kind in kinds.items():
        if (store / file).exists():
            raise ValueError(f"{store} is {kind}, not a folder of trained models; name another with --store")


def format_row(row: dict[str, Any], recipe: "Pretraining") -> str:
    """A row of the log as a line of text."""
    import math

    perplexity = math.exp(min(row["loss"], 700))
    line = f"  step {row['step']:,} of {recipe.steps:,}  {row['split']:9} perplexity {perplexity:,.2f}"
    if row.get("tokens_per_second"):
        line += f"  {row['tokens_per_second']:,.0f} tokens/s"
    if row.get("mfu"):
        line += f"  {100 * row['mfu']:.0f} % of the peak"
    return line


def select_recipes(
    suite: str, size: str, only: str, corpus: "Corpus", changes: dict[str, Any]
) -> "dict[str, Pretraining]":
    """The recipes of a suite, or the single one of a pattern, with `changes` to their fields."""
    from bestiary.lm.pretraining import Pretraining
    from bestiary.lm.suites import SUITES
    from bestiary.lm.suites import suite as suite_recipes
    from bestiary.spec import nearest

    if suite not in SUITES:
        if size or only:
            raise ValueError("--size and --only are for a suite; of one model the fields say its size, as in dim=256")
        fields = {"corpus": corpus.hash, "vocab": corpus.vocab, "pattern": suite}
        return {suite: Pretraining(**(fields | changes))}
    recipes = suite_recipes(suite, size or "1M", corpus=corpus.hash, vocab=corpus.vocab, **changes)
    names = split_names(only) or list(recipes)
    for name in names:
        if name not in recipes:
            raise LookupError(f"{suite} has no model {name!r} {nearest(name, recipes)}")
    return {name: recipes[name] for name in names}


def show_recipes(recipes: "dict[str, Pretraining]") -> None:
    """Print a table of the models with their sizes."""
    import pandas as pd

    from bestiary.cli.console import print_table as show_table
    from bestiary.lm.suites import count_parameters

    rows = []
    for name, recipe in recipes.items():
        row = {"model": name, "dim": recipe.dim, "depth": recipe.depth, "parameters": count_parameters(recipe)}
        rows.append(row | {"tokens": recipe.tokens, "pattern": ", ".join(dict.fromkeys(map(str, recipe.pattern)))})
    show_table(pd.DataFrame(rows))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "",
    count: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from so many of the likeliest tokens.")] = 40,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
    trust: Trust = False,
    _files: TrustFiles = None,
) -> None:
    """Continue a prompt with a language model, token by token with its state."""
    with user_input():
        from bestiary.lm.generation import continue_text
        from bestiary.lm.models import open_model

        opened, tokenizer, _ = open_model(model, device=device, trust=trust)
        options = {"temperature": temperature, "top_k": top_k, "seed": seed}
        written = continue_text(opened, tokenizer, prompt, count, **options)
    typer.echo(prompt + written)


@app.command("slice")
def slice_text(
    model: Annotated[
        str,
        typer.Argument(help=f"{MODEL}; or a file of log-probabilities."),
    ],
    text: Annotated[
        str, typer.Argument(help="A corpus (corpora/stdlib if not given), or any text that `bestiary corpus` reads.")
    ] = "",
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another model; give it again for more. The first of them is the reference."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="The corpus whose tokens and counts are used, if TEXT is none.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a corpus: train, selection or test.")] = "test",
    length: Annotated[int, typer.Option(min=1, help="Tokens of a context.")] = 256,
    limit: Limit = None,
    threshold: Annotated[
        str,
        typer.Option(help="How often a bigram may be counted to be rare: 50, or 0.125/M of a million tokens."),
    ] = PAPER_RATE,
    window: Annotated[
        int | None, typer.Option(min=1, help="Measure again with only the last so many tokens, to twice as many.")
    ] = None,
    order: Annotated[int, typer.Option(min=2, max=5, help="Of the n-grams that are looked for.")] = 2,
    column: Annotated[str, typer.Option(help="Of a text in JSON lines or Parquet.")] = "text",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for tables, figures and the page; figures/slice-MODEL-on-TEXT if not given."),
    ] = None,
    device: Device = "cpu",
    trust: Trust = False,
    _files: TrustFiles = None,
) -> None:
    """Split a language model's loss into AR hits and the rest, and the gap to another model likewise."""
    from bestiary.cli._slicing import open_text, slice_models
    from bestiary.lm.names import check_name

    with user_input():
        reference, *others = against or [""]
        names = [name for name in (model, *others, reference) if name]
        for name in names:
            check_name(name)
            if names.count(name) > 1:
                raise ValueError(f"{name} is named twice: give each model once, as MODEL or with --against")
        given = open_text(text, corpus, split=split, length=length, limit=limit, order=order, column=column)
        slice_models(given, names, threshold=threshold, window=window, out=out, device=device, trust=trust)


@app.command()
def probe(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")],
    tasks: Annotated[
        str, typer.Option(help="mqar, phone_book, needle, updates, variables, hops, meaning; or all.")
    ] = "mqar,phone_book,needle",
    shots: Annotated[str, typer.Option(help="Examples before the question, between commas.")] = "0,2",
    entries: Annotated[str, typer.Option(help="Facts in a context of mqar, and of the phone book.")] = "5,20",
    needles: Annotated[int, typer.Option(min=2, help="Facts hidden in a context of the other tasks.")] = 8,
    words: Annotated[str, typer.Option(help="Words of other text.")] = "0,200",
    depths: Annotated[str, typer.Option(help="Where the hidden facts lie, 0 to 1.")] = "0,0.25,0.5,0.75,1",
    rows: Annotated[int, typer.Option(min=1, help="Questions of each kind, rounded up to a multiple of four.")] = 32,
    out: Annotated[Path | None, typer.Option(help="File for the table, .csv; beside it, a figure by depth.")] = None,
    device: Device = "cpu",
    trust: Trust = False,
    _files: TrustFiles = None,
) -> None:
    """Test recall in plain text: key and value, phone book, needles, changed and chained facts."""
    from bestiary.cli._measuring import check_table_file, probe_model, write_probe
    from bestiary.cli.console import print_table as show_table

    with user_input():
        sizes: dict[str, Any] = {"tasks": split_names(tasks), "needles": needles}
        sizes |= {"shots": parse_integers(shots), "entries": parse_integers(entries), "words": parse_integers(words)}
        sizes["depths"] = [float(part) for part in split_names(depths)]
        check_table_file(out)
        table = probe_model(model, **sizes, rows=rows, device=device, trust=trust)
    show_table(table)
    if out is not None:
        with user_input():
            for path in write_probe(table, out):
                typer.echo(str(path))


@app.command()
def convert(
    run: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, for AutoModelForCausalLM.from_pretrained.")],
    _files: TrustFiles = None,
) -> None:
    """Write a trained model as a Hugging Face folder."""
    with user_input():
        from bestiary.lm.conversion import export_run

        export_run(run, out)
    typer.echo(f"{out}: AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")],
    tasks: Annotated[str, typer.Option(help="Of lm-evaluation-harness, between commas.")] = "swde,fda,squad_completion",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many documents of each task.")] = None,
    device: Device = "cpu",
    trust: Trust = False,
    _files: TrustFiles = None,
) -> None:
    """Run tasks of lm-evaluation-harness on a language model."""
    from bestiary.cli._measuring import evaluate_model
    from bestiary.cli.console import print_table as show_table

    with user_input():
        table = evaluate_model(model, split_names(tasks), limit=limit, device=device, trust=trust)
    if table.empty:
        refuse("lm-evaluation-harness gave no number", status=1)
    show_table(table)


def parse_integers(text: str) -> list[int]:
    """Whole numbers between commas. Raises ValueError."""
    try:
        return [int(part) for part in split_names(text)]
    except ValueError:
        raise ValueError(f"{text!r} is no list of whole numbers; write them between commas, as in 5,20") from None


def split_names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
