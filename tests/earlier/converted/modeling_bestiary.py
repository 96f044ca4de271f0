"""Lets `trust_remote_code=True` find the model in the package `bestiary`, which must be installed."""

from bestiary.interop.huggingface import BestiaryConfig, BestiaryForCausalLM

__all__ = ["BestiaryConfig", "BestiaryForCausalLM"]
