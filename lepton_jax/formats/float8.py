"""Floating numbers of eight bits."""

import dataclasses

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format, in_steps
from lepton_jax.formats.layout import ChannelAxis

FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_MINUS_ZERO = 0x80


def to_float8(x: Array, dtype: str) -> Array:
    """Round to the nearest number of 8 bits, halves to even; what is too large becomes the largest, NaN and -0 become 0.

    Example:
      >>> to_float8(jnp.array([500.0, -0.0, 1.06]), "float8_e4m3fn").astype(jnp.float32).tolist()
      [448.0, 0.0, 1.0]
    """
    largest = float(jnp.finfo(dtype).max)
    rounded = jnp.clip(jnp.nan_to_num(x.astype(jnp.float32), nan=0.0), -largest, largest).astype(dtype)
    # By way of bits, so that no compiler takes the two conversions for none.
    bits = jax.lax.bitcast_convert_type(rounded, jnp.uint8)
    return jax.lax.bitcast_convert_type(jnp.where(bits == _MINUS_ZERO, jnp.uint8(0), bits), jnp.dtype(dtype))


@checked
@dataclasses.dataclass(frozen=True)
class Float8(Format):
    """Floating numbers of 8 bits with a scale: ``x = q * scale``, the largest magnitude at the largest number.

    float8_e4m3fn: 3 bits of mantissa, up to 448; float8_e5m2: 2 bits, up to 57344. Zero is exact; an array of zeros has
    scale 1.

    Args:
      dtype: "float8_e4m3fn" or "float8_e5m2".
      channel_axis, group_size, group_axis, scale_dtype: see `Format`.

    Raises:
      ValueError: for another dtype.

    Example:
      >>> from lepton_jax.leaves.quantize import quantize
      >>> q = quantize(jnp.array([0.0, 56.0, -0.3]), Float8())
      >>> q.qvalue.dtype.name, q.qvalue.tolist(), q.unpack().tolist()
      ('float8_e4m3fn', [0.0, 448.0, -2.5], [0.0, 56.0, -0.3125])

    Source: Micikevicius et al. 2022, "FP8 formats for deep learning".
    """

    number = 3
    bits = 8

    dtype: str = "float8_e4m3fn"
    channel_axis: ChannelAxis = None
    group_size: int | None = None
    _: dataclasses.KW_ONLY
    group_axis: int | None = None
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in FLOAT8:
            raise ValueError(f"Float8: dtype must be one of {', '.join(FLOAT8)}; got {self.dtype!r}.")

    @property
    def largest(self) -> float:
        return float(jnp.finfo(self.dtype).max)

    @property
    def name(self) -> str:
        return f"fp8 {self.dtype.removeprefix('float8_').removesuffix('fn')}"

    def to_codes(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return the nearest numbers, of `dtype`."""
        return to_float8(in_steps(x, scale), self.dtype)

    def zero_code(self, zero_point: Array) -> Array:
        return jnp.zeros((), self.dtype)

    def to_bits(self, qvalue: Array) -> Array:
        return jax.lax.bitcast_convert_type(qvalue, jnp.uint8)

    def from_bits(self, codes: Array) -> Array:
        return jax.lax.bitcast_convert_type(codes, jnp.dtype(self.dtype))
