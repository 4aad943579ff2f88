"""The array mathematics of uniform quantization: formats, `QArray`, `quantize`, `dequantize`. No trees here."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from lepton_jax.errors import check_whole
from lepton_jax.packed import Coded, pack_bits, register_packed, unpack_bits
from lepton_jax.quantization.calibrate import Calibration, MinMax
from lepton_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Evenly spaced levels: ``x = (q - zero_point) * scale``.

    Symmetric: ``q`` in ``[-(2**(b-1) - 1), 2**(b-1) - 1]``, zero point 0. Affine: ``q`` in ``[0, 2**b - 1]``, zero point
    inside, so that 0 is exact in both.

    Args:
      bits: 2 to 8.
      symmetric: levels symmetric about zero, or a range of their own (affine).
      channel_axis: the axis whose every index has a scale of its own; None: one scale a tensor.

    Raises:
      ValueError: for bits outside 2 to 8.

    Example:
      >>> quantize(jnp.array([-1.0, 0.0, 0.5, 1.0]), Uniform(bits=2)).qvalue.tolist()
      [-1, 0, 0, 1]
    """

    bits: int = 8
    symmetric: bool = True
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        check_whole("Uniform: bits", self.bits, 2, 8)

    @property
    def q_range(self) -> tuple[int, int]:
        """The lowest and highest integer."""
        high = 2 ** (self.bits - 1) - 1
        return (-high, high) if self.symmetric else (0, 2**self.bits - 1)

    def scale_and_zero_point(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return the scale (float32) and zero point (int32) that cover ``[low, high]`` and zero.

        A range of zero width has scale 1: all its values are 0.
        """
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        q_low, q_high = self.q_range
        width = jnp.maximum(-low, high) if self.symmetric else high - low
        levels = q_high if self.symmetric else q_high - q_low
        # A product: compilers make one of a division by a constant, so that jit and eager would differ in the last bit.
        scale = jnp.where(width > 0, width * (1 / levels), 1).astype(jnp.float32)
        # A range too narrow for float32 would have a scale of zero.
        scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
        if self.symmetric:
            return scale, jnp.zeros(scale.shape, jnp.int32)
        return scale, jnp.clip(jnp.round(-low / scale), q_low, q_high).astype(jnp.int32)


@register_packed("words", "scale", "zero_point")
class QArray(Coded):
    """A quantized array: ``x = (qvalue - zero_point) * scale``.

    Args:
      words: the integers less their format's lowest, packed to `bits` bits each; see `pack_bits`.
      scale: float32; 1 in every axis but the channel's.
      zero_point: int32, of the scale's shape; zeros if symmetric.
      format: the number format.
      shape: the dense leaf's.
      output_dtype: the dense leaf's dtype.

    Example:
      >>> q = quantize(jnp.array([-1.5, 0.0, 3.0]), Uniform(bits=4))
      >>> q.qvalue.tolist(), q.words.size, q.unpack().shape
      ([-4, 0, 7], 2, (3,))
    """

    words: Array
    scale: Array
    zero_point: Array
    format: Uniform
    shape: tuple[int, ...]
    output_dtype: str

    @classmethod
    def from_qvalue(cls, qvalue: Array, scale: Array, zero_point: Array, fmt: Uniform, dtype: jnp.dtype) -> QArray:
        """Pack integers."""
        words = pack_bits((qvalue - fmt.q_range[0]).astype(jnp.uint8), fmt.bits)
        return cls(words, scale, zero_point, fmt, qvalue.shape, jnp.dtype(dtype).name)

    @property
    def qvalue(self) -> Array:
        """The integers in the dense shape: int8 if symmetric, uint8 if affine."""
        low = self.format.q_range[0]
        codes = unpack_bits(self.words, self.format.bits, self.size).reshape(self.shape)
        return (codes.astype(jnp.int16) + low).astype(jnp.int8 if self.format.symmetric else jnp.uint8)

    def unpack(self) -> Array:
        return dequantize(self)

    def masked(self, mask: Array) -> QArray:
        zero = self.zero_point.astype(self.qvalue.dtype)
        qvalue = jnp.where(mask, self.qvalue, zero)
        return QArray.from_qvalue(qvalue, self.scale, self.zero_point, self.format, self.dtype)


def to_integers(x: Array, scale: Array, zero_point: Array, fmt: Uniform) -> Array:
    """Return ``clip(round(x / scale) + zero_point)``, int32; halves round to even, NaN becomes the zero point."""
    q_low, q_high = fmt.q_range
    steps = jnp.nan_to_num(jnp.round(x.astype(jnp.float32) / scale), nan=0.0)
    return jnp.clip(steps + zero_point, q_low, q_high).astype(jnp.int32)


def from_integers(q: Array, scale: Array, zero_point: Array, dtype: jnp.dtype) -> Array:
    """Return ``(q - zero_point) * scale``, computed in float32."""
    return ((q.astype(jnp.int32) - zero_point).astype(jnp.float32) * scale).astype(dtype)


def calibrated(x: Array, fmt: Uniform, calibration: Calibration) -> tuple[Array, Array]:
    """Return scale and zero point for one array, with all axes kept."""
    axis = fmt.channel_axis
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"Uniform: channel_axis={axis} is out of range for an array of shape {x.shape}.")
    axes = tuple(i for i in range(x.ndim) if axis is None or i != axis % x.ndim)
    return fmt.scale_and_zero_point(*calibration(x.astype(jnp.float32), axes))


def quantize(x: Array, fmt: Uniform, calibration: Calibration = MinMax()) -> QArray:
    """Quantize an array: calibrate, round, pack.

    Args:
      x: floating array of any shape.
      fmt: the number format.
      calibration: finds the range to cover.

    Returns:
      packed leaf of the same shape and dtype.

    Raises:
      ValueError: for a channel axis that the array does not have.

    Example:
      >>> q = quantize(jnp.array([0.0, 1.0, 2.0, 3.0]), Uniform(bits=2, symmetric=False))
      >>> q.qvalue.tolist(), q.scale.tolist(), dequantize(q).tolist()
      ([0, 1, 2, 3], [1.0], [0.0, 1.0, 2.0, 3.0])

    Source: Jacob et al. 2018, "Quantization and training of neural networks", equation 1.
    """
    scale, zero_point = calibrated(x, fmt, calibration)
    return QArray.from_qvalue(to_integers(x, scale, zero_point, fmt), scale, zero_point, fmt, x.dtype)


def dequantize(q: QArray) -> Array:
    """Return ``(qvalue - zero_point) * scale`` in the dense leaf's dtype.

    Example:
      >>> dequantize(quantize(jnp.array([-1.0, 1.0]), Uniform(bits=8))).tolist()
      [-1.0, 1.0]
    """
    return from_integers(q.qvalue, q.scale, q.zero_point, q.dtype)
