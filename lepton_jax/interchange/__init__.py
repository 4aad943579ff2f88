"""Models and variables of others: from files, and to them."""

import importlib
from typing import Any

from lepton_jax.interchange.checkpoint import load_variables, save_variables
from lepton_jax.interchange.model_file import load_model
from lepton_jax.interchange.npz import load_npz, save_npz
from lepton_jax.interchange.orbax_folder import load_orbax
from lepton_jax.interchange.safetensors_file import load_safetensors, save_safetensors

_LATER = {
    "from_keras": "keras_model",
    "from_onnx": "onnx",
    "from_pretrained": "pretrained",
    "from_torch": "torch_module",
    "to_onnx": "onnx",
    "load_resnet20": "torch_resnet",
    "load_torch_resnet": "torch_resnet",
    "to_keras": "keras_model",
}
"""What needs modules of Flax, or a package that not everybody has: imported when it is first asked for."""

__all__ = [
    "from_keras",
    "from_onnx",
    "from_pretrained",
    "from_torch",
    "load_model",
    "load_npz",
    "load_orbax",
    "load_resnet20",
    "load_safetensors",
    "load_torch_resnet",
    "load_variables",
    "save_npz",
    "save_safetensors",
    "save_variables",
    "to_keras",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
