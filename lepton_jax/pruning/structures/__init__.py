"""Structures: which weights are removed together, one file each."""

from lepton_jax.pruning.structures.base import Structure
from lepton_jax.pruning.structures.blocks import Blocks
from lepton_jax.pruning.structures.channels import Channels, Filters
from lepton_jax.pruning.structures.heads import Heads
from lepton_jax.pruning.structures.n_of_m import NofM
from lepton_jax.pruning.structures.presets import named_structure
from lepton_jax.pruning.structures.unstructured import Unstructured

__all__ = ["Blocks", "Channels", "Filters", "Heads", "NofM", "Structure", "Unstructured", "named_structure"]
