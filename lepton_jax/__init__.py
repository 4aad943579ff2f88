"""lepton_jax: make any JAX model smaller and faster, and prove it."""

import importlib
from typing import Any

from lepton_jax import _moved
from lepton_jax.artifact import Account, Artifact, ArtifactError, account, load, save
from lepton_jax.core import paths, schedules
from lepton_jax.core.packed import unpack
from lepton_jax.core.transform import Transform, chain, freeze, identity, pack
from lepton_jax.interchange import load_model
from lepton_jax.lowrank import low_rank
from lepton_jax.precision import cast
from lepton_jax.pruning import prune
from lepton_jax.quantization import fake_quant
from lepton_jax.simple import (
    Model,
    compress_model,
    distill_model,
    factorize_model,
    prune_model,
    quantize_model,
    save_model,
)

__all__ = [
    "Account",
    "Artifact",
    "ArtifactError",
    "Model",
    "Transform",
    "account",
    "cast",
    "chain",
    "compress_model",
    "distill_model",
    "factorize_model",
    "fake_quant",
    "freeze",
    "identity",
    "load",
    "load_model",
    "low_rank",
    "pack",
    "paths",
    "prune",
    "prune_model",
    "quantize_model",
    "save",
    "save_model",
    "schedules",
    "unpack",
]
_PACKAGES = (
    "data",
    "deploy",
    "distillation",
    "formats",
    "graph",
    "interchange",
    "leaves",
    "lowrank",
    "models",
    "native",
    "precision",
    "pruning",
    "quantization",
    "quantum",
    "recipes",
    "stages",
    "training",
    "tuning",
)
"""What is imported when it is first asked for."""

__version__ = "0.1.0"

_moved.forward()


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
