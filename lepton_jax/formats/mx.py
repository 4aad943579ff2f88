"""Microscaling formats: blocks of small floats that share a power of two."""

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format, in_steps, rounded
from lepton_jax.formats.float8 import FLOAT8, to_float8
from lepton_jax.formats.layout import ChannelAxis
from lepton_jax.formats.normal_float import look_up

_FLOAT4 = "float4_e2m1fn"
# Exponent of the largest number of each element type.
_LARGEST_EXPONENT = {_FLOAT4: 2, "float8_e4m3fn": 8, "float8_e5m2": 15}
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FLOAT4_VALUES = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))
# 2**-127 is a power that the scale's type has, but no normal float32.
_EXPONENTS = (-126, 127)


@checked
@dataclasses.dataclass(frozen=True)
class MX(Format):
    """Small floats in blocks with one power of two each: ``x = q * scale``.

    The scale is ``2**(floor(log2 max|x|) - e)``, e the exponent of the element's largest number: what lies between that number
    and the next power of two is clipped. 8 bits a scale. Zero is exact; a block of zeros has scale 1. The last block of an axis
    may be shorter, and so may be the only one.

    Args:
      element: "float4_e2m1fn" (values 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), "float8_e4m3fn" or "float8_e5m2".
      channel_axis: see `Format`.
      group_size: 32, the standard's.
      group_axis, scale_dtype: see `Format`; the scales' dtype is float8_e8m0fnu.

    Raises:
      ValueError: for another element, or no group size.

    Example:
      >>> from lepton_jax.leaves.quantize import quantize
      >>> q = quantize(jnp.array([0.0, 0.7, -5.0, 7.9]), MX())
      >>> q.scale.astype(jnp.float32).tolist(), q.unpack().tolist()
      ([1.0], [0.0, 0.5, -4.0, 6.0])

    Source: Open Compute Project 2023, "OCP microscaling formats (MX) specification v1.0", sections 5 and 6.3; Rouhani et al.
    2023. Deviation: exponents below -126 are not used.
    """

    number = 5
    short_groups: ClassVar[bool] = True
    scale_dtypes: ClassVar[tuple[str, ...]] = ("float8_e8m0fnu",)

    element: str = _FLOAT4
    channel_axis: ChannelAxis = None
    group_size: int | None = 32
    _: dataclasses.KW_ONLY
    group_axis: int | None = None
    scale_dtype: str = "float8_e8m0fnu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.element not in _LARGEST_EXPONENT:
            raise ValueError(f"MX: element must be one of {', '.join(_LARGEST_EXPONENT)}; got {self.element!r}.")
        if self.group_size is None:
            raise ValueError("MX: group_size must be a whole number, 32 in the standard; got None.")

    @property
    def bits(self) -> int:
        return 4 if self.element == _FLOAT4 else 8

    @property
    def largest(self) -> float:
        return _FLOAT4_VALUES[7] if self.element == _FLOAT4 else float(jnp.finfo(self.element).max)

    @property
    def name(self) -> str:
        return "mxfp4" if self.element == _FLOAT4 else f"mxfp8 {self.element.removeprefix('float8_').removesuffix('fn')}"

    @property
    def table(self) -> tuple[float, ...]:
        """The values of the codes of four bits, at scale 1.

        Raises:
          TypeError: for elements of eight bits, which are stored as such.
        """
        if self.element in FLOAT8:
            raise TypeError(f"MX: {self.element} has no table; its codes are of that dtype.")
        return _FLOAT4_VALUES

    def scale_and_zero_point(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return the power of two of the larger magnitude, less that of the largest number; 1 for an empty range."""
        largest = jnp.maximum(-jnp.minimum(low, 0), jnp.maximum(high, 0)).astype(jnp.float32)
        exponent = (jax.lax.bitcast_convert_type(largest, jnp.int32) >> 23) - 127 - _LARGEST_EXPONENT[self.element]
        bits = (jnp.clip(exponent, *_EXPONENTS) + 127) << 23
        scale = jnp.where(largest > 0, jax.lax.bitcast_convert_type(bits, jnp.float32), 1)
        return rounded(scale, self.scale_dtype), self._no_zero_point(scale)

    def to_codes(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return the nearest numbers, halves to even: of the element's dtype, or codes of four bits, uint8."""
        scaled = jnp.nan_to_num(in_steps(x, scale), nan=0.0)
        if self.element in FLOAT8:
            return to_float8(scaled, self.element)
        magnitude, codes = jnp.abs(scaled), jnp.zeros(x.shape, jnp.uint8)
        for number, (below, above) in enumerate(itertools.pairwise(_MAGNITUDES)):
            middle = (below + above) / 2  # which belongs to the even one of its neighbours
            codes += (magnitude >= middle if number % 2 else magnitude > middle).astype(jnp.uint8)
        return jnp.where((scaled < 0) & (codes > 0), codes + 8, codes).astype(jnp.uint8)

    def from_codes(self, qvalue: Array, scale: Array, zero_point: Array) -> Array:
        values = qvalue.astype(jnp.float32) if self.element in FLOAT8 else look_up(_FLOAT4_VALUES, qvalue)
        return values * scale.astype(jnp.float32)

    def zero_code(self, zero_point: Array) -> Array:
        return jnp.zeros((), self.element if self.element in FLOAT8 else jnp.uint8)

    def to_bits(self, qvalue: Array) -> Array:
        return jax.lax.bitcast_convert_type(qvalue, jnp.uint8)

    def from_bits(self, codes: Array) -> Array:
        return jax.lax.bitcast_convert_type(codes, jnp.dtype(self.element)) if self.element in FLOAT8 else codes


@checked
def mxfp4(*, group_axis: int | None = None) -> MX:
    """Return the format of blocks of 32 floats of 4 bits.

    Example:
      >>> mxfp4().bits, mxfp4().element
      (4, 'float4_e2m1fn')
    """
    return MX(_FLOAT4, group_axis=group_axis)


@checked
def mxfp8(element: str = "float8_e4m3fn", *, group_axis: int | None = None) -> MX:
    """Return the format of blocks of 32 floats of 8 bits.

    Example:
      >>> mxfp8().bits, mxfp8("float8_e5m2").element
      (8, 'float8_e5m2')
    """
    return MX(element, group_axis=group_axis)
