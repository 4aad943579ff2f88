"""The simple surface: a `Model` is a function and its variables, and every technique takes one and returns one."""

from lepton_jax.simple.distill import distill_model
from lepton_jax.simple.model import Model, load_model, save_model
from lepton_jax.simple.techniques import compress_model, factorize_model, prune_model, quantize_model

__all__ = [
    "Model",
    "compress_model",
    "distill_model",
    "factorize_model",
    "load_model",
    "prune_model",
    "quantize_model",
    "save_model",
]
