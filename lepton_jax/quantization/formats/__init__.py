"""Number formats, one a file: how floats are written in few bits, and where their scales are."""

from lepton_jax.quantization.formats.base import Format
from lepton_jax.quantization.formats.layout import expand, scale_shape
from lepton_jax.quantization.formats.uniform import Uniform

__all__ = ["Format", "Uniform", "expand", "scale_shape"]
