"""Small models of transformers with random weights, and a tokenizer trained on the spot."""

from functools import cache
from random import Random
from typing import Any


@cache
def small_tokenizer(vocab: int = 700) -> Any:
    """Byte-level, of some 700 tokens; with 3,000 every noun is one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from bestiary.lm.questions import draw_words, word_list

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    words = [*word_list("nouns"), *word_list("cities"), *draw_words(Random(0), 2000, None)]
    made.train_from_iterator([" ".join(words)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


def small_gpt2(vocab: int) -> Any:
    """Learned positions, and keys and values as its cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, **shape, bos_token_id=0, eos_token_id=0))


def small_mamba(vocab: int) -> Any:
    """No positions, and a state of fixed size as its cache."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, state_size=4))


def small_llama(vocab: int) -> Any:
    """Rotary positions and gated MLPs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **shape))


SMALL_MODELS = (small_gpt2, small_mamba)
