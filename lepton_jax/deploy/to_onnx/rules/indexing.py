"""Look-ups and updates at indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lepton_jax.deploy.to_onnx.exporter import Exporter, Unsupported, array_of
from lepton_jax.deploy.to_onnx.rules.elementwise import Rule, dtype_of, where
from lepton_jax.deploy.to_onnx.rules.shapes import cut
from lepton_jax.deploy.to_onnx.tensors import Dims, Tensor, inverse, is_int, same
from lepton_jax.graph.trace import Equation
from lepton_jax.leaves.form import Native

_CHECKED = jax.lax.GatherScatterMode.FILL_OR_DROP
_PROMISED = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where windows of an array are: the indices of each, and whether all of it is within.

    Args:
      index: int64, (batch axes, places of a window, one for each indexed axis); or an array of it.
      inside: boolean, of the batch axes; or an array of it; () if that need not be looked at.
    """

    index: Any
    inside: Any


def starts_of(to: Exporter, indices: Any) -> Any:
    """Starts of windows as int64."""
    indices = to.whole(indices)
    return to.cast(indices, np.int64)


def places(to: Exporter, starts: Any, axes: Sequence[int], sizes: Sequence[int], shape: Dims, mode: Any) -> Places:
    """Find every element of windows.

    Args:
      to: the exporter.
      starts: (batch axes, one for each of `axes`), int64.
      axes: of the array, that are indexed.
      sizes: of the windows along them.
      shape: of the array.
      mode: what to do with windows that are not all within.
    """
    limits = [shape[axis] - size for axis, size in zip(axes, sizes)]
    batch = tuple(starts.shape[:-1])
    inside: Any = ()
    if array_of(starts) is not None and all(map(is_int, limits)):
        last = np.asarray(limits, np.int64)
        inside = np.all((starts >= 0) & (starts <= last), -1) if mode == _CHECKED else ()
        inside = () if not isinstance(inside, tuple) and inside.all() else inside
        clipped: Any = np.clip(starts, 0, last)
        offsets = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).astype(np.int64)
        lead = clipped.reshape(*batch, *[1] * len(sizes), len(axes))
        return Places(index=lead + offsets, inside=inside)
    name = to.name_of(starts)
    last_name = to.file.shape(limits)
    if mode == _CHECKED:
        low = to.file.op("GreaterOrEqual", name, to.file.const(np.int64(0)))
        high = to.file.op("LessOrEqual", name, last_name)
        both = to.file.cast(to.file.op("And", low, high), np.int32)
        all_of = to.file.op("ReduceMin", both, to.file.ints([-1]), keepdims=0)
        inside = Tensor(to.file.cast(all_of, np.bool_), batch, np.dtype(bool))
    # Also where indices are promised to be within: XLA takes the nearest element, engines end with an error.
    name = to.file.op("Min", to.file.op("Max", name, to.file.const(np.int64(0))), last_name)
    window = tuple(int(size) for size in sizes)
    shape_of = (*batch, *window, len(axes))
    if math.prod(window) == 1:
        name = to.file.reshape(name, shape_of)
    else:
        offsets = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).astype(np.int64)
        lead = to.file.reshape(name, (*batch, *[1] * len(window), len(axes)))
        name = to.file.op("Add", lead, to.file.const(offsets))
    return Places(index=Tensor(name, shape_of, np.dtype(np.int64)), inside=inside)


def _gather(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    operand, indices = values
    if isinstance(operand, Native):
        operand = to.opened(operand)
    numbers, sizes, mode = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.params["mode"]
    shape, axes = eqn.in_avals[0].shape, tuple(numbers.start_index_map)
    batching = tuple(numbers.operand_batching_dims)
    rest = [a for a in range(len(shape)) if a not in axes and a not in batching]
    starts = starts_of(to, indices)
    lead = [a for a in range(len(starts.shape) - 1) if a not in numbers.start_indices_batching_dims]
    if batching:
        order = (*numbers.start_indices_batching_dims, *lead, len(starts.shape) - 1)
        starts = _moved(to, starts, order)
    # Axes of the operand in the order in which they are looked up: batching ones, indexed ones, whole ones.
    if any(not same(sizes[a], shape[a]) for a in rest):
        stops = [sizes[a] if a in rest else shape[a] for a in range(len(shape))]
        operand = cut(to, operand, [0] * len(shape), stops)
    windows = [sizes[a] for a in axes]
    found = places(to, starts, axes, windows, shape, mode)
    batch = tuple(starts.shape[:-1])
    simple = axes == tuple(numbers.collapsed_slice_dims) and len(axes) == 1 and not batching and windows == [1]
    if simple:
        axis = axes[0]
        index = found.index
        flat = index.reshape(batch) if not isinstance(index, Tensor) else to.file.reshape(index.name, batch)
        name = flat if isinstance(flat, str) else to.file.const(flat)
        out = to.file.op("Gather", to.name_of(operand), name, axis=axis)
        labels = [*(("rest", a) for a in rest if a < axis), *(("lead", i) for i in range(len(batch)))]
        labels += [("rest", a) for a in rest if a > axis]
    else:
        arranged = _moved(to, to.whole(operand), (*batching, *axes, *rest))
        index_name = to.name_of(found.index)
        out = to.file.op("GatherND", to.name_of(arranged), index_name, batch_dims=len(batching))
        labels = [("lead", i) for i in range(len(batch))] + [("window", a) for a in axes] + [("rest", a) for a in rest]
        gone = [place for place, (kind, a) in enumerate(labels) if kind == "window" and a in numbers.collapsed_slice_dims]
        if gone:
            out = to.file.op("Squeeze", out, to.file.ints(gone))
            labels = [label for place, label in enumerate(labels) if place not in gone]
    if batching:  # their batch axes stand where the indices had them
        seats = (*numbers.start_indices_batching_dims, *lead)
        labels = [("lead", seats[a]) if kind == "lead" else (kind, a) for kind, a in labels]
    out_shape = tuple(eqn.out_avals[0].shape)
    leads = iter(sorted(a for kind, a in labels if kind == "lead"))
    kept = iter(sorted(a for kind, a in labels if kind != "lead"))
    kinds = {a: kind for kind, a in labels if kind != "lead"}
    wanted = []
    for axis in range(len(out_shape)):
        if axis in numbers.offset_dims:
            place = next(kept)
            wanted.append((kinds[place], place))
        else:
            wanted.append(("lead", next(leads)))
    result = to.result(eqn, out, order=tuple(labels.index(label) for label in wanted))
    return [_filled(to, eqn, result, found.inside, numbers, [a for k, a in labels if k == "lead"])]


def _moved(to: Exporter, value: Any, axes: Sequence[int]) -> Any:
    """A value with its axes in another order."""
    if not isinstance(value, Tensor):
        return np.asarray(value).transpose(axes)
    return Tensor(to.physical(value, inverse(tuple(axes))), tuple(value.shape[a] for a in axes), value.dtype)


def _filled(to: Exporter, eqn: Equation, out: Tensor, inside: Any, numbers: Any, seats: Sequence[int]) -> Any:
    """A look-up with what stands for elements that are not there."""
    if isinstance(inside, tuple):
        return out
    dtype, given = dtype_of(eqn), eqn.params["fill_value"]
    if given is None:
        if np.issubdtype(dtype, np.integer):
            info = np.iinfo(dtype)
            given = info.min if np.issubdtype(dtype, np.signedinteger) else info.max
        else:
            given = True if dtype.kind == "b" else np.nan
    inside = _moved(to, inside, [seats.index(a) for a in sorted(seats)]) if len(seats) > 1 else inside
    axes = [a for a in range(out.ndim) if a in numbers.offset_dims]
    shape = tuple(1 if a in axes else n for a, n in enumerate(out.shape))
    if isinstance(inside, Tensor):
        name = to.file.op("Unsqueeze", inside.name, to.file.ints(axes)) if axes else inside.name
        mask: Any = Tensor(name, out.shape, np.dtype(bool), held=shape)
    else:
        mask = np.asarray(inside).reshape(shape)
    return replace(where(to, mask, out, np.asarray(given, dtype)), shape=out.shape)


def _dynamic_slice(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    operand, *starts = values
    sizes, shape = eqn.params["slice_sizes"], eqn.in_avals[0].shape
    axes = [a for a in range(len(shape)) if not same(sizes[a], shape[a])]
    value = operand if isinstance(operand, Tensor) and operand.is_full else to.whole(operand)
    value = value if isinstance(value, Tensor) else Tensor(to.file.const(value), value.shape, value.dtype)
    if not axes:
        return [value]
    begin = _clipped(to, [starts[a] for a in axes], [shape[a] - sizes[a] for a in axes])
    end = to.file.op("Add", begin, to.file.shape([sizes[a] for a in axes]))
    name = to.file.op("Slice", value.name, begin, end, to.file.ints([value.order[a] for a in axes]))
    return [to.result(eqn, name, order=value.order)]


def _clipped(to: Exporter, starts: Sequence[Any], lasts: Sequence[Any]) -> str:
    """Starts within bounds, as one vector."""
    parts = [to.file.reshape(to.name_of(to.cast(to.whole(start), np.int64)), (1,)) for start in starts]
    begin = to.file.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
    return to.file.op("Min", to.file.op("Max", begin, to.file.const(np.int64(0))), to.file.shape(lasts))


def _dynamic_update(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    operand, update, *starts = values
    shape, sizes = eqn.in_avals[0].shape, eqn.in_avals[1].shape
    axes = [a for a in range(len(shape)) if not same(sizes[a], shape[a])]
    if not axes:
        return [update]
    if len(axes) == 1:
        [axis] = axes
        begin = _clipped(to, [starts[axis]], [shape[axis] - sizes[axis]])
        end = to.file.op("Add", begin, to.file.dim(sizes[axis]))
        whole, place = to.name_of(operand), to.file.ints([axis])
        before = to.file.op("Slice", whole, to.file.ints([0]), begin, place)
        after = to.file.op("Slice", whole, end, to.file.dim(shape[axis]), place)
        return [to.result(eqn, to.file.op("Concat", before, to.name_of(update), after, axis=axis))]
    begin = _clipped(to, [starts[a] for a in axes], [shape[a] - sizes[a] for a in axes])
    vector = Tensor(begin, (len(axes),), np.dtype(np.int64))
    found = places(to, vector, axes, [sizes[a] for a in axes], shape, _PROMISED)
    rest = [a for a in range(len(shape)) if a not in axes]
    updates = _moved(to, to.whole(update), (*axes, *rest))
    return [_put(to, eqn, operand, axes, rest, found.index, updates, "none")]


def _put(
    to: Exporter, eqn: Equation, operand: Any, axes: Sequence[int], rest: Sequence[int], index: Any, updates: Any, how: str
) -> Tensor:
    """Write updates at indices along axes."""
    order = (*axes, *rest)
    dtype = dtype_of(eqn)
    work = to.worked(to.whole(operand))
    if dtype.kind == "b":
        work = to.cast(work, np.int32)
    arranged = _moved(to, work, order)
    given = to.name_of(to.cast(updates, work.dtype))
    name = to.file.op("ScatterND", to.name_of(arranged), to.name_of(index), given, reduction=how)
    held = tuple(arranged.shape)
    out = Tensor(name, held, work.dtype)
    shape = tuple(eqn.out_avals[0].shape)
    return to.cast(replace(out, shape=shape, order=inverse(order), held=shape), dtype)


def _scatter(how: str) -> Rule:
    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        operand, indices, updates = values
        numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
        if numbers.operand_batching_dims:
            raise Unsupported("with batching axes")
        shape, axes = eqn.in_avals[0].shape, tuple(numbers.scatter_dims_to_operand_dims)
        update_shape = eqn.in_avals[2].shape
        windows = iter(numbers.update_window_dims)
        along = {a: next(windows) for a in range(len(shape)) if a not in numbers.inserted_window_dims}
        sizes = [update_shape[along[a]] if a in along else 1 for a in range(len(shape))]
        rest = [a for a in range(len(shape)) if a not in axes]
        if any(not same(sizes[a], shape[a]) for a in rest):
            raise Unsupported("of windows that are not whole along an axis without an index")
        lead = [a for a in range(len(update_shape)) if a not in numbers.update_window_dims]
        updates = _moved(to, to.whole(updates), (*lead, *(along[a] for a in (*axes, *rest) if a in along)))
        lead_shape = tuple(update_shape[a] for a in lead)
        wanted = (*lead_shape, *(sizes[a] for a in axes), *(shape[a] for a in rest))
        if len(wanted) != len(updates.shape):
            updates = _reshaped(to, updates, wanted)
        found = places(to, starts_of(to, indices), axes, [sizes[a] for a in axes], shape, mode)
        if isinstance(found.inside, tuple):
            return [_put(to, eqn, operand, axes, rest, found.index, updates, how)]
        return [_dropped(to, eqn, operand, axes, rest, found, updates, how)]

    return rule


def _dropped(to: Exporter, eqn: Equation, operand: Any, axes: Any, rest: Any, found: Places, updates: Any, how: str) -> Any:
    """Updates that are not all within go to an element beyond the end, which is cut off."""
    shape = eqn.in_avals[0].shape
    first = axes[0]
    whole = to.whole(operand)
    pads = [0] * (2 * len(shape))
    pads[len(shape) + first] = 1
    was_bool = whole.dtype == bool
    work = to.worked(to.cast(whole, np.int32) if was_bool else whole)
    fill = to.file.const(np.zeros((), work.dtype))
    longer = tuple(n + 1 if a == first else n for a, n in enumerate(shape))
    padded = Tensor(to.file.op("Pad", to.name_of(work), to.file.ints(pads), fill), longer, work.dtype)
    index = to.name_of(found.index)
    inside = found.inside
    extra = len(found.index.shape) - len(inside.shape)
    mask = to.file.op("Unsqueeze", to.name_of(inside), to.file.ints(range(len(inside.shape), len(inside.shape) + extra)))
    column = np.arange(len(axes)) == 0
    beyond = to.file.op("Mul", to.file.const(column.astype(np.int64)), to.file.dim(shape[first]))
    moved = to.file.op("Where", mask, index, beyond)
    order = (*axes, *rest)
    arranged = _moved(to, padded, order)
    given = to.name_of(to.cast(updates, work.dtype))
    name = to.file.op("ScatterND", arranged.name, moved, given, reduction=how)
    out = Tensor(name, longer, work.dtype, inverse(order))
    return to.cast(cut(to, out, [0] * len(shape), shape), dtype_of(eqn))


def _reshaped(to: Exporter, value: Any, shape: Dims) -> Any:
    if not isinstance(value, Tensor):
        return np.asarray(value).reshape(shape)
    return Tensor(to.file.reshape(to.name_of(value), shape), shape, value.dtype)


INDEXING: dict[str, Rule] = {
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "scatter": _scatter("none"),
    "scatter_add": _scatter("add"),
    "scatter-add": _scatter("add"),
    "scatter-mul": _scatter("mul"),
    "scatter_mul": _scatter("mul"),
    "scatter-min": _scatter("min"),
    "scatter_min": _scatter("min"),
    "scatter-max": _scatter("max"),
    "scatter_max": _scatter("max"),
}
