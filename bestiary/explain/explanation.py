"""Everything that is asked of a model and a task, as tables and in words."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import torch

from bestiary.constructions._construction import Construction
from bestiary.explain.ablation import ablation_tables
from bestiary.explain.blocks import take_apart
from bestiary.explain.cases import draw_cases, find_pairs
from bestiary.explain.edits import edit_table
from bestiary.explain.errors import answers_by_kind, count_kinds, facet_table
from bestiary.explain.memory import filter_table, previous_token_table, readback_table, weight_table
from bestiary.explain.patching import PLACES, matrix_of, patch_states, patch_streams
from bestiary.explain.pretrained import Pretrained
from bestiary.explain.watching import first_steps
from bestiary.model import Model
from bestiary.tasks._task import Task

CASES, ROWS = 64, 256
BOUND = 0.5  # an effect from which on a place is said to decide
STANDS = {
    "key": "stands at the key's own place",
    "value": "stands at the value's place",
    "after the value": "stands behind the value",
    "before the question": "stands right before the question",
    "question": "stands at the question",
}


class Explanation(NamedTuple):
    """What was found of one model; tables that do not apply to it are empty."""

    name: str
    task: str
    errors: pd.DataFrame
    facets: pd.DataFrame  # right answers by distance, load and place
    edits: pd.DataFrame
    keys: pd.DataFrame  # effects of streams where keys were exchanged
    values: pd.DataFrame
    states: pd.DataFrame  # effects of states where keys were exchanged
    parts: pd.DataFrame
    removed: pd.DataFrame
    weights: pd.DataFrame
    previous: pd.DataFrame
    readback: pd.DataFrame
    filters: pd.DataFrame
    watched: pd.DataFrame = pd.DataFrame()  # the scores of `watching` over training, if it was watched


def explain_model(
    model: Model | Construction | Pretrained,
    task: Task,
    *,
    name: str = "",
    cases: int = CASES,
    rows: int = ROWS,
    seed: int = 0,
    layers: int = 8,
    progress: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """What a model does on a task of recall, on rows of its test stream.

    `cases` rows are changed and patched, `rows` are answered for the counts of mistakes and the ablations. Streams are
    exchanged before at most `layers` layers, evenly spread, and before the head. Works for models of layers, trained or
    constructed, and for `Pretrained` ones, whose states and parts are left alone. Raises ValueError for a task in which
    no answer stood behind an earlier occurrence of the asked token.
    """
    model.eval()
    progress("counting mistakes")
    batch = task.draw(rows, "test", "explain", seed)
    answers = answers_by_kind(model, batch)
    chosen = draw_cases(task, cases, seed=seed)
    progress("changing rows")
    edits = edit_table(model, chosen)
    progress("exchanging streams")
    depth = len(take_apart(model).blocks)
    some = sorted({*torch.linspace(0, depth, min(depth, layers) + 1).round().int().tolist()})
    keys, values = (patch_streams(model, chosen, what, layers=some) for what in ("keys", "values"))
    progress("exchanging states")
    states = pd.DataFrame() if isinstance(model, Pretrained) else patch_states(model, chosen, "keys")
    parts = removed = pd.DataFrame()
    if isinstance(model, Model):
        progress("taking parts out")
        parts, removed = ablation_tables(model, batch)
    progress("reading the memory")
    weights, previous = weight_table(model, chosen), previous_token_table(model, chosen)
    memory = (weights, previous, readback_table(model, find_pairs(batch)), filter_table(model))
    mistakes = (count_kinds(answers), facet_table(answers))
    return Explanation(name, type(task).__name__, *mistakes, edits, keys, values, states, parts, removed, *memory)


def words(found: Explanation) -> Iterator[str]:
    """What the tables say, in sentences with their numbers."""
    right = found.errors[found.errors["answer"] == "right"]["share"]
    wrong = found.errors[found.errors["answer"] != "right"]
    yield f"It answers {float(right.iloc[0]) if len(right) else 0.0:.2f} of the questions rightly."
    if wrong["share"].max() > 0.01:
        most = wrong.loc[wrong["share"].idxmax()]
        guess = f" (a guess among the row's values: {most['guess']:.2f})" if most["guess"] else ""
        yield f"The commonest mistake is {most['meaning']}: {most['share']:.2f} of the answers{guess}."
    yield from binding_words(found)
    yield from state_words(found)
    yield from watched_words(found)
    if len(found.parts):
        finer = found.parts[~found.parts["part"].str.contains("mixer")]
        needed = finer[finer["lost"] > 0.05].head(3)
        if len(needed):
            listed = ", ".join(f"{row.part} of layer {row.layer} ({row.accuracy:.2f})" for row in needed.itertuples())
            yield f"Without these parts it answers fewer questions: {listed}."


def binding_words(found: Explanation) -> Iterator[str]:
    """Where the key is until it is bound to its value, and where after that."""
    effects = matrix_of(found.keys, "place", PLACES)
    if effects.isna().to_numpy().all():
        return
    where = [str(effects.loc[layer].idxmax()) for layer in effects.index]
    passed = list(effects.index)
    for (layer, before), (later, after) in pairwise(zip(passed, where, strict=True)):
        strength, then = effects.loc[layer, before], effects.loc[later, after]
        if before == after or min(strength, then) < BOUND:
            continue
        numbers = f"effect {strength:.2f} before, {then:.2f} after"
        who, s = (f"Layer {layer}", "s") if later == layer + 1 else (f"Layers {layer} to {later - 1}", "")
        it = "it" if s else "they"
        if before == "key" and after == "value":
            yield f"{who} bind{s}: {it} bring{s} the key to its value's place ({numbers})."
        elif before == "key" and after == "question":
            yield f"{who} bind{s} and recall{s} at once: the pair is joined there ({numbers})."
        elif after == "question":
            yield f"{who} recall{s}: {it} bring{s} what {STANDS[before]} to the question ({numbers})."
        else:
            yield f"{who} move{s} the key: it {STANDS[before]} before, and {STANDS[after]} after ({numbers})."


def state_words(found: Explanation) -> Iterator[str]:
    """Which layer's state carries the pairs from where they stand to the question."""
    if found.states.empty:
        return
    last = found.states[(found.states["cut"] == "before the question") & (found.states["layer"] != "all")]
    if len(last) and last["effect"].max() >= BOUND:
        row = last.loc[last["effect"].idxmax()]
        yield f"The state of layer {row['layer']} carries the pairs to the question (effect {row['effect']:.2f})."


def watched_words(found: Explanation) -> Iterator[str]:
    """What formed first, if the model was watched while it learnt."""
    if found.watched.empty:
        return
    steps = {name: step for name, step in first_steps(found.watched).items() if step == step}
    if steps:
        order = sorted(steps, key=lambda name: steps[name])
        yield f"Half of their way was done: {', '.join(f'{name} at step {steps[name]:,.0f}' for name in order)}."
