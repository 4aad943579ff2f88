"""Quantizers of the values in a graph: with ranges found anew each time, or once and for all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.straight_through import slope_where
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.formats import Format, Uniform, layout
from lepton_jax.formats.ranges import Calibration
from lepton_jax.formats.ranges.base import Range, check_calibration
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.leaves.rounding import fake

_INT8 = Uniform(8)
Slope = Literal["clipped", "straight_through"]


class ActivationQuantizer(Protocol):
    """Rounds an operand of an operation, in training and in simulation, and gives its codes for native execution.

    What it keeps for one operand, a *site*, is a tree of float arrays: nothing if ranges are found anew each time, a scale if
    they are calibrated, a step if it is learned. An attribute `calibration` says how ranges are calibrated; `MinMax` if there
    is none. A method ``slope(x, site)``, if there is one, returns x as it is with the derivative of calling: then native
    execution needs no simulation.
    """

    @property
    def format(self) -> Format:
        """The number format."""

    def init(self, low: Array, high: Array) -> PyTree:
        """Return the site for a calibrated range, in the format's scale layout; a tree without leaves if none is needed."""

    def __call__(self, x: Array, site: Any) -> Array:
        """Return x rounded, of the same shape and dtype; with derivatives with respect to x and the site."""

    def quantized(self, x: Array, site: Any) -> QArray | Quantized:
        """Return the codes, which are read back as what calling shows, bit for bit."""


@checked_but("format", "calibration")
@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Round with a range found anew each time: that of the values themselves.

    In a symmetric format a NaN makes all that shares its range NaN: a diverging run shows it, as it would without rounding.

    Args:
      format: the number format.
      calibration: finds the range; None: the format's own.
      axes: which axes one range spans; None: as the format says. See `Rule.free_axes`.
      gradient: "clipped": none for values that a calibrated range clips; "straight_through": of all values.

    Raises:
      TypeError: for what is no number format, or no calibration.

    Example:
      >>> Dynamic(Uniform(2))(jnp.array([0.4, 1.5]), {}).tolist()
      [0.0, 1.0]
    """

    format: Format = _INT8
    calibration: Calibration | None = None
    axes: tuple[int, ...] | None = None
    gradient: Slope = "clipped"

    def __post_init__(self) -> None:
        check("Dynamic", self.format, self.calibration, self.gradient)

    def init(self, low: Array, high: Array) -> dict[str, Array]:
        """Return the empty site."""
        return {}

    def __call__(self, x: Array, site: Mapping[str, Array]) -> Array:
        return fake(self.slope(x, site), self.format, *self._grid(x))

    def slope(self, x: Array, site: Mapping[str, Array]) -> Array:
        """Return x, with the derivative of calling."""
        # The format's own range clips nothing.
        return x if self.calibration is None or self.gradient != "clipped" else clipped(x, self.format, *self._grid(x))

    def quantized(self, x: Array, site: Mapping[str, Array]) -> Quantized:
        """Return the codes, which are read back as what calling shows."""
        return coded(x, self.format, *self._grid(x))

    def _grid(self, x: Array) -> tuple[Array, Array]:
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        find: Callable[..., Range] = _magnitudes if self._is_by_magnitude else self.format.own_range
        find = find if self.calibration is None else self.calibration
        more = () if self.calibration is None else (self.format,)
        ranges = [find(part.values, part.axes, *more) for part in spans(x, self.format, self.axes)]
        return self.format.scale_and_zero_point(*joined(ranges, x.shape, self.format, self.axes))

    @property
    def _is_by_magnitude(self) -> bool:
        return isinstance(self.format, Uniform) and self.format.symmetric and bool(self.format.signed)


def _magnitudes(x: Array, axes: tuple[int, ...]) -> Range:
    """The range of symmetric levels, in one pass. NaN stays NaN."""
    largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0.0)
    return -largest, largest


@checked_but("format", "calibration")
@dataclasses.dataclass(frozen=True)
class Static:
    """Round with a calibrated range; the site has ``scale`` and, in an affine format, ``zero_point`` (whole numbers).

    Neither is trained. Values beyond the range are clipped, and get no gradient; the others get it straight through.

    Args:
      format: the number format.
      calibration: finds the range over batches; None: everything (`MinMax`).
      gradient: "clipped", or "straight_through": values beyond the range get it, too.

    Raises:
      TypeError: for what is no number format, or no calibration.

    Example:
      >>> quantizer = Static(Uniform(2))
      >>> site = quantizer.init(jnp.array([0.0]), jnp.array([1.5]))
      >>> site["scale"].tolist(), quantizer(jnp.array([0.4, 9.0]), site).tolist()
      ([1.0], [0.0, 1.0])
    """

    format: Format = _INT8
    calibration: Calibration | None = None
    gradient: Slope = "clipped"

    def __post_init__(self) -> None:
        check("Static", self.format, self.calibration, self.gradient)

    def init(self, low: Array, high: Array) -> dict[str, Array]:
        """Return the site for a calibrated range."""
        scale, zero_point = (part.astype(jnp.float32) for part in self.format.scale_and_zero_point(low, high))
        return {"scale": scale} if self.format.symmetric else {"scale": scale, "zero_point": zero_point}

    def __call__(self, x: Array, site: Mapping[str, Array]) -> Array:
        return fake(self.slope(x, site), self.format, *self._grid(site))

    def slope(self, x: Array, site: Mapping[str, Array]) -> Array:
        """Return x, with the derivative of calling."""
        return clipped(x, self.format, *self._grid(site)) if self.gradient == "clipped" else x

    def quantized(self, x: Array, site: Mapping[str, Array]) -> Quantized:
        """Return the codes, which are read back as what calling shows."""
        return coded(x, self.format, *self._grid(site))

    def _grid(self, site: Mapping[str, Array]) -> tuple[Array, Array]:
        scale = jax.lax.stop_gradient(site["scale"])
        if self.format.symmetric:
            return scale, jnp.zeros((1,) * scale.ndim, jnp.int32)
        return scale, jax.lax.stop_gradient(site["zero_point"]).astype(jnp.int32)


def check(name: str, fmt: Any, calibration: Any, gradient: Any) -> None:
    """Raise unless a format is a number format, a calibration, if there is one, is one, and the gradient is one of two.

    Example:
      >>> check("Dynamic", Uniform(4), None, "clipped")
    """
    if not isinstance(fmt, Format):
        raise TypeError(f"{name}: format must be a number format, e.g. Uniform(bits=8); got {fmt!r}.")
    check_calibration(name, calibration)
    if gradient not in get_args(Slope):
        raise ValueError(f'{name}: gradient must be "clipped" or "straight_through"; got {gradient!r}.')


def clipped(x: Array, fmt: Format, scale: Array, zero_point: Array) -> Array:
    """Return x, with a derivative only where the format covers it.

    Args:
      x: floating array.
      fmt: the number format.
      scale: in its layout, or of any that broadcasts if it has no groups.
      zero_point: likewise.

    Example:
      >>> jax.grad(lambda x: jnp.sum(clipped(x, Uniform(2), jnp.ones(1), jnp.zeros(1))))(jnp.array([-3.0, 0.2, 1.4])).tolist()
      [0.0, 1.0, 1.0]
    """
    return slope_where(fmt.covers(*_held(x, fmt, *jax.lax.stop_gradient((scale, zero_point)))), x)


def coded(x: Array, fmt: Format, scale: Array, zero_point: Array) -> Quantized:
    """Return the codes of an array as an operand of native operations.

    Args:
      x: floating array.
      fmt: the number format.
      scale: in its layout, or of any that broadcasts if it has no groups.
      zero_point: likewise.
    """
    scale = scale.astype(fmt.scale_dtype)
    kept = () if fmt.symmetric else zero_point.astype(jnp.int32)
    return Quantized(fmt.to_codes(*_held(x, fmt, scale, zero_point)), scale, kept, fmt, x.dtype.name)


def _held(x: Array, fmt: Format, scale: Array, zero_point: Array) -> tuple[Array, Array, Array]:
    """The values as constants, and the scale and zero point of each, as formats take them."""
    wide_scale, wide_zero = (layout.expand(part, x.shape, fmt) for part in (scale.astype(jnp.float32), zero_point))
    return jax.lax.stop_gradient(x).astype(jnp.float32), wide_scale, wide_zero


def spans(x: Array, fmt: Format, axes: tuple[int, ...] | None) -> tuple[layout.Part, ...]:
    """Return the parts of an array that have ranges of their own, and the axes that one range spans.

    Args:
      x: the array.
      fmt: says where its scales are;
      axes: or, if not None, these axes have one range.
    """
    if axes is None:
        return layout.parts(x, fmt)
    return (layout.Part(x, axes, tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))),)


def joined(ranges: Sequence[Range], shape: tuple[int, ...], fmt: Format, axes: tuple[int, ...] | None) -> Range:
    """Return the ranges of the parts of an array as one, in the scale layout.

    Args:
      ranges: of the parts that `spans` gives.
      shape: of the array.
      fmt: as there.
      axes: as there.
    """
    if axes is not None:
        [(low, high)] = ranges
        return low, high
    whole = fmt.scale_shape(shape)
    if len(ranges) == 1:
        [(low, high)] = ranges
        return low.reshape(whole), high.reshape(whole)
    axis = layout.grouped_axis(shape, fmt)
    # The last group is shorter, and a part of its own.
    shapes = [(*whole[:axis], count, *whole[axis + 1 :]) for count in (whole[axis] - 1, 1)]
    low, high = (jnp.concatenate([b.reshape(s) for b, s in zip(bounds, shapes)], axis) for bounds in zip(*ranges))
    return low, high
