"""Signed powers of two."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format, in_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowersOfTwo(Format):
    """Zero, and signed powers of two below the scale: ``x = q * scale`` with q in {0, +-1, +-1/2, ..., +-1/64}; four bits.

    The largest magnitude is the scale; a weight becomes the power nearest in its logarithm, and 0 below half the smallest.

    Args:
      channel_axis, group_size, group_axis, scale_dtype: see `Format`.

    Example:
      >>> from lepton_jax.leaves.quantize import quantize
      >>> quantize(jnp.array([-8.0, 3.0, 0.01]), PowersOfTwo()).unpack().tolist()
      [-8.0, 4.0, 0.0]

    Source: Miyashita, Lee, Murmann 2016, "Convolutional neural networks using logarithmic data representation".
    """

    levels: ClassVar[int] = 7

    number = 6
    bits = 4
    largest = 1.0
    name = "powers of two"
    quiet_code = 0

    channel_axis: int | None = None
    group_size: int | None = None
    group_axis: int | None = None
    scale_dtype: str = "float32"

    def to_codes(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return 0, or 1 to 7 for a power, from the largest on, negative ones with the eighth bit of a nibble; uint8."""
        steps = jnp.nan_to_num(in_steps(x, scale), nan=0.0)
        power = jnp.round(-jnp.log2(jnp.maximum(jnp.abs(steps), 2.0**-20)))
        code = jnp.where(power < self.levels, jnp.maximum(power, 0) + 1, 0)
        return (code + jnp.where((steps < 0) & (code > 0), 8, 0)).astype(jnp.uint8)

    def from_codes(self, qvalue: Array, scale: Array, zero_point: Array) -> Array:
        power = jnp.exp2(1.0 - (qvalue & 7).astype(jnp.float32))
        value = jnp.where(qvalue & 7 > 0, power, 0.0) * jnp.where(qvalue & 8 > 0, -1.0, 1.0)
        return value * scale.astype(jnp.float32)

    def zero_code(self, zero_point: Array) -> Array:
        return jnp.zeros((), jnp.uint8)
