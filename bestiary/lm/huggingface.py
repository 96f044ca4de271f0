"""Our models as Hugging Face models, and any causal Hugging Face model opened by name or folder.

Importing this file makes `AutoConfig` and `AutoModelForCausalLM` know the folders that `save_pretrained` writes;
with `trust_remote_code=True` they open without it. No pickle is ever loaded.
"""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from bestiary.corpus.gguf import check_gguf, is_gguf, open_gguf_tokenizer
from bestiary.corpus.hub import skip_without_network
from bestiary.lm.files import DIGESTS, check_digests
from bestiary.lm.names import check_name, is_path
from bestiary.mixers._cost import weighted_costs
from bestiary.model import Model, ModelState
from bestiary.runs.files import read_object
from bestiary.spec import LAYERS, read_specs, reading_data

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTINGS = ("vocab", "dim", "depth", "pattern", "channel", "positions", "dropout")  # of `Model`, as in a recipe
FORWARD_ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "labels",
    "past_key_values",
    "use_cache",
    "logits_to_keep",
    "return_dict",
)
BLOCK = 2**20  # logits whose losses are computed at a time: 4 MiB
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class BestiaryConfig(PreTrainedConfig):
    """The arguments of `bestiary.model.Model`, with the pattern as recipes store it."""

    __no_type_check__ = True  # of its fields, that is: transformers lets a configuration take whatever it is given

    model_type = "bestiary"
    attribute_map = {"hidden_size": "dim", "num_hidden_layers": "depth"}

    vocab_size: int = 257
    dim: int = 128
    depth: int = 4
    pattern: Any = "attention"
    channel: str = "swiglu"
    positions: int = 0
    dropout: float = 0.0
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def __post_init__(self, **given: Any) -> None:
        if not 0 < self.depth <= LAYERS:
            raise ValueError(f"a model has 1 to {LAYERS:,} layers, not {self.depth}")
        with reading_data():  # a configuration never brings code of its own
            self.pattern = [part.stored for part in read_specs("mixers", self.pattern)]
        super().__post_init__(**given)

    @property
    def max_position_embeddings(self) -> int | None:
        """The longest input; None where there is no limit."""
        return self.positions or None


class StateCache(Cache):
    """The state of one of our models, as the cache that `generate` carries from token to token."""

    def __init__(self, state: ModelState | None = None) -> None:
        super().__init__(layers=[])
        self.state = state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens were read."""
        return 0 if self.state is None else self.state.time

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self.state = select_rows(self.state, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row so many times."""
        if self.state is not None:
            batch = next(len(leaf) for leaf in state_tensors(self.state))
            self.reorder_cache(torch.arange(batch).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.state = None

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError: a state cannot be cut."""
        if tokens_to_remove:
            raise ValueError("the state of a recurrent model cannot forget the last tokens: generate without assistant")

    @property
    def is_croppable(self) -> bool:
        """Never."""
        return False


class BestiaryForCausalLM(PreTrainedModel, GenerationMixin):
    """`bestiary.model.Model` with the interface of transformers. Its head is the embedding itself, so none is tied."""

    config_class = BestiaryConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    _tied_weights_keys: dict[str, str] = {}

    def __init__(self, config: BestiaryConfig) -> None:
        super().__init__(config)
        device = torch.get_default_device()
        with reading_data(), torch.device("cpu" if device.type == "meta" else device):
            self.model = Model(
                config.vocab_size,
                dim=config.dim,
                depth=config.depth,
                pattern=read_specs("mixers", config.pattern),
                channel=config.channel,  # pyright: ignore[reportArgumentType]
                positions=config.positions,
                dropout=config.dropout,
            )
        stored = self.state_dict()
        self.constants = {name: kept.clone() for name, kept in self.named_buffers() if name not in stored}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Mixers initialise themselves; this restores buffers that no file holds after loading."""
        for name, kept in self.constants.items():
            self.get_buffer(name).copy_(kept)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, which is the head as well."""
        return self.model.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding and with it the head."""
        self.model.embed = value  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes its own

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: StateCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, the mean next-token loss given `labels` (-100 is ignored), and the state if it is cached.

        Where a trainer reads a batch in parts, `num_items_in_batch` is the number of targets in all of them, and the
        loss is the part's share of the batch's mean, so that the gradients of the parts add up to that of the batch.
        """
        cached = bool(use_cache) or past_key_values is not None
        check_mask(attention_mask, padding_right=not cached)
        for name in ("inputs_embeds", "output_attentions", "output_hidden_states"):
            if others.get(name) is not None and others[name] is not False:
                raise ValueError(f"models of bestiary take no {name}, only {', '.join(FORWARD_ARGUMENTS)}")
        past = past_key_values
        if cached:
            past = StateCache() if past is None else past
            logits, past.state = self.model(input_ids, past.state)
        else:
            with weighted_costs(1.0 if labels is None else share_of_batch(labels, num_items_in_batch)):
                logits = self.model.parallel(input_ids)
        loss = None if labels is None else next_token_loss(logits, labels, num_items_in_batch)
        logits = logits[:, -logits_to_keep:] if logits_to_keep else logits
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past)  # pyright: ignore
        return output.to_tuple() if return_dict is False else output


def next_token_loss(logits: Tensor, labels: Tensor, count: Tensor | int | None = None) -> Tensor:
    """The loss in nats of the token after each position, of logits (batch, time, vocab): the mean, or sum / count."""
    predictions, targets = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device)
    if count is None:
        return F.cross_entropy(predictions, targets)
    total = F.cross_entropy(predictions, targets, reduction="sum")
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def share_of_batch(labels: Tensor, count: Tensor | int | None) -> Tensor | float:
    """The share of a batch's `count` targets that these labels hold; 1 if they are the whole batch."""
    if count is None:
        return 1.0
    return (labels[:, 1:] != -100).sum() / (count.to(labels.device) if isinstance(count, Tensor) else count)


def check_mask(mask: Tensor | None, *, padding_right: bool) -> None:
    """Raises ValueError for padding that would change the result: only padding at the end of a row changes nothing."""
    if mask is None or bool((mask == 1).all()):
        return
    if not padding_right or mask.dim() != 2 or bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError(
            "models of bestiary cannot leave out padding before a text or where the state is carried on: "
            "the attention_mask must be all ones, so give rows of one length, or one row at a time"
        )


def state_tensors(state: Any) -> list[Tensor]:
    """The tensors in a state; the first dimension of each is the batch."""
    parts = state if isinstance(state, tuple | list) else ()
    return [state] if isinstance(state, Tensor) else [leaf for part in parts for leaf in state_tensors(part)]


def select_rows(state: Any, rows: Tensor) -> Any:
    """The state of these rows of the batch."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows.to(state.device))
    if isinstance(state, tuple | list):
        parts = [select_rows(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


AutoConfig.register("bestiary", BestiaryConfig, exist_ok=True)
AutoModelForCausalLM.register(BestiaryConfig, BestiaryForCausalLM, exist_ok=True)


def wrap_model(model: Model, settings: Mapping[str, Any]) -> BestiaryForCausalLM:
    """One of our models with the interface of transformers, sharing its weights; `settings` are what built it."""
    arguments = {name: settings[name] for name in SETTINGS if name in settings}
    config = BestiaryConfig(**arguments | {"vocab_size": arguments.pop("vocab")}, dtype=model.embed.weight.dtype)
    with torch.random.fork_rng(devices=[]):
        wrapped = BestiaryForCausalLM(config)
    wrapped.model = model
    return wrapped.train(model.training)


def open_causal(
    name: str | Path, *, trust: bool = False, device: str = "cpu", dtype: Any = "auto"
) -> tuple[PreTrainedModel, Any]:
    """A causal model in evaluation mode and its tokenizer, from a folder, a GGUF file, or by name from the hub.

    Code that comes with a model runs only if `trust`. Raises LookupError if there is no such model, ValueError if
    it cannot be used.
    """
    check_name(name)
    if is_path(name):
        name = Path(name).expanduser()
        check_gguf(name) if is_gguf(name) else check_folder(name, trust=trust)
    else:
        skip_without_network()
    try:
        (model, info), tokenizer = open_gguf(name) if is_gguf(name) else open_folder(name, trust=trust, dtype=dtype)
    except Exception as fault:  # what damaged files and models of others fail with is not documented
        raise explain_error(str(name), fault, trust=trust) from None
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ValueError(f"the weights of {name} lack {missing[0]}{more}: they are of another model")
    return model.to(device).eval(), tokenizer


def open_folder(name: str | Path, *, trust: bool, dtype: Any) -> tuple[tuple[Any, dict[str, Any]], Any]:
    """A model with what was found wrong while loading it, and its tokenizer. Raises nearly anything."""
    options = {"trust_remote_code": trust}
    config = AutoConfig.from_pretrained(str(name), **options)
    opened: Any = AutoModelForCausalLM.from_pretrained(
        str(name), config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    return opened, AutoTokenizer.from_pretrained(str(name), **options)


def open_gguf(path: str | Path) -> tuple[tuple[Any, dict[str, Any]], Any]:
    """As `open_folder`, for a GGUF file, whose weights become numbers of 32 bits. Raises nearly anything."""
    path = Path(path)
    opened: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, output_loading_info=True)
    return opened, open_gguf_tokenizer(path)


def check_folder(folder: Path, *, trust: bool) -> None:
    """Raises LookupError for a folder without a model, ValueError for one whose code is not trusted."""
    if not folder.is_dir():
        raise LookupError(f"{folder} is no folder of a model")
    if not (folder / "config.json").is_file():
        hint = "; it is a run of ours, which must be exported first" if (folder / "recipe.json").is_file() else ""
        raise LookupError(f"{folder} holds no config.json, so it is no Hugging Face model{hint}")
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise LookupError(f"{folder} holds no weights: model.safetensors is missing")
    config = read_object(folder / "config.json")
    has_code = "AutoModelForCausalLM" in str(config.get("auto_map"))
    if has_code and not trust and not is_known_type(str(config.get("model_type"))):
        raise untrusted_code(str(folder))
    try:
        check_digests(folder)
    except ValueError as fault:
        raise ValueError(f"{fault}; if you changed it yourself, remove {folder / DIGESTS}") from None


def is_known_type(kind: str) -> bool:
    """Whether transformers itself has the code of a model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return kind in CONFIG_MAPPING


def untrusted_code(name: str) -> ValueError:
    """The error for a model that brings code which the user has not trusted."""
    return ValueError(f"{name} comes with code of its own; run it, if you trust it, with --trust-remote-code")


def explain_error(name: str, fault: Exception, *, trust: bool) -> Exception:
    """The error of opening a model, in one line; a full disk as it is."""
    what = " ".join(line.strip() for line in str(fault).strip().splitlines()[:2]) or type(fault).__name__
    if "trust_remote_code" in str(fault) and not trust:
        return untrusted_code(name)
    if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return fault
    if isinstance(fault, OSError) and not is_path(name):
        return LookupError(f"no model {name!r} here, and the hub has none or cannot be reached ({what})")
    return ValueError(f"{name} cannot be opened ({what})")


def token_losses(
    model: nn.Module,
    contexts: "NDArray[np.integer]",
    *,
    first: int | None = None,
    device: str | None = None,
    numbers: int = 2**25,
) -> "NDArray[np.float32]":
    """The loss in nats (n, T) of each token after the first in contexts (n, T + 1), by a causal model of transformers.

    The model reads the token `first`, if given, before each context. At most `numbers` logits are computed at a time.
    Raises ValueError for tokens that the model does not have.
    """
    if first is not None:
        longer = np.insert(contexts.astype(np.int64), 0, first, axis=1)
        return token_losses(model, longer, device=device, numbers=numbers)[:, 1:]
    if device is not None:
        model.to(device)
    vocab, losses = model.get_input_embeddings().weight.shape[0], []  # pyright: ignore
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and contexts.shape[1] - 1 > longest:
        raise ValueError(
            f"contexts of {contexts.shape[1] - 1} tokens, the model reads {longest}; give a smaller --length"
        )
    if contexts.size and int(contexts.max()) >= vocab:
        raise ValueError(f"the text has token {int(contexts.max())}, the model a vocabulary of {vocab}")
    size = max(1, numbers // (vocab * contexts.shape[1]))
    with torch.no_grad():
        for start in range(0, len(contexts), size):
            tokens = torch.from_numpy(contexts[start : start + size].astype(np.int64)).to(model.device)  # pyright: ignore
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            loss = block_losses(logits.flatten(0, 1), tokens[:, 1:].flatten())
            losses.append(loss.view(len(tokens), -1).cpu().numpy())
    return np.concatenate(losses) if losses else np.zeros((0, contexts.shape[1] - 1), dtype=np.float32)


def block_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy (n,) of logits (n, vocab), as many rows at a time as a cache holds: the same numbers."""
    rows = max(1, BLOCK // logits.shape[1])
    pairs = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.cat([F.cross_entropy(some.float(), wanted, reduction="none") for some, wanted in pairs])
