"""Evenly spaced levels: int2 to int8 and int16, signed and unsigned, symmetric and affine."""

import dataclasses
import numbers
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format, in_steps, storable
from lepton_jax.formats.layout import ChannelAxis

_NEAR = 2.0**-20
"""What lies so near to the end of a range, relative to it, is the end."""


@checked_but("bits")
@dataclasses.dataclass(frozen=True)
class Uniform(Format):
    """Evenly spaced levels: ``x = (q - zero_point) * scale``.

    =====================  ============================================  ====================================
    levels                 symmetric, zero point 0                       affine, zero point inside
    =====================  ============================================  ====================================
    signed                 ``-2**(b-1)`` to ``2**(b-1) - 1``             ``-2**(b-1)`` to ``2**(b-1) - 1``
    signed, narrow range   ``-(2**(b-1) - 1)`` to ``2**(b-1) - 1``
    unsigned               ``0`` to ``2**b - 1`` (negatives become 0)    ``0`` to ``2**b - 1``
    =====================  ============================================  ====================================

    Signed symmetric levels cover ``[-a, a]`` with the scale ``a / (2**(b-1) - 1/2)``: all ``2**b`` levels are used, and both
    ends are half a step off: ``-a`` is the lowest level, ``a`` the highest. The narrow range has the scale ``a / (2**(b-1) -
    1)``: both ends are exact, one level is never used, and the error of Gaussian weights is larger: 1.39 times at 2 bits, 1.16
    at 3 and 1.06 at 4, with a scale for each 128. At 8 bits both have the same; in groups of 32, of which one value each is
    half a step off, 0.97 times. What is on levels of the narrow range already is found on them again; the full range of what is
    on its levels is another one.

    0 is exact in all of them. A range of zero width has scale 1, and all its values are 0; NaN is passed over and becomes 0; an
    infinity stretches the range to the largest float32.

    Args:
      bits: 2 to 8, or 16.
      symmetric: levels symmetric about zero (or from zero up), or a range of their own (affine).
      channel_axis, group_size, group_axis, scale_dtype: see `Format`.
      signed: whether the integers have a sign; by default if symmetric. Unsigned and symmetric is for what is never negative,
        such as the output of a relu.
      narrow_range: without the lowest level of signed symmetric integers, for engines that negate codes or saturate.

    Raises:
      ValueError: for bits, a group size or a scale dtype that there is not; for a narrow range of other levels.

    Example:
      >>> from lepton_jax.leaves.quantize import quantize
      >>> quantize(jnp.array([-3.0, -1.0, 0.0, 1.5]), Uniform(bits=2)).qvalue.tolist()
      [-2, 0, 0, 1]
      >>> quantize(jnp.array([-1.0, 0.0, 0.5, 1.0]), Uniform(bits=2, narrow_range=True)).qvalue.tolist()
      [-1, 0, 0, 1]
      >>> quantize(jnp.array([-1.0, 0.0, 3.0]), Uniform(2, signed=False)).qvalue.tolist()
      [0, 0, 3]
    """

    number = 0
    is_integer: ClassVar[bool] = True

    bits: int = 8
    symmetric: bool = True
    channel_axis: ChannelAxis = None
    group_size: int | None = None
    _: dataclasses.KW_ONLY
    group_axis: int | None = None
    scale_dtype: str = "float32"
    signed: bool | None = None
    narrow_range: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.bits, numbers.Integral) and not isinstance(self.bits, bool)
        if not whole or not (2 <= self.bits <= 8 or self.bits == 16):
            raise ValueError(f"Uniform: bits must be a whole number from 2 to 8; got {self.bits!r}. 16 may be written, too.")
        if self.signed is None:
            object.__setattr__(self, "signed", self.symmetric)
        if self.narrow_range and not (self.symmetric and self.signed):
            raise ValueError("Uniform: narrow_range=True is for signed symmetric levels; others have no level to leave out.")

    @property
    def q_range(self) -> tuple[int, int]:
        """The lowest and highest integer."""
        if not self.signed:
            return 0, 2**self.bits - 1
        half = 2 ** (self.bits - 1)
        return (1 - half if self.narrow_range else -half), half - 1

    @property
    def steps(self) -> float:
        """How many steps of the scale the range takes that is covered: of symmetric levels from zero to its end."""
        low, high = self.q_range
        if not self.symmetric:
            return high - low
        return high + 0.5 if self.is_full else high

    @property
    def is_full(self) -> bool:
        """Whether these are signed symmetric levels with the lowest one."""
        return bool(self.symmetric and self.signed and not self.narrow_range)

    @property
    def reach(self) -> int:
        """How many steps of the scale its values take: of symmetric levels from zero to the furthest."""
        low, high = self.q_range
        return max(-low, high) if self.symmetric else high - low

    @property
    def quiet_code(self) -> int:
        return min(max(-self.q_range[0], 0), 2**self.bits - 1)

    @property
    def q_dtype(self) -> jnp.dtype:
        """Of the integers: the narrowest of whole bytes."""
        return jnp.dtype(f"{'' if self.signed else 'u'}int{16 if self.bits > 8 else 8}")

    @property
    def name(self) -> str:
        affine = "" if self.symmetric == self.signed else " affine" if self.signed else " symmetric"
        return f"{'' if self.signed else 'u'}int{self.bits}{affine}{' narrow' if self.narrow_range else ''}"

    def own_range(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the range (low, high) to cover where no calibration is given: all values but NaN.

        Of signed symmetric levels minus and plus the largest magnitude, which is all that their scale depends on.
        """
        if not (self.symmetric and self.signed):
            return super().own_range(x, axes)
        # One pass over the values; a minimum and a maximum are two, and a copy without NaN before them.
        largest = jnp.max(jax.lax.select(x == x, jnp.abs(x), jnp.zeros_like(x)), axes, keepdims=True, initial=0.0)
        return -largest, largest

    def scale_and_zero_point(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return the scale (`scale_dtype`) and zero point (int32; int16 in groups) that cover ``[low, high]`` and zero.

        A range of zero width has scale 1: all its values are 0. Zero points have the scale's shape; where they are all zero and
        there are groups, one element.
        """
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        q_low, q_high = self.q_range
        width = high - low if not self.symmetric else jnp.maximum(-low, high) if self.signed else high
        # A product: compilers make one of a division by a constant, so that jit and eager would differ in the last bit.
        width = width.astype(jnp.float32)
        wanted = jax.lax.select(width == 0, jnp.ones_like(width), width * (1 / self.steps))
        scale = storable(wanted, self.scale_dtype, self.reach)
        if self.symmetric:
            return scale, self._no_zero_point(scale) if self.group_size else jnp.zeros(scale.shape, jnp.int32)
        zero_point = jnp.clip(jnp.round(-low / scale.astype(jnp.float32)) + q_low, q_low, q_high)
        return scale, zero_point.astype(jnp.int16 if self.group_size and self.bits <= 8 else jnp.int32)

    def to_codes(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return ``clip(round(x / scale) + zero_point)``; halves round to even, NaN becomes the zero point; see `in_steps`."""
        # Few operations, none of them a call: this is most of what a quantized training step has to compile.
        steps = in_steps(x, scale)
        if self.is_full:  # the end of the range is half-way between two levels: last bits must not choose
            steps = jax.lax.select(steps <= -self.steps * (1 - _NEAR), jnp.full_like(steps, self.q_range[0]), steps)
        steps = jax.lax.round(steps, jax.lax.RoundingMethod.TO_NEAREST_EVEN)
        steps = jax.lax.select(steps == steps, steps, jnp.zeros_like(steps))
        steps = steps if self.symmetric else steps + zero_point
        low, high = (jnp.float32(bound) for bound in self.q_range)
        return jax.lax.clamp(low, steps, high).astype(self.q_dtype)

    def from_codes(self, qvalue: Array, scale: Array, zero_point: Array) -> Array:
        return (qvalue.astype(jnp.int32) - zero_point).astype(jnp.float32) * scale.astype(jnp.float32)

    def covers(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return which values are at most half a step beyond the lowest and highest level."""
        place, (low, high) = in_steps(x, scale) + zero_point, self.q_range
        # The end of a full range is half a step beyond a level: it is covered, however the product is rounded.
        half = 0.5 + self.reach * _NEAR if self.is_full else 0.5
        return (low - half <= place) & (place <= high + half)

    def zero_code(self, zero_point: Array) -> Array:
        return zero_point.astype(self.q_dtype)

    def to_bits(self, qvalue: Array) -> Array:
        unsigned = jax.lax.bitcast_convert_type(qvalue.astype(self.q_dtype), self._words)
        return unsigned - self._lowest

    def from_bits(self, codes: Array) -> Array:
        # In the width of the codes, where the sum may wrap: a pass over bytes, which runs before every product of integers.
        return jax.lax.bitcast_convert_type(codes.astype(self._words) + self._lowest, self.q_dtype)

    @property
    def _words(self) -> jnp.dtype:
        return jnp.dtype(f"uint{8 * self.q_dtype.itemsize}")

    @property
    def _lowest(self) -> np.ndarray:
        """The lowest integer, as the word of the same bits."""
        return np.array(self.q_range[0], self.q_dtype).view(self._words)
