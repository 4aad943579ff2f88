"""Arrays rounded to a number format: ranges to scales, values to codes and back. No leaves here, no trees."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.typing import Array
from lepton_jax.formats import layout
from lepton_jax.formats.base import Format, rounded
from lepton_jax.formats.ranges import Calibration
from lepton_jax.formats.uniform import Uniform

# One program an array, where there is no jit around, in place of one an operation; inlined where there is.
program = partial(jax.jit, inline=True)


@checked
def calibrated(x: Array, fmt: Format, calibration: Calibration | None = None) -> tuple[Array, Array]:
    """Return scale and zero point for one array, in the format's layout.

    Args:
      x: floating array of any shape.
      fmt: the number format.
      calibration: finds the range to cover; None: the format's own (`MinMax`; the mean magnitude of `Binary` and `Ternary`).

    Raises:
      ValueError: if the array has not the axes that the format names, or an axis is shorter than a group.

    Example:
      >>> x = jnp.array([[1.0, 1.5, 7.0, 15.0, 21.0]])
      >>> calibrated(x, Uniform(bits=2, group_size=2, group_axis=1))[0].tolist()
      [[1.0, 10.0, 14.0]]
    """
    return _calibrated(x, fmt) if calibration is None else _covering(x, fmt, calibration)


def _covering(x: Array, fmt: Format, calibration: Calibration | None) -> tuple[Array, Array]:
    parts = layout.parts(_finite(x, fmt), fmt)
    ranges = [tuple(bound.reshape(part.shape) for bound in _range(part, fmt, calibration)) for part in parts]
    if len(ranges) == 1:
        return fmt.scale_and_zero_point(*ranges[0])
    axis = layout.grouped_axis(x.shape, fmt)
    low, high = (jnp.concatenate(bounds, axis) for bounds in zip(*ranges))
    return fmt.scale_and_zero_point(low, high)


@partial(program, static_argnames="fmt")
def _calibrated(x: Array, fmt: Format) -> tuple[Array, Array]:
    return _covering(x, fmt, None)


def _range(part: layout.Part, fmt: Format, calibration: Calibration | None) -> tuple[Array, Array]:
    if calibration is None:
        return fmt.own_range(part.values, part.axes)
    return calibration(part.values, part.axes, fmt)


def _finite(x: Array, fmt: Format) -> Array:
    """Return `x` in float32, infinities as the largest number of its own dtype; NaN is left to the calibration.

    Where the lowest level lies beyond the range, as the largest number for which that level is a number of the dtype, too.
    """
    largest = float(jnp.finfo(x.dtype).max)
    if isinstance(fmt, Uniform):
        largest *= min(fmt.steps / fmt.reach, 1)
    return jnp.clip(x, -largest, largest).astype(jnp.float32)


@partial(program, static_argnames="fmt")
def codes_of(x: Array, scale: Array, zero_point: Array, fmt: Format) -> Array:
    """Return the codes of an array, given scale and zero point in the format's layout."""
    return fmt.to_codes(x.astype(jnp.float32), *_expanded(x.shape, scale, zero_point, fmt))


@partial(program, static_argnames=("fmt", "dtype"))
def values_of(codes: Array, scale: Array, zero_point: Array, fmt: Format, dtype: Any) -> Array:
    """Return the values of codes, computed in float32."""
    return fmt.from_codes(codes, *_expanded(codes.shape, scale, zero_point, fmt)).astype(dtype)


@checked
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


@checked
def to_integers(x: Array, scale: Array, zero_point: Array, fmt: Uniform) -> Array:
    """Return ``clip(round(x / scale) + zero_point)``, int32; halves round to even, NaN becomes the zero point.

    Example:
      >>> to_integers(jnp.array([0.4, 1.6]), jnp.array([0.5]), jnp.array([0]), Uniform(4)).tolist()
      [1, 3]
    """
    return fmt.to_codes(x, layout.expand(scale, x.shape, fmt), layout.expand(zero_point, x.shape, fmt)).astype(jnp.int32)


def _expanded(shape: tuple[int, ...], scale: Array, zero_point: Array, fmt: Format) -> tuple[Array, Array]:
    return layout.expand(scale.astype(jnp.float32), shape, fmt), layout.expand(zero_point, shape, fmt)


@checked
def from_integers(q: Array, scale: Array, zero_point: Array, dtype: Any) -> Array:
    """Return ``(q - zero_point) * scale``, computed in float32; scale and zero point must broadcast.

    Example:
      >>> from_integers(jnp.array([1, 3]), jnp.array([0.5]), jnp.array([0]), "float32").tolist()
      [0.5, 1.5]
    """
    return ((q.astype(jnp.int32) - zero_point).astype(jnp.float32) * scale).astype(dtype)
