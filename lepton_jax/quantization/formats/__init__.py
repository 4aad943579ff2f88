"""Number formats, one a file: how floats are written in few bits, and where their scales are."""

from lepton_jax.quantization.formats.base import Format
from lepton_jax.quantization.formats.binary import Binary
from lepton_jax.quantization.formats.float8 import Float8
from lepton_jax.quantization.formats.layout import expand, scale_shape
from lepton_jax.quantization.formats.mx import MX, mxfp4, mxfp8
from lepton_jax.quantization.formats.normal_float import NormalFloat4
from lepton_jax.quantization.formats.ternary import Ternary
from lepton_jax.quantization.formats.uniform import Uniform

__all__ = [
    "MX",
    "Binary",
    "Float8",
    "Format",
    "NormalFloat4",
    "Ternary",
    "Uniform",
    "expand",
    "mxfp4",
    "mxfp8",
    "scale_shape",
]
