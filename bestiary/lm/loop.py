"""Training on text, step by step. Batch i is a pure function of the seed and i, so a run can stop anywhere."""

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.lm.distributed import Team, gathered
from bestiary.lm.pretraining import Parallel, Pretraining
from bestiary.lm.speed import peak, work
from bestiary.mixers._mixer import decayed_names
from bestiary.model import Model
from bestiary.ops.readout import BLOCK, cross_entropy
from bestiary.runs.store import Run, Store, get, origin, put
from bestiary.tasks._task import SILENT, stream
from bestiary.training.train import TOKENS, Diverged, keep_memory

if TYPE_CHECKING:
    from bestiary.corpus.corpus import Corpus


SAVE_EVERY = 500  # steps between checkpoints


class How(NamedTuple):
    """How a run is carried out, which changes its rounding and speed only."""

    device: str = "cpu"
    accumulate: int = 1
    parallel: Parallel = "none"
    save_every: int = SAVE_EVERY
    compile: bool = False


def pretrain(
    recipe: Pretraining,
    corpus: "Corpus",
    folder: Path | str,
    *,
    device: str = "cpu",
    accumulate: int = 1,
    parallel: Parallel = "none",
    save_every: int = SAVE_EVERY,
    compile: bool = False,
) -> Iterator[dict[str, Any]]:
    """Carry out a run in `folder`/`key`, or go on with it from its last checkpoint, yielding new rows of its log.

    A row holds `step`, `split` (train, selection or test), `loss` (nats of a token, the mean over `targets` of them),
    `tokens` (trained on so far) and, of training, `tokens_per_second`, `mfu` (what share of the peak that is) and
    `rate`. A run that diverges ends there, as its `done` says. A step reads its sequences in `accumulate` parts;
    `parallel` shares them between the processes that torchrun has started, which changes rounding and nothing else.
    """
    if recipe.corpus != corpus.hash:
        raise ValueError(f"the recipe is for corpus {recipe.corpus}, {corpus.folder} is {corpus.hash}")
    if recipe.vocab < corpus.vocab:
        raise ValueError(f"the recipe's {recipe.vocab} tokens are fewer than the {corpus.vocab} of {corpus.folder}")
    if recipe.batch % accumulate or accumulate < 1:
        raise ValueError(f"{recipe.batch} sequences a step do not fall into {accumulate} equal parts")
    how = How(device=device, accumulate=accumulate, parallel=parallel, save_every=save_every, compile=compile)
    yield from carry_out(recipe, corpus, Path(folder), how)


class Objective(nn.Module):
    """The summed loss of targets in nats: what is wrapped to train in parallel."""

    def __init__(self, model: Model, precision: str, *, compile: bool = False) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self.hidden = torch.compile(model.hidden) if compile else model.hidden

    def forward(self, tokens: Int[Tensor, "batch time"], targets: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = self.hidden(tokens)
        x, weight, asked = hidden.float().flatten(0, 1), self.model.embed.weight, targets.flatten()
        if torch.is_grad_enabled():
            return cross_entropy(x, weight, asked)[0]
        size = max(1, BLOCK // len(weight))
        parts = zip(x.split(size), asked.split(size), strict=True)
        sums = [F.cross_entropy(rows @ weight.T, of, reduction="sum", ignore_index=SILENT) for rows, of in parts]
        return torch.stack(sums).double().sum()


class Held(Run):
    """A run whose log is taken up again where its checkpoint stands."""

    def open(self) -> None:
        (self.place / "failure.txt").unlink(missing_ok=True)
        put(self.place / "recipe.json", self.recipe.json())
        put(self.place / "origin.json", origin() | self.how)
        for part in self.recipe.pattern:
            if part.source and part.name.endswith(".py"):
                (self.place / "source").mkdir(exist_ok=True)
                shutil.copy(Path(part.name).expanduser(), self.place / "source")
        self.log = (self.place / "log.jsonl").open("a")

    def cut(self, position: int) -> None:
        """Go on behind the first bytes of the log, in a file of its own: a former owner may hold the old one."""
        self.log.close()
        place = self.place / "log.jsonl"
        put(place, place.read_bytes()[:position].decode())
        self.log = place.open("a")

    def position(self) -> int:
        """How many bytes of log are safe on disk. Raises Lost if another worker holds the run now."""
        self.held()
        os.fsync(self.log.fileno())
        return self.log.tell()


def carry_out(recipe: Pretraining, corpus: "Corpus", folder: Path, how: How) -> Iterator[dict[str, Any]]:
    """Claim the run, train, and keep what came of it; of several processes the first does so and yields rows."""
    with gathered(how.parallel, how.device) as team:
        run = claimed(recipe, folder) if team.rank == 0 else None
        refusal = team.told(run if isinstance(run, str) else None)
        if refusal:
            raise ValueError(refusal)
        if refusal is not None:
            return
        first = run if isinstance(run, Held) else None
        if first is not None:
            first.how = {"corpus": str(corpus.folder), "workers": team.size, **how._asdict()}
        with first or nullcontext():
            try:
                for row in Loop(recipe, corpus, folder / recipe.key, run=first, team=team, how=how).rows():
                    if first is not None:
                        first.append(row)
                        yield row
            except Diverged as diverged:
                ended = ("diverged", str(diverged))
            else:
                ended = ("finished",)
            if first is not None:
                first.end(*ended)


def claimed(recipe: Pretraining, folder: Path) -> Held | str:
    """The run, or why it cannot be had: nothing to say of one that is done."""
    store = Store(folder)
    run = store.claim(cast(Any, recipe))
    if run is not None:
        return Held(run.place, run.claim, run.recipe)
    if cast(Any, recipe) in store:
        return ""
    return f"{folder / recipe.key} is being carried out by {store.owner(recipe.key)}; wait for it, or stop it"


class Loop:
    """A model in training: what a checkpoint holds, and how it moves by a step."""

    def __init__(
        self, recipe: Pretraining, corpus: "Corpus", place: Path, *, run: Held | None, team: Team, how: How
    ) -> None:
        keep_memory()
        self.recipe, self.corpus, self.place, self.run, self.team, self.how = recipe, corpus, place, run, team, how
        if recipe.batch % (how.accumulate * team.size):
            parts = f"{how.accumulate} parts of {team.size} processes"
            raise ValueError(f"{recipe.batch} sequences a step do not fall into {parts}")
        self.device = team.device
        if self.device.type == "cuda" and recipe.precision == "bfloat16":
            torch.set_float32_matmul_precision("high")  # of the read-out, which autocast leaves alone
        self.model = recipe.build().to(self.device)
        self.decayed = decayed_names(self.model)
        self.flops = work(recipe, sum(weight.numel() for weight in self.model.parameters()))
        self.objective = team.wrapped(Objective(self.model, recipe.precision, compile=how.compile), self.model)
        self.optimizer = torch.optim.AdamW(self.groups(), betas=recipe.betas, fused=True)
        self.step, self.sum = 0, torch.zeros((), dtype=torch.float64, device=self.device)
        self.text = corpus.tokens("train")

    def groups(self) -> list[dict[str, Any]]:
        """Parameters with weight decay and without."""
        named = list(self.model.named_parameters())
        found = {True: self.recipe.weight_decay, False: 0.0}
        groups = [([w for name, w in named if (name in self.decayed) == yes], decay) for yes, decay in found.items()]
        return [{"params": weights, "weight_decay": decay} for weights, decay in groups if weights]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Train from the last checkpoint to the end, and score once on the test split."""
        recipe = self.recipe
        self.resume()
        begun, since = time.perf_counter(), self.step
        while self.step < recipe.steps:
            self.step += 1
            self.update()
            if self.step % recipe.every == 0 or self.step == recipe.steps:
                yield from self.look((self.step - since) / (time.perf_counter() - begun))
                begun, since = time.perf_counter(), self.step
            if self.step % self.how.save_every == 0:
                started = time.perf_counter()
                self.save()
                begun += time.perf_counter() - started
        yield self.score("test", recipe.test_rows)
        weights = self.team.weights(self.model)
        if self.run is not None:
            self.keep(self.run, weights)

    def keep(self, run: Held, weights: dict[str, Tensor]) -> None:
        """Write the trained model and what it needs to read text, and drop the checkpoint."""
        shutil.copytree(self.corpus.folder / "tokenizer", self.place / "tokenizer", dirs_exist_ok=True)
        trained = self.recipe.build()
        trained.load_state_dict(weights)
        run.keep(trained)
        shutil.rmtree(self.place / "checkpoint", ignore_errors=True)

    def update(self) -> None:
        """One step of gradient descent."""
        recipe, parts = self.recipe, self.how.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = rate(recipe, self.step)
        self.objective.train()
        for part in range(parts):
            with self.team.quiet(self.objective) if part < parts - 1 else nullcontext():
                loss = self.loss(part)
                (loss * (parts * self.team.size / (recipe.batch * recipe.context))).backward()  # the mean of the part
            self.sum += loss.detach()
        if parts > 1:  # a mixer's own cost, which has a gradient whatever the loss is times, is a mean as well
            for weight in self.model.parameters():
                if weight.grad is not None:
                    weight.grad.div_(parts)
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, part: int) -> Tensor:
        """The summed loss on this process's sequences of a part of the batch."""
        recipe, size = self.recipe, self.recipe.batch // (self.how.accumulate * self.team.size)
        first = (self.step - 1) * recipe.batch + (part * self.team.size + self.team.rank) * size
        given = sequences(self.text, recipe, range(first, first + size)).to(self.device)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(stream("dropout", recipe.seed, first).initial_seed())
            return self.objective(given[:, :-1], given[:, 1:])

    def look(self, steps_per_second: float) -> Iterator[dict[str, Any]]:
        """The loss since the last look, and on the selection split. Raises Diverged."""
        recipe = self.recipe
        loss, count = (
            self.team.total(self.sum).item(),
            ((self.step - 1) % recipe.every + 1) * recipe.batch * recipe.context,
        )
        speed = steps_per_second * recipe.batch * recipe.context
        most = peak(self.device)
        mfu = None if most is None else round(speed * self.flops / (most * self.team.size), 4)
        self.sum.zero_()
        yield self.row("train", loss, count) | {
            "tokens_per_second": round(speed, 1),
            "mfu": mfu,
            "rate": rate(recipe, self.step),
        }
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {self.step}")
        yield self.score("selection", recipe.selection_rows)

    @torch.no_grad()
    def score(self, split: str, limit: int) -> dict[str, Any]:
        """The loss on the first contexts of a split."""
        self.objective.eval()
        given = torch.from_numpy(self.corpus.contexts(split, self.recipe.context, limit))
        mine = filled(given, self.team.size)[self.team.rank :: self.team.size]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows in mine.split(max(1, TOKENS // self.recipe.context)):
            part = rows.to(self.device)
            total += self.objective(part[:, :-1].clamp(min=0), part[:, 1:])
        return self.row(split, self.team.total(total).item(), given[:, 1:].numel())

    def row(self, split: str, loss: float, count: int) -> dict[str, Any]:
        tokens = self.step * self.recipe.batch * self.recipe.context
        return {"step": self.step, "split": split, "loss": loss / count, "targets": count, "tokens": tokens}

    def save(self) -> None:
        """Write what the run needs to go on, and where its log stands."""
        position = self.team.told(self.run and self.run.position())
        folder, total = self.place / "checkpoint", self.team.total(self.sum).item()
        new = folder / f"step-{self.step}"
        if self.run is not None:
            folder.mkdir(exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)
        self.team.told(None)
        self.team.save(self.model, self.optimizer, new)
        if self.run is not None:
            put(folder / "last.json", {"step": self.step, "log": position, "sum": total})
            for old in folder.glob("step-*"):
                if old != new:
                    shutil.rmtree(old)

    def resume(self) -> None:
        """Go back to the last checkpoint, or to the start, and cut the log back to it."""
        place = self.place / "checkpoint" / "last.json"
        last = self.team.told(get(place) if self.run is not None and place.is_file() else None)
        if last is not None:
            self.step = last["step"]
            self.team.load(self.model, self.optimizer, place.with_name(f"step-{self.step}"))
            self.sum.fill_(last["sum"] if self.team.rank == 0 else 0.0)
        if self.run is not None:
            self.run.cut(0 if last is None else last["log"])


def filled(rows: Int[Tensor, "rows width"], size: int) -> Int[Tensor, "filled width"]:
    """Rows in which nothing is asked are added until their number is a multiple of `size`."""
    silent = torch.full((-len(rows) % size, rows.shape[1]), SILENT)
    return torch.cat([rows, silent])


def sequences(text: np.ndarray, recipe: Pretraining, places: range) -> Int[Tensor, "batch width"]:
    """The training sequences at these places of the endless order in which they are read.

    An epoch starts at an offset of its own, cuts the text from there into contexts, each with the token that follows,
    and visits them in an order of its own.
    """
    context, count = recipe.context, len(text) // recipe.context - 1
    if count < 1:
        raise ValueError(f"{len(text)} tokens to train on are fewer than two contexts of {context}")
    starts = []
    for place in places:
        epoch, at = divmod(place, count)
        offset, order = deal(count, context, recipe.seed, epoch)
        starts.append(offset + int(order[at]) * context)
    rows = np.stack([text[start : start + context + 1] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))


@lru_cache(maxsize=2)
def deal(count: int, context: int, seed: int, epoch: int) -> tuple[int, Tensor]:
    """The offset of an epoch and the order of its contexts."""
    rng = stream("text", seed, epoch)
    return int(torch.randint(context, (), generator=rng)), torch.randperm(count, generator=rng)


def rate(recipe: Pretraining, step: int) -> float:
    """The learning rate of a step, counted from 1: a linear rise, then a cosine from the rate down to the floor."""
    if step <= recipe.warmup:
        return recipe.rate * step / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * done)))
