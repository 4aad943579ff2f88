"""Running a model on its packed leaves, without unpacking them."""

from lepton_jax.native.interpreter import Unpacked, UnpackedWarning, packed, unpacked
from lepton_jax.native.ready import Ready, ready

__all__ = ["Ready", "Unpacked", "UnpackedWarning", "packed", "ready", "unpacked"]
