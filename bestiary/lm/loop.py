"""Training on text. Batch i depends on the seed and i alone, so a run can be stopped and resumed anywhere."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.lm.checkpoint import load_state, read_checkpoint, save_state
from bestiary.lm.distributed import TrainingGroup, training_group
from bestiary.lm.pretraining import Parallel, Pretraining
from bestiary.lm.speed import flops_per_token, peak_flops
from bestiary.mixers._mixer import decayed_names
from bestiary.mixers._router import Router
from bestiary.model import Model
from bestiary.ops.readout import BLOCK, cross_entropy
from bestiary.runs.resuming import ResumableRun
from bestiary.runs.store import CHECKPOINT, WEIGHTS, Store
from bestiary.runs.tensors import write_tensors
from bestiary.tasks._task import SILENT, stream
from bestiary.training.train import TOKENS, Diverged, keep_freed_memory

if TYPE_CHECKING:
    from bestiary.corpus.corpus import Corpus


SAVE_EVERY = 500  # steps between checkpoints


class ExecutionConfig(NamedTuple):
    """How a run is executed, which is not in the recipe; `pretrain` says what it changes."""

    device: str = "cpu"
    accumulate: int = 1
    parallel: Parallel = "none"
    save_every: int = SAVE_EVERY
    compile: bool = False
    trust_checkpoint: bool = False  # read a sharded checkpoint of version 0.1, whose index is a pickle


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
    trust_checkpoint: bool = False,
) -> Iterator[dict[str, Any]]:
    """Train in `folder`/`key`, or resume there from the last checkpoint, yielding the new rows of the log.

    A row holds `step`, `split` (train, selection or test), `loss` (nats of a token, the mean over `targets` of them),
    `tokens` (trained on so far) and, for training, `tokens_per_second`, `mfu` (the share of the peak that this is) and
    `rate`. A run that diverges ends there and is recorded as diverged in `done`. A step reads its sequences in
    `accumulate` parts; `parallel` splits them between the processes that torchrun has started. Both change rounding,
    the masks of dropout, and the costs that mixers add, which become means over parts. With `trust_checkpoint` it also
    resumes from a sharded checkpoint of version 0.1, which is a pickle. Raises ValueError if recipe, corpus and options
    do not fit, if a checkpoint is damaged or another process holds the run.
    """
    check_corpus(recipe, corpus)
    check_parts(recipe, accumulate, parallel)
    config = ExecutionConfig(device, accumulate, parallel, save_every, compile, trust_checkpoint)
    yield from run_pretraining(recipe, corpus, Path(folder), config)


def check_corpus(recipe: Pretraining, corpus: "Corpus") -> None:
    """Raises ValueError for a corpus on which the recipe cannot be trained and scored to the end."""
    if recipe.corpus != corpus.hash:
        raise ValueError(f"the recipe is for corpus {recipe.corpus}, {corpus.folder} is {corpus.hash}")
    if recipe.vocab < corpus.vocab:
        raise ValueError(f"the recipe's {recipe.vocab} tokens are fewer than the {corpus.vocab} of {corpus.folder}")
    count_contexts(corpus.tokens("train"), recipe.context)
    for split in ("selection", "test"):
        corpus.contexts(split, recipe.context, 1)
    if not (tokenizer := corpus.folder / "tokenizer" / "tokenizer.json").is_file():
        raise ValueError(f"{tokenizer} is missing, and the trained model could not read text without it")


def check_parts(recipe: Pretraining, accumulate: int, parallel: str) -> None:
    """Raises ValueError for a recipe whose steps cannot be read in so many parts, or by several processes."""
    if parallel not in get_args(Parallel):
        raise ValueError(f"parallel={parallel!r}: it is {', '.join(get_args(Parallel))}")
    if accumulate < 1 or recipe.batch % accumulate:
        raise ValueError(f"{recipe.batch} sequences a step do not fall into {accumulate} equal parts")
    if accumulate == 1 and parallel == "none":
        return
    with torch.device("meta"):
        parts = recipe.build().modules()
    if any(isinstance(part, Router) and part.open for part in parts):
        raise ValueError(
            "a router with `open` counts training passes and follows the scores of each: its model is trained by one "
            "process with whole batches, without --accumulate and --parallel"
        )


class Objective(nn.Module):
    """The model with its summed loss in nats: the module that is wrapped for training in parallel."""

    def __init__(self, model: Model, precision: str, *, compile: bool = False) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self.hidden = torch.compile(model.hidden) if compile else model.hidden

    def forward(self, tokens: Int[Tensor, "batch time"], targets: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = self.hidden(tokens)
        x, weight, wanted = hidden.float().flatten(0, 1), self.model.embed.weight, targets.flatten()
        if torch.is_grad_enabled():
            return cross_entropy(x, weight, wanted)[0]
        size = max(1, BLOCK // len(weight))
        parts = zip(x.split(size), wanted.split(size), strict=True)
        sums = [F.cross_entropy(rows @ weight.T, part, reduction="sum", ignore_index=SILENT) for rows, part in parts]
        return torch.stack(sums).double().sum()


def run_pretraining(
    recipe: Pretraining, corpus: "Corpus", folder: Path, config: ExecutionConfig
) -> Iterator[dict[str, Any]]:
    """Claim the run, train and store the result; of several processes, the first one writes and yields rows."""
    with training_group(config.parallel, config.device) as group:
        claim = claim_run(recipe, folder) if group.rank == 0 else None
        refusal = group.broadcast(claim if isinstance(claim, str) else None)
        if refusal:
            raise ValueError(refusal)
        if refusal is not None:
            return
        run = claim if isinstance(claim, ResumableRun) else None
        if run is not None:
            run.details = {"corpus": str(corpus.folder), "workers": group.size, **config._asdict()}
        with run or nullcontext():
            loop = TrainingLoop(recipe, corpus, folder / recipe.key, run=run, group=group, config=config)
            try:
                for row in loop.rows():
                    if run is not None:
                        run.append(row)
                        yield row
            except Diverged as diverged:
                outcome = ("diverged", str(diverged))
            else:
                outcome = ("finished",)
            if run is not None:
                run.end(*outcome)


def claim_run(recipe: Pretraining, folder: Path) -> ResumableRun | str:
    """The run, or the reason why it cannot be claimed: an empty one if it is already done."""
    store = Store(folder)
    run = store.claim(cast(Any, recipe))
    if run is not None:
        return ResumableRun(run.place, run.claim, run.recipe)
    if cast(Any, recipe) in store:
        return ""
    return f"{folder / recipe.key} is being carried out by {store.owner(recipe.key)}; wait for it, or stop it"


class TrainingLoop:
    """A model in training: a step, a measurement, and checkpoints of its state."""

    def __init__(
        self,
        recipe: Pretraining,
        corpus: "Corpus",
        folder: Path,
        *,
        run: ResumableRun | None,
        group: TrainingGroup,
        config: ExecutionConfig,
    ) -> None:
        keep_freed_memory()
        self.recipe, self.corpus, self.folder = recipe, corpus, folder
        self.run, self.group, self.config = run, group, config
        if recipe.batch % (config.accumulate * group.size):
            parts = f"{config.accumulate} parts of {group.size} processes"
            raise ValueError(f"{recipe.batch} sequences a step do not fall into {parts}")
        self.device = group.device
        if self.device.type == "cuda" and recipe.precision == "bfloat16":
            torch.set_float32_matmul_precision("high")  # for the read-out, which autocast leaves alone
        self.model = recipe.build().to(self.device)
        self.decayed = decayed_names(self.model)
        self.flops = flops_per_token(recipe, sum(weight.numel() for weight in self.model.parameters()))
        objective = Objective(self.model, recipe.precision, compile=config.compile)
        self.objective = group.wrap(objective, self.model)
        self.optimizer = torch.optim.AdamW(self.parameter_groups(), betas=recipe.betas, fused=True)
        self.step, self.sum = 0, torch.zeros((), dtype=torch.float64, device=self.device)
        self.text = corpus.tokens("train")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters with weight decay and without, for the optimizer."""
        named = list(self.model.named_parameters())
        decays = {True: self.recipe.weight_decay, False: 0.0}
        groups = [([w for name, w in named if (name in self.decayed) == yes], decay) for yes, decay in decays.items()]
        return [{"params": weights, "weight_decay": decay} for weights, decay in groups if weights]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Train from the last checkpoint to the end and measure the test loss once; yields the rows of the log."""
        recipe = self.recipe
        self.resume()
        started, first = time.perf_counter(), self.step
        while self.step < recipe.steps:
            self.step += 1
            self.train_step()
            if self.step % recipe.every == 0 or self.step == recipe.steps:
                total, elapsed = self.total(), time.perf_counter() - started
                yield from self.measure(total, (self.step - first) / elapsed)
                started, first = time.perf_counter(), self.step
            if self.step % self.config.save_every == 0:
                total, saving = self.total(), time.perf_counter()
                self.save_checkpoint(total)
                started += time.perf_counter() - saving
        yield self.evaluate("test", recipe.test_rows)
        weights = self.group.full_weights(self.model)
        if self.run is not None:
            self.save_model(self.run, weights)

    def save_model(self, run: ResumableRun, weights: dict[str, Tensor]) -> None:
        """Write the trained model and its tokenizer."""
        shutil.copytree(self.corpus.folder / "tokenizer", self.folder / "tokenizer", dirs_exist_ok=True)
        trained = self.recipe.build()
        trained.load_state_dict(weights)
        run.check_held()
        write_tensors(self.folder / WEIGHTS, trained.state_dict())
        tokenizer = sorted(path for path in (self.folder / "tokenizer").rglob("*") if path.is_file())
        run.kept += [WEIGHTS, *(str(path.relative_to(self.folder)) for path in tokenizer)]

    def train_step(self) -> None:
        """One step of the optimizer."""
        recipe, parts = self.recipe, self.config.accumulate
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(recipe, self.step)
        self.objective.train()
        for part in range(parts):
            with self.group.no_sync(self.objective) if part < parts - 1 else nullcontext():
                loss = self.loss(part)
                (loss * (parts * self.group.size / (recipe.batch * recipe.context))).backward()  # the mean of the part
            self.sum += loss.detach()
        if parts > 1:  # a mixer may add a cost of its own, whose gradient has to be averaged over the parts, too
            for weight in self.model.parameters():
                if weight.grad is not None:
                    weight.grad.div_(parts)
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, part: int) -> Tensor:
        """The summed loss on this process's sequences of a part of the batch."""
        recipe, size = self.recipe, self.recipe.batch // (self.config.accumulate * self.group.size)
        first = (self.step - 1) * recipe.batch + (part * self.group.size + self.group.rank) * size
        tokens = read_sequences(self.text, recipe, range(first, first + size)).to(self.device)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(stream("dropout", recipe.seed, first).initial_seed())
            return self.objective(tokens[:, :-1], tokens[:, 1:])

    def total(self) -> float:
        """The summed loss since the last measurement. This waits for the device: only then may a clock be read."""
        return self.group.all_reduce(self.sum).item()

    def measure(self, loss: float, steps_per_second: float) -> Iterator[dict[str, Any]]:
        """The training loss, given as a sum, then the loss on the selection split. Raises Diverged."""
        recipe = self.recipe
        count = ((self.step - 1) % recipe.every + 1) * recipe.batch * recipe.context
        speed = steps_per_second * recipe.batch * recipe.context
        peak = peak_flops(self.device)
        mfu = None if peak is None else round(speed * self.flops / (peak * self.group.size), 4)
        self.sum.zero_()
        yield self.log_row("train", loss, count) | {
            "tokens_per_second": round(speed, 1),
            "mfu": mfu,
            "rate": learning_rate(recipe, self.step),
        }
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {self.step}")
        yield self.evaluate("selection", recipe.selection_rows)

    @torch.no_grad()
    def evaluate(self, split: str, limit: int) -> dict[str, Any]:
        """The loss on the first `limit` contexts of a split, as a row of the log."""
        self.objective.eval()
        contexts = torch.from_numpy(self.corpus.contexts(split, self.recipe.context, limit))
        own = pad_rows(contexts, self.group.size)[self.group.rank :: self.group.size]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows in own.split(max(1, TOKENS // self.recipe.context)):
            part = rows.to(self.device)
            total += self.objective(part[:, :-1].clamp(min=0), part[:, 1:])
        return self.log_row(split, self.group.all_reduce(total).item(), contexts[:, 1:].numel())

    def log_row(self, split: str, loss: float, count: int) -> dict[str, Any]:
        """A row of the log, from a summed loss over `count` targets."""
        tokens = self.step * self.recipe.batch * self.recipe.context
        return {"step": self.step, "split": split, "loss": loss / count, "targets": count, "tokens": tokens}

    def save_checkpoint(self, total: float) -> None:
        """Write what the run needs to resume: its state, the summed loss, and how long its log is now."""
        if self.run is not None:
            self.run.flush_log()
        folder = self.folder / CHECKPOINT
        new = folder / f"step-{self.step}"
        if self.run is not None:
            folder.mkdir(exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
        self.group.broadcast(None)
        files = save_state(self.group, self.model, self.optimizer, new)
        if self.run is not None:
            record = {"step": self.step, "sum": total, "origins": self.run.origins(self.step), "files": files}
            self.run.write_checkpoint(record)
            for old in folder.glob("step-*"):
                if old != new:
                    shutil.rmtree(old)

    def resume(self) -> None:
        """Return to the last checkpoint, or to the start, and cut the log back to it."""
        folder = self.folder / CHECKPOINT
        last = self.group.broadcast(read_checkpoint(folder) if self.run is not None else None)
        if last is not None:
            if self.run is not None:
                try:
                    self.run.check_log(last)
                except ValueError as fault:
                    raise ValueError(f"{fault}; remove {folder} to start the run over") from None
                self.run.seconds_before = last.get("seconds", 0.0)
                if earlier := last.get("origins"):  # records of earlier versions have none
                    self.run.details["earlier"] = earlier
                    self.run.write_origin()
            self.step = last["step"]
            place, trust = folder / f"step-{self.step}", self.config.trust_checkpoint
            load_state(self.group, self.model, self.optimizer, place, last, trust=trust)
            self.sum.fill_(last["sum"] if self.group.rank == 0 else 0.0)
        if self.run is not None:
            self.run.truncate_log(0 if last is None else last["log"])


def pad_rows(rows: Int[Tensor, "rows width"], size: int) -> Int[Tensor, "padded width"]:
    """The rows, followed by rows without targets until their number is a multiple of `size`."""
    silent = torch.full((-len(rows) % size, rows.shape[1]), SILENT)
    return torch.cat([rows, silent])


def read_sequences(text: np.ndarray, recipe: Pretraining, indices: range) -> Int[Tensor, "batch width"]:
    """The training sequences at these indices of the endless order in which they are read, `context` + 1 tokens each.

    Each epoch starts at a random offset, cuts the text from there into contexts, each with the token that follows,
    and visits them in a random order. Raises ValueError for a text shorter than two contexts.
    """
    context, count = recipe.context, count_contexts(text, recipe.context)
    starts = []
    for index in indices:
        epoch, position = divmod(index, count)
        offset, order = epoch_order(count, context, recipe.seed, epoch)
        starts.append(offset + int(order[position]) * context)
    rows = np.stack([text[start : start + context + 1] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))


def count_contexts(text: np.ndarray, context: int) -> int:
    """How many contexts an epoch reads. Raises ValueError for a text shorter than two contexts."""
    count = len(text) // context - 1
    if count < 1:
        raise ValueError(f"{len(text)} tokens to train on are fewer than two contexts of {context}")
    return count


@lru_cache(maxsize=2)
def epoch_order(count: int, context: int, seed: int, epoch: int) -> tuple[int, Tensor]:
    """The offset of an epoch in tokens, and the order of its `count` contexts."""
    rng = stream("text", seed, epoch)
    return int(torch.randint(context, (), generator=rng)), torch.randperm(count, generator=rng)


def learning_rate(recipe: Pretraining, step: int) -> float:
    """The learning rate of a step, counted from 1: a linear rise to the rate, then a cosine from there to the floor."""
    if step <= recipe.warmup:
        return recipe.rate * step / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * done)))
