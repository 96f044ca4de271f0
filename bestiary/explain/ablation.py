"""What a model loses without a part: layers, heads, gates and short convolutions, one at a time and one after another.

A part is taken out by putting its mean over the rows and positions of the batch in the place of its output, which
leaves the rest as near as can be to what it is used to. A short convolution keeps the tap of the newest token alone: it
no longer looks back. In the second table parts are taken out one after another, the least needed first: where accuracy
falls, what is left carries the recall.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.explain.blocks import take_apart
from bestiary.mixers._mixer import FastWeight, Mixer, ShortConv
from bestiary.model import Layer, Model
from bestiary.runs.intervals import wilson
from bestiary.tasks._task import SILENT, Batch

HOW_MANY = 32  # parts that are taken out one after another


class Part(NamedTuple):
    """A part of a model, and how to be without it: within the context that `without` opens."""

    layer: int
    name: str
    without: Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def parts_of(model: Model, batch: Batch) -> list[Part]:
    """The parts of a trained model that can be taken out; their means are those on this batch."""
    found: list[Part] = []
    for number, layer in enumerate(cast(Iterable[Layer], model.layers)):
        wanted = dict(modules_of(layer))
        seen = record(model, batch, wanted)
        for name, module in wanted.items():
            if isinstance(module, ShortConv):
                found.append(Part(number, name, lambda module=module: looking_back_no_more(module)))
            elif name.startswith("heads"):
                heads = head_count(layer.mixer)
                if len(seen[name]) % heads:  # the map reads something else than its heads beside one another
                    continue
                for head, columns in enumerate(torch.arange(len(seen[name])).tensor_split(heads)):
                    replaced = {"module": module, "columns": columns, "mean": seen[name][columns]}
                    found.append(Part(number, f"head {head}", lambda how=replaced: with_mean_input(**how)))
            else:
                mean = seen[name]
                found.append(Part(number, name, lambda module=module, mean=mean: with_mean_output(module, mean)))
    return found


def modules_of(layer: Layer) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a layer that can be taken out, by what they are called in tables."""
    yield "mixer", layer.mixer
    if layer.before_channel is not None:
        yield "channel mixer", layer.channel
    for name, module in layer.mixer.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, ShortConv) and len(module.filter) > 1:
            yield f"convolution {name}", module
        elif isinstance(module, nn.Linear) and last == "gate":
            yield f"gate {name}" if name != "gate" else "gate", module
        elif isinstance(module, nn.Linear) and last == "out" and head_count(layer.mixer) > 1:
            yield f"heads of {name}", module


def head_count(mixer: Mixer) -> int:
    """The heads of a mixer, 1 if it has none or does not say."""
    heads = getattr(mixer, "heads", None)
    if isinstance(heads, int):
        return heads
    return mixer.shape[0] if isinstance(mixer, FastWeight) else 1


def record(model: Model, batch: Batch, wanted: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The mean output of each module over rows and positions; of `heads`, the mean input."""
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, result: Any) -> None:
            x = given[0] if name.startswith("heads") else result[0] if isinstance(result, tuple) else result
            seen[name] = x.flatten(0, -2).mean(0)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in wanted.items()]
    try:
        take_apart(model).logits(batch.tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def with_mean_output(module: nn.Module, mean: Float[Tensor, " dim"]) -> Iterator[None]:
    """The module gives its mean whatever it reads; what it returns beside, such as a state, stays."""

    def hook(_: nn.Module, given: Any, result: Any) -> Any:
        del given
        return (mean.expand_as(result[0]), *result[1:]) if isinstance(result, tuple) else mean.expand_as(result)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def with_mean_input(module: nn.Module, columns: Tensor, mean: Float[Tensor, " some"]) -> Iterator[None]:
    """The module reads the mean in some of its columns."""

    def hook(_: nn.Module, given: Any) -> Any:
        x = given[0].clone()
        x[..., columns] = mean
        return (x, *given[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def looking_back_no_more(module: ShortConv) -> Iterator[None]:
    """The convolution has the tap of the newest token, its first, alone."""
    kept = module.filter.detach().clone()
    with torch.no_grad():
        module.filter[1:] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            module.filter.copy_(kept)


@torch.no_grad()
def accuracy(model: Model, batch: Batch) -> tuple[float, int]:
    """The share of right answers of a batch, and how many there are."""
    asked = batch.targets != SILENT
    parts = take_apart(model)
    right = parts.head(parts.stream(batch.tokens)[-1][asked]).argmax(-1) == batch.targets[asked]
    return float(right.double().mean()), int(asked.sum())


def ablation_tables(model: Model, batch: Batch) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy without each part, and without more and more of the heads, gates and convolutions.

    The first has a row for each part (`layer`, `part`, `accuracy`, `low`, `high`, `lost`), the most needed first. The
    second has a row for each number of parts taken out, from none on; whole mixers and channel mixers are not among
    them.
    """
    parts = parts_of(model, batch)
    whole, count = accuracy(model, batch)
    rows = []
    for part in parts:
        with part.without():
            share, _ = accuracy(model, batch)
        low, high = wilson(share, count)
        rows.append({"layer": part.layer, "part": part.name, "accuracy": share, "low": low, "high": high})
    table = pd.DataFrame(rows).assign(lost=lambda found: whole - found["accuracy"])
    finer = [i for i in table["lost"].sort_values(kind="stable").index if "mixer" not in parts[i].name][:HOW_MANY]
    steps = [{"without": 0, "part": "nothing", "accuracy": whole}]
    with ExitStack() as stack:
        for number, i in enumerate(finer, start=1):
            stack.enter_context(parts[i].without())
            name = f"layer {parts[i].layer}, {parts[i].name}"
            steps.append({"without": number, "part": name, "accuracy": accuracy(model, batch)[0]})
    table = table.sort_values("lost", ascending=False, kind="stable").reset_index(drop=True)
    return table, pd.DataFrame(steps)
