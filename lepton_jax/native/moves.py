"""Compressed weights through operations that only move them, and rows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Equation
from lepton_jax.native.operands import Factored, Looked, Quantized, Scattered, Words


def moved(eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Return a compressed weight after an operation that moves or casts it; None if it has to be unpacked.

    Args:
      eqn: any operation.
      values: its operands, at least one of them `Native`.
    """
    weight, out = values[0], None
    match eqn.primitive:
        case "copy" | "copy_p":
            out = weight
        case "convert_element_type":
            if hasattr(weight, "dtype") and jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
                out = replace(weight, dtype=np.dtype(eqn.params["new_dtype"]).name)
        case "transpose" | "reshape" | "squeeze" | "broadcast_in_dim" | "slice":
            weight = weight.opened() if isinstance(weight, Words) else weight
            if isinstance(weight, Quantized):
                out = _moved_codes(eqn, weight)
            elif isinstance(weight, Scattered):
                out = _compat.bind(eqn.raw, [weight.dense()])[0]
            elif isinstance(weight, Looked):
                out = weight.mapped(lambda part: _compat.bind(eqn.raw, [part])[0])
            elif isinstance(weight, Factored) and eqn.primitive == "transpose" and len(weight.shape) == 2:
                arrays = all(isinstance(part, jax.Array) for part in (weight.u, weight.v))
                out = replace(weight, u=weight.v.T, v=weight.u.T) if arrays else None
    return None if out is None else [out]


def _moved_codes(eqn: Equation, weight: Quantized) -> Quantized | None:
    params, new = eqn.params, eqn.out_avals[0].shape
    if eqn.primitive == "transpose":
        return weight.mapped(lambda part: jnp.transpose(part, params["permutation"]))
    if eqn.primitive == "slice":
        return _sliced(weight, params["start_indices"], params["limit_indices"], params["strides"])
    if math.prod(new) != math.prod(weight.shape):
        return None
    runs = _runs(weight.shape, new)
    return None if runs is None else weight.mapped(lambda part: _reshaped(part, weight, runs))


def _sliced(weight: Quantized, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None) -> Quantized:
    cut = [axis for axis, size in enumerate(weight.shape) if (start[axis], limit[axis]) != (0, size) or strides]

    def change(part: Array) -> Array:
        for axis in cut:
            if part.shape[axis] not in (1, weight.shape[axis]):
                part = weight.expanded_along(part, axis)
            if part.shape[axis] != 1:
                step = 1 if strides is None else strides[axis]
                part = jax.lax.slice_in_dim(part, start[axis], limit[axis], step, axis)
        return part

    return weight.mapped(change)


Run = tuple[tuple[int, ...], tuple[int, ...]]
"""(axes before, lengths after) of the same elements in the same order."""


def _runs(old: Sequence[int], new: Sequence[int]) -> list[Run] | None:
    """Cut a reshape into the smallest pieces that are reshapes themselves; None for arrays without elements."""
    if 0 in (*old, *new):
        return None
    runs: list[Run] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, begin, left, right = i, j, 1, 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        runs.append((tuple(range(first, i)), tuple(new[begin:j])))
    return runs


def _reshaped(part: Array, weight: Quantized, runs: Sequence[Run]) -> Array:
    """A scale, reshaped with its codes: repeated only along the axes that merge or part and along which it differs."""
    shape: list[int] = []
    for axes, lengths in runs:
        own = [part.shape[axis] for axis in axes]
        kept = [length for length in lengths if length != 1]
        if all(size == 1 for size in own):
            shape += [1] * len(lengths)
        elif kept == [weight.shape[axis] for axis in axes if weight.shape[axis] != 1] and len(kept) == 1:
            size = max(own)
            shape += [size if length != 1 else 1 for length in lengths]
        else:
            for axis in axes:
                if part.shape[axis] not in (1, weight.shape[axis]):
                    part = weight.expanded_along(part, axis)
            whole = [weight.shape[axis] if axis in axes else size for axis, size in enumerate(part.shape)]
            part = jnp.broadcast_to(part, whole)
            shape += lengths
    return part.reshape(shape)


def looked_up(weight: Any, index: Array) -> Array:
    """Some indices of the first axis, decoded: nothing else is."""
    if isinstance(weight, Looked):
        return weight.table[jnp.take(weight.codes, index, axis=0, mode="clip")].astype(weight.dtype)
    length, group = weight.shape[0], weight.format.group_size or 0

    def taken(part: Array) -> Array:
        if part.shape[0] == 1 and length != 1:
            return part  # a scale of all rows
        place = index if part.shape[0] == length else index // group
        return jnp.take(part, place, axis=0, mode="clip")

    words = weight.rows(length) if isinstance(weight, Words) else None
    if words is None:
        return (weight.opened() if isinstance(weight, Words) else weight).mapped(taken).dense()
    zero_point = weight.zero_point if isinstance(weight.zero_point, tuple) else taken(weight.zero_point)
    rows = replace(weight, words=taken(words), scale=taken(weight.scale), zero_point=zero_point, layout=weight.layout[1:])
    return rows.dense()


def filled(out: Array, weight: Any, indices: Array, params: Any) -> Array:
    """Rows out of range are NaN where the gather's mode is to fill them."""
    if params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return out
    inside = (indices[..., 0] >= 0) & (indices[..., 0] < weight.shape[0])
    inside = jnp.expand_dims(inside, params["dimension_numbers"].offset_dims)
    return jnp.where(inside, out, jnp.nan if params["fill_value"] is None else params["fill_value"])
