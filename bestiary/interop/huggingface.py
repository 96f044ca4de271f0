"""Names that folders converted by version 0.1 import; the model is now in `bestiary.lm.huggingface`."""

from bestiary.lm.huggingface import BestiaryConfig, BestiaryForCausalLM

__all__ = ["BestiaryConfig", "BestiaryForCausalLM"]
