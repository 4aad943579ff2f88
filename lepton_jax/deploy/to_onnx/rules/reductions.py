"""Sums, extremes, running sums, sorting: operations along axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_jax.deploy.to_onnx.exporter import Exporter, Unsupported
from lepton_jax.deploy.to_onnx.rules.elementwise import Rule, dtype_of
from lepton_jax.deploy.to_onnx.rules.shapes import cut
from lepton_jax.deploy.to_onnx.tensors import Tensor
from lepton_jax.graph.trace import Equation


def _numbers(to: Exporter, value: Any) -> Any:
    """A value in a type with which engines compute, booleans as numbers."""
    return to.cast(value, np.int32) if value.dtype == bool else to.worked(value)


def reduced(to: Exporter, kind: str, value: Any, axes: Sequence[int], dtype: Any, *, keepdims: bool = False) -> Tensor:
    """Reduce a value along axes, its transposes put off."""
    value = value if isinstance(value, Tensor) and value.is_full else to.whole(value)
    if not isinstance(value, Tensor):
        value = Tensor(to.file.const(value), value.shape, value.dtype)
    work = _numbers(to, value)
    places = sorted(value.order[axis] for axis in axes)
    name = to.file.op(kind, work.name, to.file.ints(places), keepdims=int(keepdims))
    kept = [axis for axis in range(value.ndim) if keepdims or axis not in axes]
    order = tuple(int(place) for place in np.argsort(np.argsort([value.order[axis] for axis in kept])))
    shape = tuple(1 if axis in axes else value.shape[axis] for axis in kept)
    return to.cast(Tensor(name, shape, work.dtype, order), dtype)


def _reduction(kind: str) -> Rule:
    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        return [reduced(to, kind, values[0], eqn.params["axes"], dtype_of(eqn))]

    return rule


def _best(kind: str) -> Rule:
    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        [axis] = eqn.params["axes"]
        name = to.file.op(kind, _numbers(to, to.whole(values[0])).name, axis=axis, keepdims=0)
        return [to.result(eqn, to.file.cast(name, eqn.params["index_dtype"]))]

    return rule


def _cumsum(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    value = _numbers(to, to.whole(values[0]))
    axis = to.file.const(np.int64(eqn.params["axis"]))
    out = replace(value, name=to.file.op("CumSum", value.name, axis, reverse=int(eqn.params["reverse"])))
    return [to.cast(out, dtype_of(eqn))]


def _running(kind: str) -> Rule:
    """By doubling: every element takes in its neighbour at distance 1, 2, 4, ..."""

    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        value, axis = to.worked(to.whole(values[0])), eqn.params["axis"]
        length, distance = value.shape[axis], 1
        while distance < length:
            kept, moved = [0] * value.ndim, list(value.shape)
            head_stop, tail_start = list(value.shape), [0] * value.ndim
            if eqn.params["reverse"]:
                tail_start[axis], head_stop[axis] = length - distance, length
                kept[axis] = distance
                shifted, other = cut(to, value, kept, moved), cut(to, value, [0] * value.ndim, _at(moved, axis, -distance))
                rest = cut(to, value, tail_start, head_stop)
                parts = (to.elementwise(kind, [other, shifted], value.dtype), rest)
            else:
                shifted = cut(to, value, [0] * value.ndim, _at(moved, axis, -distance))
                kept[axis], head_stop[axis] = distance, distance
                other, rest = cut(to, value, kept, moved), cut(to, value, [0] * value.ndim, head_stop)
                parts = (rest, to.elementwise(kind, [other, shifted], value.dtype))
            name = to.file.op("Concat", *map(to.name_of, parts), axis=axis)
            value, distance = replace(value, name=name), distance * 2
        return [to.cast(value, dtype_of(eqn))]

    return rule


def _at(shape: Sequence[Any], axis: int, change: int) -> list[Any]:
    return [n + change if place == axis else n for place, n in enumerate(shape)]


def _top_k(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    params, value = eqn.params, to.worked(to.whole(values[0]))
    axis = params.get("axis", params.get("reduction_dimension", -1))
    largest = int(params.get("is_max_k", True))
    best, places = to.file.op("TopK", value.name, to.file.ints([params["k"]]), outputs=2, axis=axis, largest=largest)
    best = to.file.cast(best, eqn.out_avals[0].dtype)
    return [to.result(eqn, best), to.result(eqn, to.file.cast(places, eqn.out_avals[1].dtype), 1)]


def _sort(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    axis, keys = eqn.params["dimension"], eqn.params["num_keys"]
    columns = [_numbers(to, to.whole(value)) for value in values]
    names = [to.name_of(column) for column in columns]
    order = ""
    for key in reversed(range(keys)):  # by the last key first: each sort keeps the order of equals
        length = to.file.dim(eqn.in_avals[0].shape[axis])
        _, places = to.file.op("TopK", names[key], length, outputs=2, axis=axis, largest=0)
        names = [to.file.op("GatherElements", name, places, axis=axis) for name in names]
        order = places
    if not order:
        raise Unsupported("without a key")
    return [
        to.result(eqn, name if column.dtype == aval.dtype else to.file.cast(name, aval.dtype), index)
        for index, (name, column, aval) in enumerate(zip(names, columns, eqn.out_avals))
    ]


REDUCTIONS: dict[str, Rule] = {
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
    "reduce_and": _reduction("ReduceMin"),
    "reduce_or": _reduction("ReduceMax"),
    "argmax": _best("ArgMax"),
    "argmin": _best("ArgMin"),
    "cumsum": _cumsum,
    "cumprod": _running("Mul"),
    "cummax": _running("Max"),
    "cummin": _running("Min"),
    "top_k": _top_k,
    "approx_top_k": _top_k,
    "sort": _sort,
}
