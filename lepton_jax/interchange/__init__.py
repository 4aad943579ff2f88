"""Variables from and to the files of others: safetensors, npz, orbax checkpoints."""

from lepton_jax.interchange.checkpoint import load_variables, save_variables
from lepton_jax.interchange.npz import load_npz, save_npz
from lepton_jax.interchange.orbax_folder import load_orbax
from lepton_jax.interchange.safetensors_file import load_safetensors, save_safetensors

__all__ = [
    "load_npz",
    "load_orbax",
    "load_safetensors",
    "load_variables",
    "save_npz",
    "save_safetensors",
    "save_variables",
]
