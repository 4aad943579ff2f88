"""Number formats, one a file: how floats are written in few bits, and where their scales are.

Every file here is imported, so that a new format is found by files.
"""

import importlib
import pkgutil

from lepton_jax.formats.base import Format
from lepton_jax.formats.binary import Binary
from lepton_jax.formats.float8 import Float8
from lepton_jax.formats.layout import expand, scale_shape
from lepton_jax.formats.mx import MX, mxfp4, mxfp8
from lepton_jax.formats.normal_float import NormalFloat4
from lepton_jax.formats.presets import named_format
from lepton_jax.formats.ternary import Ternary
from lepton_jax.formats.uniform import Uniform

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
    "named_format",
    "scale_shape",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
