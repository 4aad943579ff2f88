"""Dots, convolutions and gathers on compressed weights, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.graph.native import Blocked, Factored, Native, Quantized
from lepton_jax.graph.trace import Equation
from lepton_jax.packed_blocks import multiply, take_rows
from lepton_jax.typing import Array


def run(eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Run an operation on compressed operands; None if it has no way to.

    Args:
      eqn: any operation.
      values: its operands, at least one of them `Native`.
    """
    match eqn.primitive:
        case "dot_general":
            out = _dot(values[0], values[1], eqn.params)
        case "conv_general_dilated":
            out = _conv(values[0], values[1], eqn.params)
        case "gather":
            out = _gather(values[0], values[1], eqn.params)
        case "transpose" | "convert_element_type" | "copy" | "stop_gradient" | "reshape" | "squeeze":
            out = _carried(eqn, values[0])
        case _:
            return None
    return None if out is None else [out.astype(eqn.out_avals[0].dtype) if isinstance(out, jax.Array) else out]


def _dot(lhs: Any, rhs: Any, params: Any) -> Any:
    (contracting_l, contracting_r), (batch_l, _) = params["dimension_numbers"]
    if all(isinstance(value, Quantized | jax.Array | np.ndarray) for value in (lhs, rhs)):
        return _quantized_dot(lhs, rhs, params)
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
    inner = {**params, "dimension_numbers": numbers, "preferred_element_type": None, "out_sharding": None}
    out = _quantized_dot(x, weight, inner)
    return out if out is not None else jax.lax.dot_general(x, weight.dense(), numbers, precision=params["precision"])


def _quantized_dot(lhs: Any, rhs: Any, params: Any) -> Array | None:
    """A dot of integers where both sides are, accumulated in int32; the scales are applied to the result.

    A dot of the scales alone, all of whose contracted axes have size 1, has the layout of the result's scale.
    """
    numbers = params["dimension_numbers"]
    (contracting, batch), sides = numbers, _moved_scales((lhs, rhs), numbers[0])
    scales = []
    for side, value in enumerate(sides):
        scale = value.scale if isinstance(value, Quantized) else jnp.ones((1,) * value.ndim, jnp.float32)
        if any(scale.shape[axis] != 1 for axis in contracting[side]):
            return None
        scales.append(scale)
    sizes = [max(scales[0].shape[a], scales[1].shape[b]) for a, b in zip(*batch)]
    for side, scale in enumerate(scales):
        shape = list(scale.shape)
        for axis, size in zip(batch[side], sizes):
            shape[axis] = size
        scales[side] = jnp.broadcast_to(scale, shape)
    kinds = [isinstance(value, Quantized) for value in sides]
    if all(kinds):
        symmetric = all(isinstance(value.zero_point, tuple) for value in sides)
        left, right = (value.qvalue if symmetric else value.integers(jnp.int32) for value in sides)
        out = jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.int32).astype(jnp.float32)
    else:
        dtype = next(value.dtype for value in sides if not isinstance(value, Quantized))
        left, right = (value.integers(dtype) if isinstance(value, Quantized) else value for value in sides)
        wide = {"precision": params["precision"], "preferred_element_type": params["preferred_element_type"]}
        out = jax.lax.dot_general(left, right, numbers, **wide)
    return out * jax.lax.dot_general(scales[0], scales[1], numbers, precision="highest") if any(kinds) else out


def _moved_scales(sides: tuple[Any, Any], contracting: Any) -> tuple[Any, Any]:
    """Give a scale along summed axes alone to the other side, if that is floating: ``x @ (s q) = (x s) @ q``."""
    moved = list(sides)
    for side, value in enumerate(sides):
        other = sides[1 - side]
        if not isinstance(value, Quantized) or isinstance(other, Quantized) or value.scale.size == 1:
            continue
        if any(size != 1 for axis, size in enumerate(value.scale.shape) if axis not in contracting[side]):
            continue
        shape = [1] * other.ndim
        ordered = sorted(zip(contracting[1 - side], contracting[side]))
        for axis, own in ordered:
            shape[axis] = value.scale.shape[own]
        rest = [axis for axis in range(value.scale.ndim) if axis not in contracting[side]]
        scale = jnp.transpose(value.scale, (*rest, *(own for _, own in ordered))).reshape(shape)
        moved[1 - side] = other * scale.astype(other.dtype)
        moved[side] = replace(value, scale=jnp.ones((1,) * value.scale.ndim, value.scale.dtype))
    return moved[0], moved[1]


def _conv(x: Any, weight: Any, params: Any) -> Array | None:
    numbers = params["dimension_numbers"]
    out_axis, channel = numbers.out_spec[1], numbers.rhs_spec[0]
    grouped = params["feature_group_count"] != 1 or params["batch_group_count"] != 1
    if isinstance(weight, Quantized):
        return _quantized_conv(x, weight, params)
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


def _quantized_conv(x: Any, weight: Quantized, params: Any) -> Array | None:
    numbers = params["dimension_numbers"]
    channel, out_axis = numbers.rhs_spec[0], numbers.out_spec[1]
    if any(size != 1 for axis, size in enumerate(weight.scale.shape) if axis != channel):
        return None
    shape = [1] * weight.qvalue.ndim
    shape[out_axis] = weight.scale.shape[channel]
    scale = weight.scale.reshape(shape)
    if not isinstance(x, Quantized):
        return jax.lax.conv_general_dilated_p.bind(x, weight.integers(x.dtype), **params) * scale
    if x.scale.size != 1:
        return None
    # Integers less their zero point, so that padding's zeros are zero.
    operands = [value.integers(jnp.int32) for value in (x, weight)]
    if all(isinstance(value.zero_point, tuple) for value in (x, weight)):
        operands = [x.qvalue, weight.qvalue]
    inner = {**params, "preferred_element_type": np.dtype(np.int32)}
    out = jax.lax.conv_general_dilated_p.bind(*operands, **inner)
    return out.astype(jnp.float32) * (scale * x.scale.reshape((1,) * out.ndim))


def _gather(weight: Any, indices: Any, params: Any) -> Array | None:
    """Rows of a matrix, as an embedding looks them up: whole rows, their axis left out, one index each."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if isinstance(indices, Native) or not isinstance(weight, Native):
        return None
    rank = len(weight.shape)
    whole = tuple(sizes) == (1, *weight.shape[1:]) and numbers.start_index_map == (0,) and numbers.collapsed_slice_dims == (0,)
    if not whole or numbers.operand_batching_dims:
        return None
    if isinstance(weight, Quantized):
        parts = [weight.qvalue, weight.scale] + ([] if isinstance(weight.zero_point, tuple) else [weight.zero_point])
        taken = [
            jax.lax.gather_p.bind(part, indices, **{**params, "slice_sizes": (1, *part.shape[1:]), "fill_value": 0})
            if part.shape[0] == weight.shape[0]
            else jnp.expand_dims(part[0], tuple(a for a in range(indices.ndim - 1 + rank - 1) if a not in numbers.offset_dims))
            for part in parts
        ]
        out = replace(weight, qvalue=taken[0], scale=taken[1], zero_point=taken[2] if len(taken) > 2 else ()).dense()
        return _filled(out, weight, indices, params)
    if rank != 2 or numbers.offset_dims != (indices.ndim - 1,):
        return None
    if isinstance(weight, Factored) and not isinstance(weight.u, Native):
        rows = jax.lax.gather_p.bind(weight.u, indices, **{**params, "slice_sizes": (1, weight.u.shape[-1])})
        return _plain(rows, weight.v, (rows.ndim - 1,), (0,), {"precision": None})
    if isinstance(weight, Blocked):
        index = jnp.clip(indices[..., 0], 0, weight.shape[0] - 1)
        out = take_rows(weight.blocks, weight.rows, index.reshape(-1), weight.shape[1])
        return _filled(out.reshape(*index.shape, weight.shape[1]), weight, indices, params)
    return None


def _filled(out: Array, weight: Any, indices: Array, params: Any) -> Array:
    """Rows out of range are NaN where the gather's mode is to fill them."""
    if params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return out
    inside = (indices[..., 0] >= 0) & (indices[..., 0] < weight.shape[0])
    inside = jnp.expand_dims(inside, params["dimension_numbers"].offset_dims)
    return jnp.where(inside, out, jnp.nan if params["fill_value"] is None else params["fill_value"])


def _carried(eqn: Equation, weight: Any) -> Any:
    """A compressed weight through an operation that only moves it."""
    if eqn.primitive in ("copy", "stop_gradient"):
        return weight
    if eqn.primitive == "convert_element_type":
        same = not isinstance(weight, Blocked) and jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
        return replace(weight, dtype=np.dtype(eqn.params["new_dtype"]).name) if same else None
    if isinstance(weight, Quantized):
        return _carried_quantized(eqn, weight)
    factored = isinstance(weight, Factored) and not any(isinstance(part, Native) for part in (weight.u, weight.v))
    if factored and eqn.primitive == "transpose" and len(weight.shape) == 2:
        return replace(weight, u=weight.v.T, v=weight.u.T)
    return None


def _carried_quantized(eqn: Equation, weight: Quantized) -> Quantized | None:
    if eqn.primitive == "transpose":
        return weight.mapped(lambda part: jnp.transpose(part, eqn.params["permutation"]))
    new = eqn.out_avals[0].shape
    if weight.scale.size == 1:
        return weight.mapped(lambda part: part.reshape(new if part.size == weight.qvalue.size else (1,) * len(new)))
    channels = [axis for axis, size in enumerate(weight.scale.shape) if size != 1]
    if channels == [len(weight.shape) - 1] and new[-1:] == weight.shape[-1:]:
        return weight.mapped(
            lambda part: part.reshape(new if part.size == weight.qvalue.size else (1,) * (len(new) - 1) + new[-1:])
        )
    return None
