"""Dots, convolutions and gathers on compressed weights, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.graph.trace import Equation
from lepton_jax.leaves.block_sparse import multiply, take_rows
from lepton_jax.native import convs, dots
from lepton_jax.native.moves import filled, looked_up, moved
from lepton_jax.native.operands import Blocked, Factored, Looked, Native, Quantized, Scattered, Words


def run(eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Run an operation on compressed operands; None if it has no way to.

    Args:
      eqn: any operation.
      values: its operands, at least one of them `Native`.
    """
    match eqn.primitive:
        case "dot_general":
            out = _dot(opened(values[0]), opened(values[1]), eqn.params)
        case "conv_general_dilated":
            out = _conv(opened(values[0]), opened(values[1]), eqn.params)
        case "gather":
            out = _gather(values[0], values[1], eqn.params)
        case _:
            return moved(eqn, values)
    return None if out is None else [out.astype(eqn.out_avals[0].dtype) if isinstance(out, jax.Array) else out]


def opened(value: Any) -> Any:
    """A leaf's operand at its operation: codes unpacked; whatever has no operation of its own decoded."""
    if isinstance(value, Words):
        return value.opened()
    return value.dense() if isinstance(value, Looked | Scattered) else value


def _dot(lhs: Any, rhs: Any, params: Any) -> Any:
    (contracting_l, contracting_r), (batch_l, _) = params["dimension_numbers"]
    if all(isinstance(value, Quantized | jax.Array | np.ndarray) for value in (lhs, rhs)):
        return dots.dot(lhs, rhs, params)
    lhs, rhs = (value.dense() if isinstance(value, Quantized) else value for value in (lhs, rhs))
    if batch_l or (isinstance(lhs, Native) and isinstance(rhs, Native)):
        return None
    left = isinstance(lhs, Native)
    x, weight = (rhs, lhs) if left else (lhs, rhs)
    x_axes, w_axes = (contracting_r, contracting_l) if left else (contracting_l, contracting_r)
    out = _weighted(x, weight, tuple(x_axes), tuple(w_axes), params)
    if out is None or not left:
        return out
    # The result has the free axes of x first; with the weight on the left they come last.
    free = x.ndim - len(x_axes)
    return jnp.moveaxis(out, tuple(range(free)), tuple(range(-free, 0)))


def _weighted(x: Array, weight: Any, x_axes: tuple[int, ...], w_axes: tuple[int, ...], params: Any) -> Array | None:
    """Sum x over `x_axes` against the weight's `w_axes`: free axes of x, then those of the weight."""
    if isinstance(weight, Factored):
        if weight.v.ndim != 2 if not isinstance(weight.v, Native) else len(weight.v.shape) != 2:
            return None
        last = len(weight.shape) - 1
        first, second = (weight.u, weight.v) if last not in w_axes else (weight.v, weight.u)
        if last in w_axes:
            if w_axes != (last,):
                return None
            inner = _plain(x, first, x_axes, (1,), params)
            return _plain(inner, second, (inner.ndim - 1,), (last,), params)
        inner = _plain(x, first, x_axes, w_axes, params)
        return _plain(inner, second, (inner.ndim - 1,), (0,), params)
    if isinstance(weight, Blocked) and weight.blocks.ndim == 4:
        if sorted(w_axes) != list(range(len(weight.layout) - 1)):
            return None
        order = [x_axes[w_axes.index(axis)] for axis in range(len(w_axes))]
        free = [axis for axis in range(x.ndim) if axis not in x_axes]
        rows = jnp.transpose(x, (*free, *order)).reshape(-1, int(np.prod(weight.layout[:-1])))
        out = multiply(rows, weight.blocks, weight.rows, weight.layout[-1])
        return out.reshape(*(x.shape[axis] for axis in free), weight.layout[-1])
    return None


def _plain(x: Array, weight: Any, x_axes: tuple[int, ...], w_axes: tuple[int, ...], params: Any) -> Array:
    numbers = ((x_axes, w_axes), ((), ()))
    inner = {"dimension_numbers": numbers, "preferred_element_type": None, "precision": params["precision"]}
    return dots.dot(x, opened(weight), inner)


def _conv(x: Any, weight: Any, params: Any) -> Array | None:
    numbers = params["dimension_numbers"]
    out_axis, channel = numbers.out_spec[1], numbers.rhs_spec[0]
    grouped = params["feature_group_count"] != 1 or params["batch_group_count"] != 1
    if all(isinstance(value, Quantized | jax.Array | np.ndarray) for value in (x, weight)):
        return convs.conv(x, weight, params)
    x = x.dense() if isinstance(x, Quantized) else x
    if isinstance(x, Native) or grouped or channel != len(weight.shape) - 1:
        return None
    if isinstance(weight, Factored) and not isinstance(weight.u, Native) and len(weight.v.shape) == 2:
        thin = jax.lax.conv_general_dilated_p.bind(x, weight.u, **params)
        return jnp.moveaxis(_plain(thin, weight.v, (out_axis,), (0,), params), -1, out_axis)
    if isinstance(weight, Blocked) and weight.blocks.ndim == 4:
        patches = jax.lax.conv_general_dilated_patches(
            x,
            [weight.layout[axis] for axis in numbers.rhs_spec[2:]],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            numbers,
            precision=params["precision"],
        )
        # Patches have the input channels first, then the kernel's axes; the weight's rows have its own order.
        patches = jnp.moveaxis(patches, out_axis, -1)
        spec = numbers.rhs_spec
        parts = patches.reshape(*patches.shape[:-1], *(weight.layout[axis] for axis in spec[1:]))
        lead = patches.ndim - 1
        order = np.argsort(np.array(spec[1:]))
        parts = jnp.transpose(parts, (*range(lead), *(lead + int(i) for i in order)))
        rows = parts.reshape(-1, int(np.prod(weight.layout[:-1])))
        out = multiply(rows, weight.blocks, weight.rows, weight.layout[-1])
        return jnp.moveaxis(out.reshape(*patches.shape[:-1], -1), -1, out_axis)
    return None


def _gather(weight: Any, indices: Any, params: Any) -> Array | None:
    """Rows of a matrix, as an embedding looks them up: whole rows, their axis left out, one index each."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if isinstance(indices, Native) or not isinstance(weight, Native):
        return None
    rank = len(weight.shape)
    whole = tuple(sizes) == (1, *weight.shape[1:]) and numbers.start_index_map == (0,) and numbers.collapsed_slice_dims == (0,)
    if not whole or numbers.operand_batching_dims:
        return None
    if isinstance(weight, Words | Quantized | Looked):
        # The indices of rows are the last axis of `indices`, of size 1.
        index = jnp.clip(indices[..., 0], 0, weight.shape[0] - 1)
        out = looked_up(weight, index.reshape(-1)).reshape(*index.shape, *weight.shape[1:])
        lead = [axis for axis in range(out.ndim) if axis not in numbers.offset_dims]
        return filled(jnp.moveaxis(out, range(index.ndim), lead), weight, indices, params)
    if rank != 2 or numbers.offset_dims != (indices.ndim - 1,):
        return None
    if isinstance(weight, Factored) and not isinstance(weight.u, Native):
        rows = jax.lax.gather_p.bind(weight.u, indices, **{**params, "slice_sizes": (1, weight.u.shape[-1])})
        return _plain(rows, weight.v, (rows.ndim - 1,), (0,), {"precision": None})
    if isinstance(weight, Blocked):
        index = jnp.clip(indices[..., 0], 0, weight.shape[0] - 1)
        out = take_rows(weight.blocks, weight.rows, index.reshape(-1), weight.shape[1])
        return filled(out.reshape(*index.shape, weight.shape[1]), weight, indices, params)
    return None
