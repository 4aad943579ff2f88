"""Arrays in a number format: `QArray`, `quantize`, `dequantize`, and `fake`, which shows what they will give. No trees here."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast, overload

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.errors import is_traced
from lepton_jax.core.packed import Coded, register_packed
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.typing import Array
from lepton_jax.formats import layout
from lepton_jax.formats.base import Format, rounded
from lepton_jax.formats.codebook import Codebook, k_means
from lepton_jax.formats.ranges import Calibration
from lepton_jax.formats.uniform import Uniform
from lepton_jax.leaves.bits import pack_bits, unpack_bits
from lepton_jax.leaves.codebook import CodebookArray, coded


@register_packed("words", "scale", "zero_point")
class QArray(Coded):
    """An array in a number format; of integers, ``x = (qvalue - zero_point) * scale``.

    Args:
      words: the codes, packed to `bits` bits each; see `pack_bits`.
      scale: in the format's layout and `scale_dtype`; see `Format.scale_shape`.
      zero_point: integers of the scale's shape; where all are zero, one may stand for all.
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
    format: Format
    shape: tuple[int, ...]
    output_dtype: str

    @classmethod
    def from_qvalue(cls, qvalue: Array, scale: Array, zero_point: Array, fmt: Format, dtype: Any) -> QArray:
        """Pack codes.

        Args:
          qvalue: as `Format.to_codes` gives them, in the dense shape.
          scale: in the format's layout; rounded to its `scale_dtype`.
          zero_point: integers, likewise; or of size 1 in every axis.
          fmt: the number format.
          dtype: the dense leaf's.

        Raises:
          ValueError: for scales of another layout, or that are zero or not finite.
        """
        expected, found = fmt.scale_shape(qvalue.shape), (jnp.shape(scale), jnp.shape(zero_point))
        if found[0] != expected or found[1] not in (expected, (1,) * qvalue.ndim):
            raise ValueError(
                f"QArray: scale and zero point must have the shape {expected}, which {fmt} gives an array of shape "
                f"{qvalue.shape}; got {found[0]} and {found[1]}. See `calibrated`, or Format.scale_shape."
            )
        scale = rounded(jnp.asarray(scale), fmt.scale_dtype)
        if fmt.has_zero:  # without one, an array of zeros has the scale 0
            check_scale(scale)
        return _packed(qvalue, scale, jnp.asarray(zero_point), fmt, dtype)

    @property
    def qvalue(self) -> Array:
        """The codes in the dense shape: integers (int8, uint8, int16, uint16), floats of 8 bits, or places in a table."""
        return _unpacked(self.words, self.format, self.shape)

    def unpack(self) -> Array:
        return dequantize(self)

    def masked(self, mask: Array) -> QArray:
        zero = self.format.zero_code(layout.expand(self.zero_point, self.shape, self.format))
        return _packed(jnp.where(mask, self.qvalue, zero), self.scale, self.zero_point, self.format, self.dtype)


def _packed(qvalue: Array, scale: Array, zero_point: Array, fmt: Format, dtype: Any) -> QArray:
    return QArray(_words(qvalue, fmt), scale, zero_point, fmt, qvalue.shape, jnp.dtype(dtype).name)


# One program an array, where there is no jit around, in place of one an operation; inlined where there is.
_program = partial(jax.jit, inline=True)


@partial(_program, static_argnames="fmt")
def _words(qvalue: Array, fmt: Format) -> Array:
    return pack_bits(fmt.to_bits(qvalue), fmt.bits)


@partial(_program, static_argnames=("fmt", "shape"))
def _unpacked(words: Array, fmt: Format, shape: tuple[int, ...]) -> Array:
    return fmt.from_bits(unpack_bits(words, fmt.bits, math.prod(shape)).reshape(shape))


@partial(_program, static_argnames=("fmt", "dtype"))
def _values(qvalue: Array, scale: Array, zero_point: Array, fmt: Format, dtype: Any) -> Array:
    return fmt.from_codes(qvalue, *_expanded(qvalue.shape, scale, zero_point, fmt)).astype(dtype)


@partial(_program, static_argnames="fmt")
def _codes(x: Array, scale: Array, zero_point: Array, fmt: Format) -> Array:
    return fmt.to_codes(x.astype(jnp.float32), *_expanded(x.shape, scale, zero_point, fmt))


def check_scale(scale: Array) -> None:
    """Raise unless every scale is finite and not zero. What is traced passes.

    Raises:
      ValueError: says how many are not.
    """
    if is_traced(scale) or not scale.size:
        return
    values = np.asarray(scale, np.float32)
    wrong = int(np.count_nonzero(~np.isfinite(values) | (values == 0)))
    if wrong:
        raise ValueError(
            f"every scale must be finite and not zero; {wrong} of {scale.size} are not (in {scale.dtype}, as they are stored). "
            "Calibrate on finite values, or give `scale_dtype` more range."
        )


def calibrated(x: Array, fmt: Format, calibration: Calibration | None = None) -> tuple[Array, Array]:
    """Return scale and zero point for one array, in the format's layout.

    Args:
      x: floating array of any shape.
      fmt: the number format.
      calibration: finds the range to cover; None: the format's own (`MinMax`; the mean magnitude of `Binary` and `Ternary`).

    Raises:
      ValueError: if the array has not the axes that the format names, or an axis is shorter than a group.

    Example:
      >>> x = jnp.array([[1.0, 2.0, 7.0, 14.0, 21.0]])
      >>> calibrated(x, Uniform(bits=2, group_size=2, group_axis=1))[0].tolist()
      [[2.0, 14.0, 21.0]]
    """
    return _calibrated(x, fmt) if calibration is None else _covering(x, fmt, calibration)


def _covering(x: Array, fmt: Format, calibration: Calibration | None) -> tuple[Array, Array]:
    ranges = [
        tuple(bound.reshape(part.shape) for bound in _range(part, fmt, calibration)) for part in layout.parts(_finite(x), fmt)
    ]
    if len(ranges) == 1:
        return fmt.scale_and_zero_point(*ranges[0])
    axis = layout.grouped_axis(x.shape, fmt)
    low, high = (jnp.concatenate(bounds, axis) for bounds in zip(*ranges))
    return fmt.scale_and_zero_point(low, high)


@partial(_program, static_argnames="fmt")
def _calibrated(x: Array, fmt: Format) -> tuple[Array, Array]:
    return _covering(x, fmt, None)


def _range(part: layout.Part, fmt: Format, calibration: Calibration | None) -> tuple[Array, Array]:
    if calibration is None:
        return fmt.own_range(part.values, part.axes)
    return calibration(part.values, part.axes, fmt)


def _finite(x: Array) -> Array:
    """Return `x` in float32, infinities as the largest number of its own dtype; NaN is left to the calibration."""
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -largest, largest).astype(jnp.float32)


@overload
def quantize(x: Array, fmt: Format, calibration: Calibration | None = None) -> QArray: ...


@overload
def quantize(x: Array, fmt: Codebook, calibration: None = None) -> CodebookArray: ...


def quantize(x: Array, fmt: Format | Codebook, calibration: Calibration | None = None) -> QArray | CodebookArray:
    """Quantize an array: calibrate, round, pack.

    Args:
      x: floating array of any shape.
      fmt: the number format; or a codebook, which is found by k-means.
      calibration: finds the range to cover; None: the format's own, see `calibrated`.

    Returns:
      packed leaf of the same shape and dtype.

    Raises:
      TypeError: for what is no number format, or an array that is not of floats.
      ValueError: if the array has not the axes that the format names, or an axis is shorter than a group.

    Example:
      >>> q = quantize(jnp.array([0.0, 1.0, 2.0, 3.0]), Uniform(bits=2, symmetric=False))
      >>> q.qvalue.tolist(), q.scale.tolist(), dequantize(q).tolist()
      ([0, 1, 2, 3], [1.0], [0.0, 1.0, 2.0, 3.0])

    Source: Jacob et al. 2018, "Quantization and training of neural networks", equation 1.
    """
    if not isinstance(fmt, (Format, Codebook)):
        raise TypeError(f"quantize: takes a number format, e.g. Uniform(bits=4); got {fmt!r}.")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"quantize: takes an array of floats; got {x.dtype}, shape {x.shape}. Cast it first.")
    if isinstance(fmt, Codebook):
        if calibration is not None:
            raise TypeError(f"quantize: a codebook is found by k-means and takes no calibration; got {calibration}.")
        table, places = k_means(x.astype(jnp.float32), fmt.centroids)
        return coded(fmt, table, places, x.dtype)
    scale, zero_point = calibrated(x, fmt, calibration)
    return _packed(_codes(x, scale, zero_point, fmt), scale, zero_point, fmt, x.dtype)


def dequantize(q: QArray | CodebookArray) -> Array:
    """Return the values in the dense leaf's dtype, computed in float32; of integers, ``(qvalue - zero_point) * scale``.

    Example:
      >>> dequantize(quantize(jnp.array([-1.0, 1.0]), Uniform(bits=8))).tolist()
      [-1.0, 1.0]
    """
    if isinstance(q, CodebookArray):
        return q.unpack()
    return _values(q.qvalue, q.scale, q.zero_point, q.format, q.dtype)


def fake(x: Array, fmt: Format, scale: Array, zero_point: Array) -> Array:
    """Return `x` as it will be once quantized, with the gradient of `x`: what every view of quantized values is made of.

    ``dequantize(QArray.from_qvalue(fmt.to_codes(x, ...), scale, zero_point, fmt, x.dtype))`` equals it bit for bit. Scale and
    zero point get no gradient.

    Args:
      x: floating array.
      fmt: the number format.
      scale: in its layout, see `calibrated`; rounded to its `scale_dtype`.
      zero_point: integers, likewise.

    Example:
      >>> x, fmt = jnp.array([0.4, 1.6]), Uniform(bits=4)
      >>> fake(x, fmt, jnp.array([0.5]), jnp.array([0])).tolist()
      [0.5, 1.5]
    """
    held, scale = jax.lax.stop_gradient((x.astype(jnp.float32), rounded(scale, fmt.scale_dtype)))
    scale, zero_point = _expanded(x.shape, scale, zero_point, fmt)
    codes = fmt.to_codes(held, scale, zero_point)
    return straight_through(x, fmt.from_codes(codes, scale, zero_point).astype(x.dtype))


def _expanded(shape: tuple[int, ...], scale: Array, zero_point: Array, fmt: Format) -> tuple[Array, Array]:
    return layout.expand(scale.astype(jnp.float32), shape, fmt), layout.expand(zero_point, shape, fmt)


def to_integers(x: Array, scale: Array, zero_point: Array, fmt: Uniform) -> Array:
    """Return ``clip(round(x / scale) + zero_point)``, int32; halves round to even, NaN becomes the zero point."""
    return fmt.to_codes(x, layout.expand(scale, x.shape, fmt), layout.expand(zero_point, x.shape, fmt)).astype(jnp.int32)


def from_integers(q: Array, scale: Array, zero_point: Array, dtype: Any) -> Array:
    """Return ``(q - zero_point) * scale``, computed in float32; scale and zero point must broadcast."""
    return cast(Array, ((q.astype(jnp.int32) - zero_point).astype(jnp.float32) * scale).astype(dtype))
