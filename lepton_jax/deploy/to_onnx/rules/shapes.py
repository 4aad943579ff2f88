"""Operations that move elements, or make them from nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_jax.deploy.to_onnx.exporter import Exporter, Unsupported, is_whole
from lepton_jax.deploy.to_onnx.rules.elementwise import Rule
from lepton_jax.deploy.to_onnx.tensors import Spread, Tensor, inverse, is_int, same
from lepton_jax.graph.trace import Equation
from lepton_jax.leaves.form import Native

_SMALL = 1 << 12


def _broadcast(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    value, shape, axes = to.dense(values[0]), tuple(eqn.out_avals[0].shape), eqn.params["broadcast_dimensions"]
    missing = [axis for axis in range(len(shape)) if axis not in axes]
    if not isinstance(value, Tensor):
        array = value.array if isinstance(value, Spread) else np.asarray(value)
        array = array.reshape([array.shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(shape))])
        small = all(map(is_int, shape)) and math.prod(shape) <= max(_SMALL, array.size)
        return [np.broadcast_to(array, shape) if small else Spread(array, shape)]
    held = [value.held[axes.index(axis)] if axis in axes else 1 for axis in range(len(shape))]
    if list(axes) != sorted(axes):
        raise Unsupported("axes out of order")
    plain = to.plain(value)
    name = to.file.op("Unsqueeze", plain.name, to.file.ints(missing)) if missing else plain.name
    return [to.result(eqn, name, held=tuple(held))]


def _transpose(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    value, perm = values[0], eqn.params["permutation"]
    if isinstance(value, Tensor):
        order, held = (tuple(of[axis] for axis in perm) for of in (value.order, value.held))
        return [to.result(eqn, value.name, order=order, held=held)]
    return [Spread(value.array.transpose(perm), tuple(eqn.out_avals[0].shape))] if isinstance(value, Spread) else None


def _reshape(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    value, shape = values[0], tuple(eqn.out_avals[0].shape)
    if isinstance(value, Native):
        return None
    if isinstance(value, Tensor) and is_whole(value, shape):
        return [value]
    whole = to.whole(value)
    if not isinstance(whole, Tensor):
        raise Unsupported("of a constant to symbolic lengths")
    return [to.result(eqn, to.file.reshape(whole.name, shape))]


def _concatenate(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    parts = [value for value in values if not any(is_int(dim) and dim == 0 for dim in value.shape)]
    return [to.result(eqn, to.file.op("Concat", *map(to.name_of, parts), axis=eqn.params["dimension"]))]


def _stack(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    axis = eqn.params["axis"]
    parts = [to.file.op("Unsqueeze", to.name_of(value), to.file.ints([axis])) for value in values]
    return [to.result(eqn, to.file.op("Concat", *parts, axis=axis))]


def _tile(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    return [to.result(eqn, to.file.op("Tile", to.name_of(values[0]), to.file.shape(eqn.params["reps"])))]


def _split(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    outs = to.file.op("Split", to.name_of(values[0]), to.file.shape(sizes), outputs=len(sizes), axis=axis)
    return [to.result(eqn, name, index) for index, name in enumerate(outs if len(sizes) > 1 else [outs])]


def cut(to: Exporter, value: Any, starts: Sequence[Any], limits: Sequence[Any], strides: Sequence[int] | None = None) -> Any:
    """A slice of a value, its transposes put off."""
    value = value if isinstance(value, Tensor) and value.is_full else to.whole(value)
    if not isinstance(value, Tensor):
        value = Tensor(to.file.const(value), value.shape, value.dtype)
    steps = strides or (1,) * value.ndim
    axes = [
        axis
        for axis, (start, limit, step) in enumerate(zip(starts, limits, steps))
        if not (same(start, 0) and same(limit, value.shape[axis]) and step == 1)
    ]
    if not axes:
        return value
    bounds = [to.file.shape([of[axis] for axis in axes]) for of in (starts, limits)]
    places = to.file.ints([value.order[axis] for axis in axes])
    name = to.file.op("Slice", value.name, *bounds, places, to.file.ints([steps[axis] for axis in axes]))
    shape = tuple(-(-(limit - start) // step) for start, limit, step in zip(starts, limits, steps))
    return Tensor(name, shape, value.dtype, value.order)


def _slice(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    if isinstance(values[0], Native):
        return None
    params = eqn.params
    return [cut(to, values[0], params["start_indices"], params["limit_indices"], params["strides"])]


def _reverse(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    axes = list(eqn.params["dimensions"])
    last, before = [-1] * len(axes), [-(2**62)] * len(axes)
    given = [to.file.ints(one) for one in (last, before, axes, last)]
    return [to.result(eqn, to.file.op("Slice", to.name_of(values[0]), *given))]


def padded(to: Exporter, value: Tensor, config: Sequence[tuple[int, int, int]], fill: Any) -> Tensor:
    """A value with `fill` (low, high, between) along each axis; negative numbers take away.

    Args:
      to: the exporter.
      value: full.
      config: for each axis.
      fill: a scalar.
    """
    for axis, (_, _, between) in enumerate(config):
        if between:
            value = _spaced(to, value, axis, between, fill)
    sizes = [(max(low, 0), max(high, 0)) for low, high, _ in config]
    back = inverse(value.order)
    pads = [sizes[axis][side] for side in (0, 1) for axis in back]
    if any(pads):
        shape = tuple(n + low + high for n, (low, high) in zip(value.shape, sizes))
        value = Tensor(to.file.op("Pad", value.name, to.file.ints(pads), fill), shape, value.dtype, value.order)
    starts = [max(-low, 0) for low, _, _ in config]
    limits = [n - max(-high, 0) for n, (_, high, _) in zip(value.shape, config)]
    return cut(to, value, starts, limits)


def _spaced(to: Exporter, value: Tensor, axis: int, between: int, fill: Any) -> Tensor:
    value = to.plain(value)
    shape = list(value.shape)
    pads = to.file.ints([0] * (len(shape) + 1) + [0] * (axis + 1) + [between] + [0] * (len(shape) - axis - 1))
    name = to.file.op("Pad", to.file.op("Unsqueeze", value.name, to.file.ints([axis + 1])), pads, fill)
    shape[axis] = shape[axis] * (between + 1)
    value = Tensor(to.file.reshape(name, tuple(shape)), tuple(shape), value.dtype)
    limits = [n - between if place == axis else n for place, n in enumerate(shape)]
    return cut(to, value, [0] * len(shape), limits)


def _pad(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    value, fill = values
    value = value if isinstance(value, Tensor) and value.is_full else to.whole(value)
    if not isinstance(value, Tensor):
        value = Tensor(to.file.const(value), value.shape, value.dtype)
    was_bool = value.dtype == bool
    if was_bool:
        value, fill = to.cast(value, np.int32), to.cast(fill, np.int32)
    out = padded(to, value, eqn.params["padding_config"], to.name_of(fill))
    return [to.cast(replace(out, shape=tuple(eqn.out_avals[0].shape), held=()), np.bool_ if was_bool else out.dtype)]


def counted(to: Exporter, length: Any, dtype: Any) -> str:
    """The name of the vector 0, 1, 2 ... of a length."""
    if is_int(length):
        return to.file.const(np.arange(length), dtype)
    end = to.file.op("Squeeze", to.file.dim(length))
    return to.file.cast(to.file.op("Range", to.file.const(np.int64(0)), end, to.file.const(np.int64(1))), dtype)


def _iota(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    axis, shape = eqn.params["dimension"], tuple(eqn.out_avals[0].shape)
    vector = counted(to, shape[axis], eqn.params["dtype"])
    others = [other for other in range(len(shape)) if other != axis]
    name = to.file.op("Unsqueeze", vector, to.file.ints(others)) if others else vector
    held = tuple(n if place == axis else 1 for place, n in enumerate(shape))
    return [to.result(eqn, name, held=held)]


def _length(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    name = to.file.op("Squeeze", to.file.dim(eqn.params["dim"]))
    return [to.result(eqn, to.file.cast(name, eqn.out_avals[0].dtype))]


def _squeeze(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    value, gone = values[0], eqn.params["dimensions"]
    if not isinstance(value, Tensor):
        return _reshape(to, eqn, values)
    kept = [axis for axis in range(value.ndim) if axis not in gone]
    name = to.file.op("Squeeze", value.name, to.file.ints(sorted(value.order[axis] for axis in gone)))
    order = tuple(int(place) for place in np.argsort(np.argsort([value.order[axis] for axis in kept])))
    return [to.result(eqn, name, order=order, held=tuple(value.held[axis] for axis in kept))]


SHAPES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _reshape,
    "concatenate": _concatenate,
    "stack": _stack,
    "tile": _tile,
    "split": _split,
    "slice": _slice,
    "rev": _reverse,
    "pad": _pad,
    "iota": _iota,
    "dim_as_value": _length,
}
