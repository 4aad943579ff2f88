"""Where the scales of an array are: one a tensor, one a channel, or one for each group of neighbours along an axis.

A scale has as many axes as its array. Without groups it has size 1 in every axis but the channels'. With groups, runs of
`group_size` indices along one axis share a scale, and every index of every other axis has scales of its own; the last group may
be shorter than the others.
"""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array

ChannelAxis = int | tuple[int, ...] | Literal["out"] | None
"""The axis, or axes, whose every index has a scale of its own; "out": those of the output channels."""


class Granular:
    """What of a format says where its scales are.

    Attributes:
      channel_axis: the axis, or axes, with one scale an index; "out": the output channels', as `Format.at` finds them, or else
        the last.
      group_size: how many neighbours share a scale.
      group_axis: along which axis groups run.
      short_groups: whether an axis may be shorter than one group.
    """

    channel_axis: ChannelAxis
    group_size: int | None
    group_axis: int | None
    short_groups: ClassVar[bool] = False


class Part(NamedTuple):
    """A part of an array, and the axes that one scale spans there.

    Args:
      values: the part; where groups are reduced, they are an axis of their own.
      axes: to reduce over, and keep at size 1.
      shape: of the part's scales.
    """

    values: Array
    axes: tuple[int, ...]
    shape: tuple[int, ...]


def channel_axes(ndim: int, fmt: Granular) -> tuple[int, ...]:
    """Return the axes whose every index has a scale of its own, counted from the front.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> [channel_axes(3, Uniform(channel_axis=axis)) for axis in (None, -1, "out", (0, -1))]
      [(), (2,), (2,), (0, 2)]
    """
    given = fmt.channel_axis
    if given is None:
        return ()
    if given == "out":
        return (ndim - 1,) if ndim else ()
    return tuple(sorted(axis % ndim for axis in (given if isinstance(given, tuple) else (given,))))


def problem(shape: tuple[int, ...], fmt: Granular) -> str | None:
    """Say what is wrong with a format for arrays of this shape, and what to do; None if nothing is.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> problem((8, 3), Uniform(bits=4, group_size=16))
      'group_size=16 is larger than axis 0 of an array of shape (8, 3); write 8 or less, or deselect it'
    """
    ndim, given = len(shape), fmt.channel_axis
    named = given if isinstance(given, tuple) else (given,) if isinstance(given, int) else ()
    if (given == "out" and not ndim) or any(not -ndim <= axis < ndim for axis in named):
        return f"channel_axis={given} is out of range for an array of shape {shape}" + _choice(ndim)
    if len(set(channel_axes(ndim, fmt))) < len(named):
        return f"channel_axis={given} names an axis of an array of shape {shape} twice"
    if fmt.group_size is None:
        return None
    axis = fmt.group_axis
    if not ndim or (axis is not None and not -ndim <= axis < ndim):
        wrong = "groups need an axis" if axis is None else f"group_axis={axis} is out of range"
        return f"{wrong} for an array of shape {shape}" + _choice(ndim)
    axis = grouped_axis(shape, fmt)
    if fmt.group_size > shape[axis] > 0 and not fmt.short_groups:
        return (
            f"group_size={fmt.group_size} is larger than axis {axis} of an array of shape {shape}; "
            f"write {shape[axis]} or less, or deselect it"
        )
    return None


def _choice(ndim: int) -> str:
    return f"; write -{ndim} to {ndim - 1}, or deselect it" if ndim else "; deselect it, or take a format of one scale a tensor"


def grouped_axis(shape: tuple[int, ...], fmt: Granular) -> int:
    """Return the axis along which groups run, 0 or more.

    Unless it is given, the axis before the last (the inputs of an (in, out) kernel); the last if that one is `channel_axis`.
    """
    ndim = len(shape)
    if fmt.group_axis is not None:
        return fmt.group_axis % ndim
    before = max(ndim - 2, 0)
    return ndim - 1 if channel_axes(ndim, fmt) == (before,) else before


@checked
def scale_shape(shape: tuple[int, ...], fmt: Granular) -> tuple[int, ...]:
    """Return the shape of the scales of an array.

    Raises:
      ValueError: if the array has not the axes that the format names, or an axis is shorter than a group.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> scale_shape((70, 8), Uniform(channel_axis=-1)), scale_shape((70, 8), Uniform(group_size=32))
      ((1, 8), (3, 8))
    """
    wrong = problem(shape, fmt)
    if wrong is not None:
        raise ValueError(f"{type(fmt).__name__}: {wrong}.")
    if fmt.group_size is None:
        axes = channel_axes(len(shape), fmt)
        return tuple(length if i in axes else 1 for i, length in enumerate(shape))
    axis = grouped_axis(shape, fmt)
    return (*shape[:axis], -(-shape[axis] // fmt.group_size), *shape[axis + 1 :])


def parts(x: Array, fmt: Granular) -> tuple[Part, ...]:
    """Return the parts of an array whose ranges, joined along the grouped axis, are those of the array.

    There are two where a last group is shorter than the others: each is reduced whole, nothing is padded.
    """
    shape = scale_shape(x.shape, fmt)
    if fmt.group_size is None:
        own = channel_axes(x.ndim, fmt)
        axes = tuple(i for i in range(x.ndim) if i not in own)
        return (Part(x, axes, shape),)
    axis, length = grouped_axis(x.shape, fmt), x.shape[grouped_axis(x.shape, fmt)]
    size = min(fmt.group_size, max(length, 1))
    whole = length // size * size
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    first, rest = jnp.split(x, [whole], axis=axis)
    out = (Part(first.reshape(*before, whole // size, size, *after), (axis + 1,), (*before, whole // size, *after)),)
    return out if whole == length else (*out, Part(rest, (axis,), (*before, 1, *after)))


@checked
def expand(scale: Array, shape: tuple[int, ...], fmt: Granular) -> Array:
    """Repeat scales over their groups, so that they broadcast against the array; without groups, they are returned as they are.

    Args:
      scale: in the format's layout; or of size 1 in every axis.
      shape: the array's.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> expand(jnp.array([1.0, 2.0]), (5,), Uniform(group_size=3)).tolist()
      [1.0, 1.0, 1.0, 2.0, 2.0]
    """
    if fmt.group_size is None or not shape:
        return scale
    axis = grouped_axis(shape, fmt)
    length, groups = shape[axis], scale.shape[axis]
    if groups in (1, length):
        return scale
    before, after = scale.shape[:axis], scale.shape[axis + 1 :]
    wide = jnp.broadcast_to(jnp.expand_dims(scale, axis + 1), (*before, groups, fmt.group_size, *after))
    wide = wide.reshape(*before, groups * fmt.group_size, *after)
    return jax.lax.slice_in_dim(wide, 0, length, axis=axis)
