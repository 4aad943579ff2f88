"""Running a model on its packed leaves, without unpacking them."""

from lepton_jax.leaves.ready import Ready, ready
from lepton_jax.native.interpreter import Unpacked, UnpackedWarning, packed, unpacked

__all__ = ["Ready", "Unpacked", "UnpackedWarning", "packed", "ready", "unpacked"]
