"""Why a run did not learn: what its log and its recipe show, each with the numbers behind it and what to try next.

The limits that are ours were set by runs made on purpose (`tests/test_doctor.py`); `docs/doctor.md` explains them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from bestiary.report.command import command, pattern_text, shell_quote
from bestiary.report.levels import task_levels
from bestiary.report.runs import UNBUILDABLE, model_size
from bestiary.runs.health import Health, summarize_log
from bestiary.runs.table import SOLVED
from bestiary.spec import reading_data
from bestiary.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from bestiary.model import Layer
    from bestiary.tasks._task import Task

GAP = 0.2  # between accuracy in training and on fresh rows, from which on rows are learnt by heart
STILL = 0.5  # embeddings that moved by less than this share of their size have hardly been trained
RESTLESS = 0.2  # a step that changes the embeddings by more than this share of their size is too large
UPROOTED = 5  # times their size, which embeddings must have moved by before that is said
USUAL = 3e-3  # the default rate, at which most mixers learn
FALLING = 0.02  # relative fall of the training loss over the last quarter, from which on a run still learns
VANISHED = 1e-6  # of the largest gradient of any part
EARLY = 10  # steps, before which a map that starts at zero may still hide what stands before it
ROWS = 8  # that are solved to check the targets
NAMED = 4  # weights that are named one by one


class Finding(NamedTuple):
    """What may be wrong with a run."""

    name: str
    sentence: str
    evidence: str  # the numbers that it rests on
    command: str = ""  # to try next


class Patient(NamedTuple):
    """A run, with what its recipe lets one compute."""

    recipe: Recipe
    health: Health
    levels: Mapping[str, float]

    @property
    def error(self) -> float:
        """Three standard errors of the accuracy on the selection stream."""
        share = min(max(self.health.selection or 0.0, 0.01), 0.99)
        return 3 * math.sqrt(share * (1 - share) / max(1, self.health.asked))

    @property
    def at_chance(self) -> bool:
        """Whether the accuracy is not above the best single answer."""
        chance = self.levels.get("chance")
        return chance is not None and (self.health.selection or 0.0) <= chance + max(self.error, 0.02)

    @property
    def on_plateau(self) -> bool:
        """Whether the accuracy is near that of a guess among the answers that occur."""
        chance, plateau = self.levels.get("chance", math.nan), self.levels.get("plateau", math.nan)
        found = self.health.selection or 0.0
        return not self.at_chance and (chance + plateau) / 2 <= found <= plateau + max(self.error, 0.05)

    @property
    def solved(self) -> bool:
        """Whether nothing is left to learn."""
        goal = min(SOLVED, self.recipe.stop or 1.0)
        tests = self.health.tests or (1.0,)
        return (self.health.selection or 0.0) >= goal and sum(tests) / len(tests) >= SOLVED - 0.02

    def train(self, **changes: Any) -> str:
        """The command that trains the recipe with some fields changed."""
        try:
            return command(self.recipe.model_copy(update=changes))
        except UNBUILDABLE:
            shown = " ".join(f"{name}={value}" for name, value in changes.items())
            return f"bestiary train ... {shown}".rstrip()


Rule = Callable[[Patient], "Iterator[Finding]"]


def diagnose(recipe: Recipe, log: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What may be wrong with the run of a recipe, the likeliest first, by its log; nothing if it solved its task."""
    return findings(recipe, summarize_log(log))


@reading_data()
def findings(recipe: Recipe, health: Health) -> list[Finding]:
    """`diagnose` for a log that was summarized."""
    try:
        levels = task_levels(part.build() for part in recipe.select or recipe.test)
    except UNBUILDABLE:
        levels = {}
    patient = Patient(recipe, health, levels)
    if not health.finite:
        return list(diverged(patient))
    found = list(leaks(patient))
    if health.selection is None or patient.solved:
        return found
    for rule in RULES:
        try:
            found += rule(patient)
        except UNBUILDABLE:  # a task or mixer is a file that is gone, has changed or was not named by the user
            continue
    return [*found, *level(patient, explained=bool(found))]


def leaks(patient: Patient) -> Iterator[Finding]:
    """Outputs that depend on what comes after them."""
    health, what = patient.health, pattern_text(patient.recipe.pattern)
    if health.probed and health.leaks > health.probed / 2:
        yield Finding(
            "wrong mask",
            "A mixer sees the future: its outputs depend on tokens that come after them, so no accuracy counts.",
            f"in {health.leaks:.0f} of {health.probed:.0f} rows, earlier outputs changed with the second half",
            f"bestiary check {shell_quote(what)}",
        )


def diverged(patient: Patient) -> Iterator[Finding]:
    """A loss that is no number any more."""
    recipe, health = patient.recipe, patient.health
    bad = first_bad_layer(recipe)
    before = "" if health.last_loss is None else f"; the last finite one is {health.last_loss:.3f}"
    seen = f"the loss is no number at step {health.steps}{before}"
    if bad is not None:
        yield Finding(
            "not a number",
            f"The model gives values that are no numbers before any training: {bad} is the first that does.",
            f"{seen}; so is the output of {bad} with the weights of the start",
            f"bestiary check {shell_quote(pattern_text(recipe.pattern))}",
        )
        return
    yield Finding(
        "diverged",
        "The training diverged: its steps were too large for this model.",
        f"{seen}; rate {recipe.rate:g}, clip {recipe.clip}",
        patient.train(rate=lower(recipe.rate), clip=recipe.clip or 1.0),
    )


def first_bad_layer(recipe: Recipe) -> str | None:
    """The first layer whose output is infinite or no number before any training; None if there is none."""
    import torch

    try:
        model = recipe.build().eval()
        task = recipe.train[0].build()
        tokens = task.draw(min(2, recipe.batch), "train", recipe.seed, 0).tokens
    except UNBUILDABLE:
        return None
    bad: list[str] = []

    def watch(name: str) -> "Callable[[nn.Module, Any, Any], None]":
        return lambda _module, _given, y: None if torch.isfinite(y).all() else bad.append(name)

    for i, layer in enumerate(model.layers):
        cast("Layer", layer).before_mixer.register_forward_hook(watch(f"what layers.{i} reads"))
    model.norm.register_forward_hook(watch("the last layer"))
    with torch.no_grad():
        model.hidden(tokens)
    if not bad:
        return None
    number = bad[0].removeprefix("what layers.").removesuffix(" reads")
    return f"layers.{int(number) - 1}" if number.isdigit() else f"layers.{len(model.layers) - 1}"


def shuffled(patient: Patient) -> Iterator[Finding]:
    """Targets of a user's task that are not the answers of its solver."""
    for part in dict.fromkeys(patient.recipe.train):
        wrong, asked = wrong_targets(part.build()) if part.source else (0, 0)
        if wrong > asked / 10:
            yield Finding(
                "shuffled targets",
                f"The targets of {part} are not the answers to its questions: its own solver says otherwise.",
                f"{wrong} of {asked} targets differ from the solver's",
                f"bestiary check {shell_quote(str(part))}",
            )


def wrong_targets(task: "Task") -> tuple[int, int]:
    """How many targets of a few rows are not what the solver says, and how many there are."""
    if task.open:
        return 0, 0
    batch = task.draw(ROWS, "train", "doctor")
    asked = batch.question_positions()
    wanted = batch.targets.gather(1, asked)
    right = task.right(batch, task.solve(batch.tokens)).gather(1, asked)
    counted = wanted >= 0
    return int((counted & ~right).sum()), int(counted.sum())


def still_weights(patient: Patient) -> Iterator[Finding]:
    """Weights that get no gradient, or ask for none."""
    health, check = patient.health, f"bestiary check {shell_quote(pattern_text(patient.recipe.pattern))}"
    if health.steps < EARLY:
        return
    if health.cut:
        yield Finding(
            "gradient cut",
            f"No gradient reaches {name_weights(health.cut)}: something between them and the loss cuts it off "
            "(detach, no_grad, argmax, rounding, a branch that is not used).",
            f"the gradient was exactly zero at every evaluation for {len(health.cut)} weights",
            check,
        )
    if health.frozen:
        yield Finding(
            "frozen layer",
            f"{name_weights(health.frozen)} are not trained: they ask for no gradient (requires_grad is False).",
            f"{len(health.frozen)} weights did not move in {health.steps} steps",
            patient.train(),
        )
    largest = max(health.gradients.values(), default=0.0)
    reached = {part: norm for part, norm in health.gradients.items() if norm}
    for part, norm in sorted(reached.items(), key=lambda pair: pair[1])[:1]:
        if norm < VANISHED * largest:
            yield Finding(
                "gradient vanished",
                f"Hardly any gradient reaches {part}.",
                f"its norm was at most {norm:.1e}, that of another part {largest:.1e}",
                check,
            )


def name_weights(names: Sequence[str]) -> str:
    """The weights by name; of many, the first."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def no_positions(patient: Patient) -> Iterator[Finding]:
    """Mixers that see what was read as a set, with nothing that tells positions."""
    recipe, depth = patient.recipe, patient.recipe.depth
    if patient.health.blind < depth or recipe.positions:
        return
    longest = max(part.build().length for part in recipe.train + recipe.test + recipe.select)
    yield Finding(
        "no positions",
        "The model hardly sees in which order the tokens came: no mixer depends on it, and there are no positions.",
        f"in {depth} of {depth} layers the last output stayed the same when what came before was reversed",
        patient.train(positions=longest),
    )


def by_heart(patient: Patient) -> Iterator[Finding]:
    """Training far above fresh rows."""
    recipe, health = patient.recipe, patient.health
    low = min([health.selection or 0.0, *health.tests])
    trained = health.trained or 0.0
    if trained - low < GAP:
        return
    seen = f"accuracy {trained:.3f} in training, {health.selection:.3f} on the selection stream, {low:.3f} at the least"
    if recipe.distinct or set(recipe.train) >= {*recipe.select, *recipe.test}:
        rows = recipe.batch * sum(recipe.distinct)
        few = f": there are {rows} of them, each seen {recipe.steps // sum(recipe.distinct)} times" if rows else ""
        yield Finding(
            "rows learnt by heart",
            f"The model knows its training rows by heart, and not the rule behind them{few}.",
            seen,
            patient.train(distinct=(), shuffle="none"),
        )
        return
    yield Finding(
        "not carried over",
        "What was learnt in training does not carry over to the tasks that are tested, which are others.",
        seen,
        patient.train(train=recipe.train + recipe.test, distinct=(), shuffle="none"),
    )


def rate(patient: Patient) -> Iterator[Finding]:
    """Steps that were too small, or too large."""
    recipe, health = patient.recipe, patient.health
    moved = health.moved.get("embed")
    if moved is None:
        return
    if moved < STILL and (patient.at_chance or patient.on_plateau):
        low = recipe.rate < USUAL / 2
        yield Finding(
            "rate too low" if low else "too few steps",
            "The weights have hardly moved: "
            + ("the learning rate is too low for so few steps." if low else "there were too few steps."),
            f"the embeddings moved by {moved:.2f} of their size in {health.steps} steps at rate {recipe.rate:g}",
            patient.train(rate=min(round_rate(recipe.rate * 10), USUAL)) if low else patient.train(steps=1000),
        )
    step = largest_step(recipe, moved)
    lost = max(health.curve, default=0.0) - (health.selection or 0.0)
    if (step > RESTLESS and moved > UPROOTED) or lost > GAP:
        worse = f"; the accuracy fell by {lost:.2f} from its best quarter" if lost > GAP else ""
        yield Finding(
            "rate too high",
            "The learning rate is too high: each step undoes what the others have learnt.",
            f"at rate {recipe.rate:g} a step changes the embeddings by {step:.2f} of their size, and they came "
            f"{moved:.0f} times as far as they were large at the start{worse}",
            patient.train(rate=lower(recipe.rate)),
        )


def lower(rate: float) -> float:
    """A tenth of a rate, and not far above the default."""
    return min(round_rate(rate / 10), USUAL)


def round_rate(rate: float) -> float:
    """A rate with two digits."""
    return float(f"{rate:.2g}")


def largest_step(recipe: Recipe, moved: float) -> float:
    """How far a step at the highest rate moves the embeddings, relative to their size at the end.

    Adam moves each number by about the rate. Embeddings start as N(0, 0.02), and are `moved` times as far from there.
    """
    return recipe.rate / (0.02 * math.hypot(1.0, moved))


def small_state(patient: Patient) -> Iterator[Finding]:
    """A state that is smaller than what a linear memory of so many random keys takes (a law of large sizes)."""
    from bestiary.constructions.bounds import argmax_state, least_state  # they need pandas

    recipe = patient.recipe
    loads = [(part, dict(part.options)) for part in recipe.test if part.name == "mqar"]
    if not loads:
        return
    part, options = max(loads, key=lambda pair: pair[1]["pairs"])
    state, (pairs, vocab) = model_size(recipe.json())[0], (options["pairs"], options["vocab"])
    if state is None:
        return
    linear = 2 * argmax_state(pairs)
    if state < linear:
        wide = recipe.dim * max(2, math.ceil(math.sqrt(linear / max(1, state))))
        sure = state < least_state(pairs, vocab)
        yield Finding(
            "state too small",
            f"The state {'is' if sure else 'is probably'} too small for the {pairs} pairs that {part} asks for.",
            f"{state:,} numbers, where a linear memory of random keys needs some {linear:,.0f} (2 n log n: see "
            f"`bestiary bound --pairs {pairs} --vocab {vocab} --state {state}`)",
            patient.train(dim=wide),
        )


def still_learning(patient: Patient) -> Iterator[Finding]:
    """A loss that fell to the end."""
    health = patient.health
    if len(health.losses) < 4 or any(True for _ in by_heart(patient)):
        return
    before, last = health.losses[-2:]
    if before - last > FALLING * before and health.curve[-1] >= health.curve[-2]:
        yield Finding(
            "still improving",
            "The run ended while it was still learning: give it more steps.",
            f"in its last quarter the training loss fell from {before:.3f} to {last:.3f}, and the accuracy went from "
            f"{health.curve[-2]:.3f} to {health.curve[-1]:.3f}",
            patient.train(steps=2 * patient.recipe.steps),
        )


def level(patient: Patient, *, explained: bool) -> Iterator[Finding]:
    """At chance, or on the plateau; `explained` if a cause was found, whose command is the one to try."""
    recipe, health, levels = patient.recipe, patient.health, patient.levels
    if patient.at_chance:
        loss, guess = health.last_loss or math.nan, -math.log(max(levels["chance"], 1e-9))
        sentence = "The run ended at chance: it has learnt which answers there are, but nothing of what it reads."
        if loss > 1.05 * guess:
            sentence = "The run ended at chance: it has hardly learnt which answers there are."
        if not explained:
            sentence += " Perhaps the rate or the size does not fit, or the answers do not depend on what is read."
        seen = f"accuracy {health.selection:.3f}, chance {levels['chance']:.3f}; loss {loss:.3f} in training"
        command = "" if explained else patient.train(rate=round_rate(recipe.rate / 3))
        yield Finding("at chance", sentence, f"{seen}, {guess:.3f} for a guess", command)
    elif patient.on_plateau:
        mixed = "" if health.mixed is None else f"; {health.mixed:.0%} of its mistakes answer another question"
        yield Finding(
            "on the plateau",
            "The run ended on the plateau: the model knows which answers occur in a row, but not which belongs where. "
            "Many runs leave it all at once, later.",
            f"accuracy {health.selection:.3f}, plateau {levels['plateau']:.3f}{mixed}",
            "" if explained else patient.train(steps=4 * recipe.steps),
        )


RULES: tuple[Rule, ...] = (
    *(shuffled, still_weights, no_positions, by_heart),
    *(rate, small_state, still_learning),
)  # the likeliest first


def finding_lines(found: Sequence[Finding]) -> Iterator[str]:
    """The findings as lines of text."""
    for finding in found:
        yield f"{finding.name}: {finding.sentence}"
        yield f"  seen: {finding.evidence}"
        if finding.command:
            yield f"  try:  {finding.command}"
