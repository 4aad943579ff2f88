"""The simple surface: a `Model` is a function and its variables, and every technique takes one and returns one."""

from typing import Any

from lepton_jax.simple.distill import distill_model
from lepton_jax.simple.model import Model, save_model
from lepton_jax.simple.techniques import compress_model, factorize_model, prune_model, quantize_model

__all__ = [
    "Model",
    "compress_model",
    "distill_model",
    "factorize_model",
    "prune_model",
    "quantize_model",
    "save_model",
]


def __getattr__(name: str) -> Any:
    """Files of all kinds have a package of their own; its name stays here too."""
    if name == "load_model":
        from lepton_jax.interchange import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
