"""Short names of number formats: ``fake_quant("int4_g128")``."""

import numbers
from collections.abc import Mapping
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.presets import preset
from lepton_jax.formats.base import Format
from lepton_jax.formats.binary import Binary
from lepton_jax.formats.float8 import Float8
from lepton_jax.formats.mx import mxfp4, mxfp8
from lepton_jax.formats.normal_float import NormalFloat4
from lepton_jax.formats.ternary import Ternary
from lepton_jax.formats.uniform import Uniform

PRESETS: Mapping[str, Format] = {
    **{f"int{bits}": Uniform(bits, channel_axis="out") for bits in (2, 3, 4, 5, 6, 7, 8, 16)},
    **{f"int{bits}_g{size}": Uniform(bits, group_size=size) for bits in (2, 3, 4, 8) for size in (32, 64, 128)},
    "fp8": Float8(channel_axis="out"),
    "nf4": NormalFloat4(),
    "mxfp4": mxfp4(),
    "mxfp8": mxfp8(),
    "binary": Binary(channel_axis="out"),
    "ternary": Ternary(channel_axis="out"),
}
"""``int4`` has a scale for each output channel, ``int4_g128`` one for each 128 inputs."""


@checked
def named_format(name: str, given: Any) -> Any:
    """Return the number format that a short name stands for, or a number of bits: ``4`` is "int4".

    So a number of bits means the same wherever it stands for a format of weights: symmetric integers, one scale for each output
    channel. What is neither is returned as it is.

    Args:
      name: of the setting, for the error.
      given: a short name, bits, or a format.

    Raises:
      ValueError: for a name that there is not; lists those that there are. For bits out of range.

    Example:
      >>> named_format("fake_quant: format", "int4_g128").group_size, named_format("fake_quant: format", Uniform(4)).bits
      (128, 4)
      >>> named_format("fake_quant: format", 4) == PRESETS["int4"]
      True
    """
    if isinstance(given, numbers.Integral) and not isinstance(given, bool):
        return Uniform(int(given), channel_axis="out")
    return preset(name, given, PRESETS)
