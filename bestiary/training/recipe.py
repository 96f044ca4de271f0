"""Everything that determines a run, and nothing else. Equal recipes are the same run."""

import hashlib
import json
import marshal
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bestiary.spec import (
    Depth,
    Mixers,
    Natural,
    Pattern,
    Positive,
    Spec,
    Tasks,
    is_pattern,
    nearest,
    plain_name,
    read_specs,
    reading_data,
)

if TYPE_CHECKING:  # torch is imported when a model is built, not when a recipe is written down
    from bestiary.model import Model

SPECS = ("train", "test", "select", "pattern")  # fields made of specs
FORMAT = 2  # raised when training changes its meaning, so that old runs are not taken for new ones

LATER = {  # fields that the first recipes did not have, with what those did
    "select": (),
    "precision": "float32",
    "schedule": "cosine",
    "floor": 0.0,
    "optimizer": "adamw",
    "betas": (0.9, 0.999),
    "curriculum": False,
}

Precision = Literal["float32", "bfloat16"]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def describe_error(error: Any) -> str:
    """One line about an error that pydantic found in one field."""
    message = error["msg"].removeprefix("Value error, ")
    field = ".".join(map(str, error["loc"]))
    if error["type"] in ("value_error", "missing"):
        return f"{field}: {message}" if error["type"] == "missing" else message
    if error["type"] == "tuple_type":
        message = f"give a list, as in {field}=[{'0.9, 0.95' if field == 'betas' else '3'}]"
    return f"{field}={error['input']!r}: {message}"


def list_as_tuple(value: Any) -> Any:
    """A list, as JSON has it, as a tuple; anything else as it is, for the field to accept or refuse."""
    return tuple(value) if isinstance(value, list) else value


Stored = TypeVar("Stored", bound="StrictModel")


class StrictModel(BaseModel):
    """A frozen model whose fields are checked by name and by type. Raises ValueError, in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as fault:
            raise ValueError("; ".join(dict.fromkeys(map(describe_error, fault.errors())))) from None

    @model_validator(mode="before")
    @classmethod
    def check_names(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given.keys() - cls.model_fields.keys():
            raise ValueError(f"a {cls.__name__.lower()} has no {name!r} {nearest(name, cls.model_fields)}")
        return given

    @classmethod
    def read(cls: "type[Stored]", stored: Mapping[str, Any]) -> "Stored":
        """The recipe that was stored. A file that it names is run only if the user has named it: see `trust`."""
        with reading_data():
            return cls(**stored)

    @abstractmethod
    def build(self) -> "Model":
        """The model, with weights drawn from the seed alone."""

    def check(self) -> None:
        """Raise ValueError if anything in here cannot be built. Costs no memory."""
        import torch

        with torch.device("meta"):
            self.build()


class Recipe(StrictModel):
    """A task, a model, and how one is trained on the other.

    The defaults are the clean recipe. Every batch is fresh data. The learning rate is a linear warm-up times a cosine
    over all steps. So its peak is a little below `rate`, and the further below the longer the warm-up: by 0.6 % where
    50 of 1,000 steps warm up, by nearly half where 500 do. The selection stream decides when to stop, and the test
    stream is scored once, at the end. Weight decay acts on matrices (linear maps, embeddings, filters), but not on
    biases, norms and rates.
    """

    train: Tasks  # one task for each segment; batches come from the segments in turn
    test: Tasks = ()  # `train` unless given
    select: Tasks = ()  # tasks of the selection stream; `test` unless given
    pattern: Mixers
    dim: Positive = 64
    depth: Depth = 2
    channel: Literal["mlp", "swiglu", "tanh_mlp", "zoology23", "none", "copy"] = "none"
    positions: Natural = 0  # number of learned position vectors; 0 for none
    dropout: Share = 0.0  # of the embeddings, in training

    steps: Positive = 1000
    batch: Positive = 128  # rows
    rate: Amount = 3e-3  # the learning rate where neither warm-up nor schedule lowers it
    warmup: Natural = 50  # steps of linear rise
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # of the rate, over all steps
    floor: Amount = 0.0  # the rate in the end
    hold: Positive = 1  # steps between changes of the learning rate; some papers change it once an epoch
    optimizer: Literal["adamw", "muon", "adafactor"] = "adamw"  # of the hidden matrices; all else is AdamW's
    betas: tuple[Share, Share] = (0.9, 0.999)  # of AdamW
    weight_decay: Amount = 0.1
    decay: Literal["matrices", "all"] = "matrices"  # weights of two dimensions or more, or every parameter
    precision: Precision = "float32"  # of products in training; weights and scoring stay in float32
    clip: Amount | None = 1.0  # the largest norm of the gradient; None for no limit
    seed: Natural = 0  # of the weights, the data and the dropout

    curriculum: bool = False  # the tasks one after another, each for its part of the steps, and not in turns
    distinct: tuple[Positive, ...] = ()  # batches of each segment, for a finite training set; empty for fresh data
    shuffle: Literal["none", "batches", "rows"] = "none"  # what is shuffled in each epoch of a finite set

    every: Positive = 25  # steps between two scores on the selection stream
    stop: Share | None = 0.995  # stop at this selection accuracy, the mean over segments
    steer: Literal["selection", "test"] = "selection"  # the stream scored as "selection"; papers often took the test
    selection_rows: Positive = 512  # for each segment
    test_rows: Positive = 3000

    if TYPE_CHECKING:  # specs are given as text, too

        def __init__(self, **given: Any) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def fill_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        lists = {name: list_as_tuple(given[name]) for name in ("distinct", "betas") if name in given}
        return {**given, "test": given.get("test") or given.get("train", ()), **lists}

    @model_validator(mode="after")
    def check_consistency(self) -> "Recipe":
        if not self.train or not self.pattern:
            raise ValueError("a recipe needs at least one task to train on and one mixer")
        if self.distinct and len(self.distinct) != len(self.train):
            raise ValueError(f"`distinct` counts the batches of each of {len(self.train)} segments: {self.distinct}")
        if self.shuffle != "none" and not self.distinct:
            raise ValueError("only a finite set can be shuffled; say how many batches are `distinct`")
        if self.curriculum and self.distinct:
            raise ValueError("a curriculum is of fresh data; leave `distinct` empty")
        if self.floor > self.rate:
            raise ValueError(f"the rate cannot end at floor={self.floor:g} above rate={self.rate:g}")
        if 1 in self.betas:
            raise ValueError(f"betas={self.betas} must be below 1")
        return self

    def build(self) -> "Model":
        """The model, with weights drawn from the seed alone."""
        import torch

        from bestiary.model import Model
        from bestiary.tasks._task import stream

        tasks = [task.build() for task in self.train + self.test + self.select]
        if len({(task.features, task.length if task.bottleneck else 0) for task in tasks}) > 1:
            raise ValueError("the tasks of a recipe must agree on what a model reads and where it answers")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream("weights", self.seed).initial_seed())
            return Model(
                max(task.vocab for task in tasks),
                dim=self.dim,
                depth=self.depth,
                pattern=self.pattern,
                channel=self.channel,
                positions=self.positions,
                dropout=self.dropout,
                features=tasks[0].features,
                bottleneck=tasks[0].length if tasks[0].bottleneck else 0,
            )

    def check(self) -> None:
        """Raise ValueError if the model cannot be built, or if it could not be scored after it is trained."""
        from bestiary.training.rows import check_rows

        super().check()
        if self.schedule == "constant" and self.floor:
            raise ValueError(f"a constant rate does not end at floor={self.floor:g}; leave it at 0")
        longest = max(task.build().length for task in self.train + self.test + self.select)
        if 0 < self.positions < longest:
            raise ValueError(f"positions={self.positions} are too few: the longest task has {longest} tokens")
        for task in self.train:
            check_rows(task, "train", self.batch)
        for task in self.select or self.test:
            check_rows(task, self.steer, self.selection_rows)
        for task in self.test:
            check_rows(task, "test", self.test_rows)

    def json(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As stored: every option resolved, and `Recipe(**stored)` is this recipe again."""
        return self.field_values(lambda part: part.stored)

    @property
    def key(self) -> str:
        """The name of the run: equal exactly for equal recipes, wherever the user's own files are."""
        return hashed_key(self.field_values(lambda part: part.identity), FORMAT)

    @property
    def turns(self) -> tuple[int, ...]:
        """How many batches of each segment are drawn in a round of all."""
        return self.distinct or (1,) * len(self.train)

    @property
    def shape_key(self) -> str:
        """Equal for recipes that differ in seed and learning rate alone, which build models of one shape."""
        return self.model_copy(update={"seed": 0, "rate": 1.0}).key

    @property
    def stack_key(self) -> str:
        """Equal exactly for recipes that can be trained as one stack: those that differ in rate, weight decay and seed.

        Muon and Adafactor treat each matrix as a whole, so their recipes are trained alone.

        The seed must be equal too if there is dropout, which draws one mask for all, or if it orders several tasks.
        """
        if self.optimizer != "adamw":
            return self.key
        one_seed = (
            self.dropout > 0 or any(map(has_dropout, self.pattern)) or (self.shuffle != "none" and len(self.train) > 1)
        )
        return self.model_copy(update={"rate": 1.0, "weight_decay": 0.0, "seed": self.seed if one_seed else 0}).key

    def field_values(self, write: Callable[[Spec], Any]) -> dict[str, Any]:
        """The fields as plain values, each spec as `write` gives it."""
        plain = {name: getattr(self, name) for name in type(self).model_fields}
        for name, default in LATER.items():
            if plain[name] == default:
                del plain[name]  # runs made before this field existed keep their keys
        return {n: [write(s) for s in v] if n in SPECS else v for n, v in plain.items()}


ENCODER = json.JSONEncoder(sort_keys=True)


def is_key_of(key: str, stored: dict[str, Any]) -> bool:
    """Whether a run of this name has this stored recipe. Imports nothing that the recipe names."""
    return find_format(key, stored) is not None


def find_format(key: str, stored: dict[str, Any]) -> int | None:
    """The format under which a stored recipe has this key, None if it has another. Raises ValueError."""
    if not isinstance(stored, dict) or not {"pattern", "dim", "rate", "seed"} <= stored.keys():
        raise ValueError("it is no recipe")
    lists = {name: encode_identities(marshal.dumps(part, 2)) for name, part in stored.items() if type(part) is list}
    fields = stored | dict.fromkeys(lists)
    for number in range(FORMAT, 0, -1):
        text = ENCODER.encode({"format": number, **fields})
        for name, part in lists.items():  # nothing else is written so: quotes within a text have a backslash
            text = text.replace(f'"{name}": null', f'"{name}": {part}', 1)
        if digest_of(text) == key:
            return number
    return None


@lru_cache(maxsize=512)
def encode_identities(content: bytes) -> str:
    """The identities of stored specs as JSON; a store has few different ones, and `status` reads them for each run."""
    return ENCODER.encode(stored_identities(marshal.loads(content)))


def stored_identities(value: Any) -> Any:
    """A stored value in which each spec is what `Spec.identity` gives."""
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return value
    return [
        {
            "name": plain_name(part["name"]) if part["source"] else part["name"],
            "options": {
                name: stored_identities(value) if type(value) is list else value
                for name, value in part["options"].items()
            },
            "source": part["source"],
        }
        for part in value
    ]


def hashed_key(fields: dict[str, Any], number: int) -> str:
    """The key of a recipe with these fields, under a format."""
    return digest_of(ENCODER.encode({"format": number, **fields}))


def digest_of(text: str) -> str:
    """The key of a recipe that is written so."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def has_dropout(part: Spec) -> bool:
    """Whether a mixer, or one within it, has dropout."""
    inner = (spec for _, value in part.options if is_pattern(value) for spec in value)
    return bool(dict(part.options).get("dropout")) or any(map(has_dropout, inner))


def clean(pattern: Pattern, **changes: Any) -> Recipe:
    """The defaults: MQAR with fresh data, queries in random order and filler that repeats no key."""
    return Recipe(**({"train": "mqar", "pattern": pattern} | changes))


def iclr24(pattern: Pattern, *, length: int = 64, pairs: int = 4, **changes: Any) -> Recipe:
    """The setting of the code that "Zoology" (Arora et al., 2023) released for ICLR 2024.

    Figure 2 of the paper was made by earlier code, another model and another regime: see `zoology23`.

    64 epochs over 100,000 rows, shuffled in each; zero filler; queries in the biased order of the original generator; a
    cosine by the epoch without warm-up; weight decay 0.1 on every parameter; dropout 0.1 on the embeddings; the
    normalised stream copied after each mixer; learned positions for attention only; two layers for attention and
    four for the others; stopping on the test set.
    Departs from it: the last batch of an epoch is full (100,352 rows in 196 batches of 512), and mixers keep their
    own initialisation, which the original overwrote.
    """
    batch = changes.get("batch", {64: 512, 128: 512, 256: 256, 512: 128, 1024: 64}.get(length, 128))
    epoch = math.ceil(100_000 / batch)
    only_attention = all(part.name == "attention" for part in read_specs("mixers", pattern))
    settings = {
        "train": f"mqar(length={length}, pairs={pairs}, filler='zero', mode='paper')",
        "pattern": pattern,
        "depth": 2 if only_attention else 4,
        "positions": length if only_attention else 0,
        "channel": "copy",
        "dropout": 0.1,
        "batch": batch,
        "distinct": (epoch,),
        "shuffle": "rows",
        "steps": 64 * epoch,
        "hold": epoch,
        "warmup": 0,
        "rate": 1e-3,
        "decay": "all",
        "clip": None,
        "every": epoch,
        "stop": 0.99,
        "steer": "test",
        "selection_rows": 3000,
    }
    return Recipe(**(settings | changes))


def zoology23(pattern: Pattern, *, length: int = 64, pairs: int = 4, **changes: Any) -> Recipe:
    """The setting in which the runs of Figure 2 of "Zoology" (Arora et al., 2023) were made, in October and November.

    As `iclr24`, but for what the code of those days did (commit 8486daf for BaseConv, 174d6cc for H3, d9429b3 for the
    others): the state mixer was built as a second sequence mixer, so BaseConv and H3 stand twice in each layer and have
    no other channel mixing, and the others have a tanh network; weight decay 0.01; batches of 1,024 rows (256 for
    attention, and for H3 at length 256; 128 at length 512); no early stopping.
    Attention, Hyena, H3 and RWKV-4 start as they did there with their option `init='zoology23'`, which
    `figure2 --scale paper` gives them; BaseConv and the tanh network always do. For the same weights the logits of all
    five are that code's.
    Departs from it: the last batch of an epoch is full; RWKV-4's averages are not rounded to bfloat16; and H3's runs of
    (64, 4), whose commit is not known, may have had a weight decay of 0.1.
    """
    parts = read_specs("mixers", pattern)
    doubled = all(part.name in ("base_conv", "h3") for part in parts)
    only_attention = all(part.name == "attention" for part in parts)
    quarter = only_attention or (length >= 256 and any(part.name == "h3" for part in parts))
    batch = changes.get("batch", 128 if length >= 512 else 256 if quarter else 1024)
    epoch = math.ceil(100_000 / batch)
    layers = 4 if any(part.name == "base_conv" for part in parts) else 2
    settings = {
        "depth": layers * (2 if doubled else 1),
        "channel": "none" if doubled else "zoology23",
        "weight_decay": 0.01,
        "batch": batch,
        "distinct": (epoch,),
        "steps": 64 * epoch,
        "hold": epoch,
        "every": epoch,
        "stop": None,
    }
    every = tuple(part for part in parts for _ in range(2 if doubled else 1))
    return iclr24(every, length=length, pairs=pairs, **(settings | changes))


def based(pattern: Pattern, **changes: Any) -> Recipe:
    """The recall-memory mixture of "Based" (Arora et al., 2024, Figure 2), as its code ran it.

    Five segments in batches of 256 rows, 180,000 rows in all, in the same order in each of 32 epochs. Seven segments of
    1,000 rows to test on, up to four times the trained length and load. Random filler from the whole vocabulary.
    Otherwise as `iclr24`, with two layers and no positions.
    Departs from it: full batches (180,992 rows), and mixers keep their own initialisation.
    """
    train = [(64, 4), (128, 8), (256, 16), (256, 32), (256, 64)]
    test = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    batch = changes.get("batch", 256)
    batches = tuple(math.ceil(rows / batch) for rows in (100_000, *[20_000] * 4))
    settings = {
        "train": ", ".join(f"mqar(length={length}, pairs={pairs}, mode='paper')" for length, pairs in train),
        "test": ", ".join(f"mqar(length={length}, pairs={pairs}, mode='paper')" for length, pairs in test),
        "pattern": pattern,
        "channel": "copy",
        "dropout": 0.1,
        "batch": batch,
        "distinct": batches,
        "steps": 32 * sum(batches),
        "hold": sum(batches),
        "warmup": 0,
        "rate": 1e-3,
        "decay": "all",
        "clip": None,
        "every": sum(batches),
        "stop": 0.99,
        "steer": "test",
        "selection_rows": 1000,
        "test_rows": 1000,
    }
    return Recipe(**(settings | changes))


NAMED: dict[str, Callable[..., Recipe]] = {"clean": clean, "iclr24": iclr24, "zoology23": zoology23, "based": based}
