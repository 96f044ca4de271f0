"""Our models as Hugging Face models, and any causal Hugging Face model by name or folder.

Importing this file makes `AutoConfig` and `AutoModelForCausalLM` know the folders that `save_pretrained` writes;
with `trust_remote_code=True` they are opened without importing it. No pickle is ever loaded.
"""

import json
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
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from bestiary.model import Model, ModelState
from bestiary.runs.store import write_file
from bestiary.spec import read_specs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.tokenizers import Tokenizer

SETTINGS = ("vocab", "dim", "depth", "pattern", "channel", "positions", "dropout")  # of `Model`, as in a recipe
FORWARD = ("input_ids", "attention_mask", "labels", "past_key_values", "use_cache", "logits_to_keep", "return_dict")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CODE = '''"""Lets `trust_remote_code=True` find the model in the package `bestiary`, which must be installed."""

from bestiary.lm.huggingface import BestiaryConfig, BestiaryForCausalLM

__all__ = ["BestiaryConfig", "BestiaryForCausalLM"]
'''


class BestiaryConfig(PreTrainedConfig):
    """The arguments of `bestiary.model.Model`, the pattern as recipes store it."""

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
        self.pattern = [part.stored for part in read_specs("mixers", self.pattern)]
        super().__post_init__(**given)

    @property
    def max_position_embeddings(self) -> int | None:
        """The longest input; None where there is no limit."""
        return self.positions or None


class Past(Cache):
    """The state of a model of ours, as `generate` carries it from token to token."""

    def __init__(self, state: ModelState | None = None) -> None:
        super().__init__(layers=[])
        self.state = state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.state is None else self.state.time

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self.state = chosen(self.state, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            batch = next(len(leaf) for leaf in tensors(self.state))
            self.reorder_cache(torch.arange(batch).repeat_interleave(repeats))

    def reset(self) -> None:
        self.state = None

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("the state of a recurrent model cannot forget the last tokens: generate without assistant")

    @property
    def is_croppable(self) -> bool:
        return False


class BestiaryForCausalLM(PreTrainedModel, GenerationMixin):
    """`bestiary.model.Model` in the interface of transformers; its head is the embedding, so there is none to tie."""

    config_class = BestiaryConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    _tied_weights_keys: dict[str, str] = {}

    def __init__(self, config: BestiaryConfig) -> None:
        super().__init__(config)
        with torch.device("cpu" if torch.get_default_device().type == "meta" else torch.get_default_device()):
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
        """Mixers have drawn their weights; buffers that no file holds are put back after loading."""
        for name, kept in self.constants.items():
            self.get_buffer(name).copy_(kept)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed = value  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes its own

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **further: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, the loss of the token after each if `labels` are given (-100: not asked), and the state if cached."""
        carried = bool(use_cache) or past_key_values is not None
        unpadded(attention_mask, right=not carried)
        for name in ("inputs_embeds", "output_attentions", "output_hidden_states"):
            if further.get(name) is not None and further[name] is not False:
                raise ValueError(f"models of bestiary take no {name}, only {', '.join(FORWARD)}")
        past = past_key_values
        if carried:
            past = Past() if past is None else past
            logits, past.state = self.model(input_ids, past.state)
        else:
            logits = self.model.parallel(input_ids)
        loss = None if labels is None else after(logits, labels)
        logits = logits[:, -logits_to_keep:] if logits_to_keep else logits
        found = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past)  # pyright: ignore
        return found.to_tuple() if return_dict is False else found


def after(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of the token after each."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device))


def unpadded(mask: Tensor | None, *, right: bool) -> None:
    """Raises ValueError for a mask that a model without masks cannot honour: behind a row, padding changes nothing."""
    if mask is None or bool((mask == 1).all()):
        return
    if not right or mask.dim() != 2 or bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError(
            "models of bestiary cannot leave out padding before a text or where the state is carried on: "
            "the attention_mask must be all ones, so give rows of one length, or one row at a time"
        )


def tensors(state: Any) -> list[Tensor]:
    """The tensors of a state; the first dimension of each is the batch."""
    parts = state if isinstance(state, tuple | list) else ()
    return [state] if isinstance(state, Tensor) else [leaf for part in parts for leaf in tensors(part)]


def chosen(state: Any, rows: Tensor) -> Any:
    """The same state of other rows."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows.to(state.device))
    if isinstance(state, tuple | list):
        parts = [chosen(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


AutoConfig.register("bestiary", BestiaryConfig, exist_ok=True)
AutoModelForCausalLM.register(BestiaryConfig, BestiaryForCausalLM, exist_ok=True)


def wrapped(model: Model, settings: Mapping[str, Any]) -> BestiaryForCausalLM:
    """A model of ours in the interface of transformers, on the same weights; `settings` are what it was made with."""
    given = {name: settings[name] for name in SETTINGS if name in settings}
    config = BestiaryConfig(**given | {"vocab_size": given.pop("vocab")}, dtype=model.embed.weight.dtype)
    with torch.random.fork_rng(devices=[]):
        made = BestiaryForCausalLM(config)
    made.model = model
    return made.train(model.training)


def save_pretrained(
    model: Model, settings: Mapping[str, Any], tokenizer: "Tokenizer | PreTrainedTokenizerFast", folder: Path | str
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` open; `settings` are what the model was made with.

    Raises ValueError if the tokenizer has more tokens than the model.
    """
    vocab, place = settings["vocab"], Path(folder)
    theirs = tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else hub_tokenizer(tokenizer)
    if len(theirs) > vocab:
        raise ValueError(f"the tokenizer has {len(theirs)} tokens, the model a vocabulary of {vocab}")
    made = wrapped(model, settings)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(made.config, name, getattr(theirs, name))
        setattr(made.generation_config, name, getattr(theirs, name))
    made.config.auto_map = {"AutoConfig": "modeling_bestiary.BestiaryConfig",
                            "AutoModelForCausalLM": "modeling_bestiary.BestiaryForCausalLM"}  # fmt: skip
    made.save_pretrained(place)
    theirs.save_pretrained(place)
    write_file(place / "modeling_bestiary.py", CODE)


def export(run: Path | str, folder: Path | str) -> None:
    """Write the model of a run on text as a Hugging Face folder, its recipe beside it. Raises LookupError."""
    from bestiary.corpus.tokenizers import open_tokenizer
    from bestiary.lm.pretraining import open_run

    recipe, model = open_run(Path(run))
    tokenizer = open_tokenizer(Path(run) / "tokenizer")
    save_pretrained(model, {name: getattr(recipe, name) for name in SETTINGS}, tokenizer, folder)
    write_file(Path(folder) / "recipe.json", recipe.json())


def hub_tokenizer(tokenizer: "Tokenizer") -> PreTrainedTokenizerFast:
    """A tokenizer of ours for transformers: the separator of documents ends a text, and pads."""
    from tokenizers import Tokenizer as Library

    library = Library.from_str(tokenizer.definition)
    end = library.id_to_token(tokenizer.separator)
    return PreTrainedTokenizerFast(tokenizer_object=library, eos_token=end, pad_token=end)


def open_causal(
    name: str | Path, *, trust: bool = False, device: str = "cpu", dtype: Any = "auto"
) -> tuple[PreTrainedModel, Any]:
    """A causal model and its tokenizer, by folder or by name on the hub, for evaluation.

    Code that comes with a model is run only if `trust`. Raises LookupError where there is none, ValueError where
    it cannot be used.
    """
    if is_place(name):
        looked_at(Path(name), trust=trust)
    options = {"trust_remote_code": trust}
    try:
        config = AutoConfig.from_pretrained(str(name), **options)
        opened: Any = AutoModelForCausalLM.from_pretrained(
            str(name), config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(str(name), **options)
    except (OSError, ValueError) as fault:
        raise explained(str(name), fault, trust=trust) from None
    model, info = opened
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ValueError(f"the weights of {name} lack {missing[0]}{more}: they are of another model")
    return model.to(device).eval(), tokenizer


def is_place(name: str | Path) -> bool:
    """Whether a folder is meant, not a name on the hub."""
    text = str(name)
    return isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text).is_dir()


def looked_at(place: Path, *, trust: bool) -> None:
    """Raises LookupError or ValueError for a folder that holds no model, or one whose code is not trusted."""
    if not place.is_dir():
        raise LookupError(f"there is no folder {place}, nor could a model of the hub have that name")
    if not (place / "config.json").is_file():
        hint = "; it is a run of ours, which must be exported first" if (place / "recipe.json").is_file() else ""
        raise LookupError(f"{place} holds no config.json, so it is no Hugging Face model{hint}")
    if not any((place / file).is_file() for file in WEIGHTS):
        raise LookupError(f"{place} holds no weights: model.safetensors is missing")
    config = json.loads((place / "config.json").read_text())
    if "AutoModelForCausalLM" in config.get("auto_map", {}) and not trust and not known(config.get("model_type", "")):
        raise untrusted(str(place))


def known(kind: str) -> bool:
    """Whether transformers has the code of a kind of model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return kind in CONFIG_MAPPING


def untrusted(name: str) -> ValueError:
    return ValueError(f"{name} comes with code of its own; run it, if you trust it, with --trust-remote-code")


def explained(name: str, fault: Exception, *, trust: bool) -> Exception:
    """What is wrong with a model, in one line."""
    what = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
    if "trust_remote_code" in str(fault) and not trust:
        return untrusted(name)
    if isinstance(fault, OSError) and not is_place(name):
        return LookupError(f"no model {name!r} here, and the hub has none or cannot be reached ({what})")
    return ValueError(f"{name} cannot be opened ({what})")


def token_losses(
    model: nn.Module, contexts: "NDArray[np.integer]", *, device: str | None = None, numbers: int = 2**25
) -> "NDArray[np.float32]":
    """The loss in nats of each token after the first of contexts (n, T + 1), under a causal model of transformers.

    At most `numbers` logits are computed at a time. Raises ValueError for tokens that the model does not have.
    """
    if device is not None:
        model.to(device)
    vocab, found = model.get_input_embeddings().weight.shape[0], []  # pyright: ignore
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
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
            found.append(loss.view(len(tokens), -1).cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, contexts.shape[1] - 1), dtype=np.float32)
