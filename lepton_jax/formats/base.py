"""What every number format has."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.formats import layout
from lepton_jax.formats.statistics import extremes

_SCALES = ("float32", "float16", "bfloat16")


# Its reciprocal is a normal float32, too.
_LARGEST_SCALE = 2.0**125


class Format(layout.Granular):
    """A number format: how an array of floats is written in few bits, and where its scales are.

    Frozen, hashable, and static in a pytree. An array is calibrated (`scale_and_zero_point` of a range), coded (`to_codes`) and
    read back (`from_codes`); the stored codes are unsigned integers of `bits` bits (`to_bits`, `from_bits`).

    Args:
      channel_axis: the axis, or axes, whose every index has a scale of its own; None: one scale a tensor; "out": the output
        channels, by the use of the leaf where it is known (see `at`), or else the last axis.
      group_size: how many neighbours share a scale; None: no groups. The last group of an axis may be shorter.
      group_axis: along which axis groups run; None: the inputs, by the use of the leaf where it is known, or else the axis
        before the last, or the last if that one is `channel_axis`.
      scale_dtype: of the stored scales: float32, float16 or bfloat16.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> format = Uniform(bits=4, channel_axis=-1, group_size=32)
      >>> isinstance(format, Format), format.bits, format.scale_shape((64, 10))
      (True, 4, (2, 10))
    """

    scale_dtype: str

    number: ClassVar[int]
    """Its number in files, for good; of another package's, none: its arrays cannot be stored."""
    scale_dtypes: ClassVar[tuple[str, ...]] = _SCALES
    """What `scale_dtype` may be."""
    has_zero: ClassVar[bool] = True
    """Whether 0 is one of its values."""
    is_integer: ClassVar[bool] = False
    """Whether ``x = (qvalue - zero_point) * scale`` with integers, so that dots can be of integers."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        channel, group = self.channel_axis, self.group_axis
        if not (channel in (None, "out") or _is_axis(channel) or (isinstance(channel, tuple) and all(map(_is_axis, channel)))):
            raise TypeError(f"{name}: channel_axis must be a whole number, several, 'out' or None; got {channel!r}.")
        if not (group is None or _is_axis(group)):
            raise TypeError(f"{name}: group_axis must be a whole number or None; got {group!r}.")
        if self.group_size is not None:
            check_whole(f"{name}: group_size", self.group_size, 1)
        elif self.group_axis is not None:
            raise ValueError(f"{name}: group_axis={self.group_axis} needs a group_size, how many neighbours share a scale.")
        if self.scale_dtype not in self.scale_dtypes:
            raise ValueError(f"{name}: scale_dtype must be one of {', '.join(self.scale_dtypes)}; got {self.scale_dtype!r}.")

    @property
    def bits(self) -> int:
        """Width of a stored code."""
        raise TypeError(f"{type(self).__name__} does not say how wide its codes are")

    @property
    def largest(self) -> float:
        """The largest magnitude of a value, at scale 1."""
        return 1

    @property
    def quiet_code(self) -> int:
        """The stored code that most often means zero; a number that is no code where there is none."""
        return 0

    @property
    def symmetric(self) -> bool:
        """Whether zero points are all zero."""
        return True

    @property
    def name(self) -> str:
        """A short name for tables: 'int4', 'nf4'."""
        raise TypeError(f"{type(self).__name__} has no name")

    def at(self, axes: WeightAxes | None) -> Self:
        """Return the format for a leaf whose axes are known: "out" and groups are found, stacked weights stay apart.

        Every stacked weight has scales of its own, also where there is one scale a tensor.

        Args:
          axes: of the leaf; None: not known, and "out" is the last.

        Example:
          >>> from lepton_jax.formats import Uniform
          >>> axes = WeightAxes(stacked=(0,), inputs=(2,), outputs=(1,))
          >>> Uniform(4, channel_axis="out").at(axes).channel_axis, Uniform(4, group_size=32).at(axes).group_axis
          ((0, 1), 2)
        """
        if axes is None:  # where Flax has the outputs
            return dataclasses.replace(self, channel_axis=-1) if self.channel_axis == "out" else self  # type: ignore[type-var]
        found = axes.channels if self.channel_axis == "out" else (*axes.stacked, *layout.channel_axes(axes.ndim, self))
        channel: Any = tuple(sorted(set(found)))
        # One axis that is the last is written -1, so that equal formats are equal.
        channel = None if not channel else channel if len(channel) > 1 else -1 if channel[0] == axes.ndim - 1 else channel[0]
        new: Self = dataclasses.replace(self, channel_axis=channel)  # type: ignore[type-var]
        if self.group_size is None:
            return new
        # Groups part every other axis anyhow.
        new = dataclasses.replace(self, channel_axis=-1 if self.channel_axis == "out" else self.channel_axis)  # type: ignore[type-var]
        summed = axes.inputs or axes.spatial
        if self.group_axis is not None or not summed or layout.grouped_axis((1,) * axes.ndim, new) == summed[-1]:
            return new
        return dataclasses.replace(new, group_axis=summed[-1])  # type: ignore[type-var]

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the scales of an array of this shape; see `layout.scale_shape`."""
        return layout.scale_shape(shape, self)

    def own_range(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the range (low, high) to cover where no calibration is given, with `axes` kept: all values but NaN."""
        return extremes(x, axes)

    def scale_and_zero_point(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return scales (`scale_dtype`, positive and finite) and zero points (integers) that cover ``[low, high]`` and zero.

        By default the larger magnitude of the bounds is shown as the largest value; an empty range has scale 1.
        """
        width = jnp.maximum(-jnp.minimum(low, 0), jnp.maximum(high, 0))
        scale = storable(jnp.where(width > 0, width * (1 / self.largest), 1), self.scale_dtype, self.largest)
        return scale, self._no_zero_point(scale)

    def to_codes(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return the nearest codes of an array, given the expanded scale and zero point; NaN is coded as zero."""
        raise TypeError(f"{type(self).__name__} does not say how it codes")

    def from_codes(self, qvalue: Array, scale: Array, zero_point: Array) -> Array:
        """Return the values of codes, float32, given the expanded scale and zero point; by default ``qvalue * scale``."""
        return qvalue.astype(jnp.float32) * scale.astype(jnp.float32)

    def covers(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return which values lie within the range of the levels, boolean, given the expanded scale and zero point.

        What does not is clipped. NaN lies in no range.
        """
        return jnp.abs(in_steps(x, scale)) <= self.largest

    def zero_code(self, zero_point: Array) -> Array:
        """Return the code of 0."""
        raise TypeError(f"{type(self).__name__} does not say how zero is coded")

    def to_bits(self, qvalue: Array) -> Array:
        """Return codes as unsigned integers below ``2**bits``."""
        return qvalue

    def from_bits(self, codes: Array) -> Array:
        """Undo `to_bits`."""
        return codes

    def _no_zero_point(self, scale: Array) -> Array:
        return jnp.zeros((1,) * scale.ndim, jnp.int32)


def _is_axis(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def storable(scale: Array, dtype: str, level: float) -> Array:
    """Round scales to the dtype in which they are stored, positive and finite.

    Neither becomes 0 what is too small for the dtype (or for a normal float32), nor does ``level * scale`` overflow float32.
    """
    info = jnp.finfo(dtype)
    low = max(float(info.smallest_subnormal), float(np.finfo(np.float32).tiny))
    high = min(float(info.max), float(np.finfo(np.float32).max) / level * (1 - float(info.eps)), _LARGEST_SCALE)
    return rounded(jax.lax.clamp(jnp.float32(low), scale.astype(jnp.float32), jnp.float32(high)), dtype)


def in_steps(x: Array, scale: Array) -> Array:
    """Return ``x * (1 / scale)``, float32.

    The reciprocal is written out: a compiler that sees that many elements share a scale takes it by itself, and where it does
    not see it divides, so that the same array would have other codes in another program.
    """
    return x.astype(jnp.float32) * (1 / scale.astype(jnp.float32))


def rounded(scale: Array, dtype: str) -> Array:
    """Return scales in the dtype in which they are stored, and keep compilers from taking back the rounding."""
    if scale.dtype == dtype:
        return scale
    return jax.lax.optimization_barrier(scale.astype(dtype))
