"""Convolutions of codes: of integers accumulated in int32, or of codes against floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.graph.native import Quantized
from lepton_jax.graph.native_dots import alike, castable, decoded, differentiable, free_expanded, int8
from lepton_jax.straight_through import straight_through
from lepton_jax.typing import Array


def conv(x: Any, kernel: Any, params: Mapping[str, Any]) -> Array:
    """Return a `conv_general_dilated` of `Quantized` operands, or of one and an array.

    Integers of eight bits on both sides are multiplied as int8 and summed in int32, if the scales are one for each output
    channel of the kernel and one for each example (or fewer); so are eight-bit floats, in float32. What is filled in around and
    between the inputs is 0, that is, their zero point. Codes against floats are cast, exactly. Anything else is decoded here.

    The result's derivative is that of the convolution of what the operands were in the simulation (`Quantized.seen`).
    """
    numbers = params["dimension_numbers"]
    channel, batch = numbers.rhs_spec[0], numbers.lhs_spec[0]
    x, kernel = _scaled_by(x, batch), _scaled_by(kernel, channel)
    if isinstance(x, Quantized) and isinstance(kernel, Quantized) and alike(x, kernel):
        own = _along_result(x.scale, batch, 0, numbers).astype(jnp.float32)
        out = _coded(x, kernel, params) * (own * _kernel_scale(kernel, numbers))
        return straight_through(_bound(x.dense(), kernel.dense(), params), out) if differentiable(x, kernel) else out
    if isinstance(kernel, Quantized) and not isinstance(x, Quantized) and castable(kernel, x.dtype):
        return _bound(x, kernel.integers(x.dtype), params) * _kernel_scale(kernel, numbers)
    return _bound(decoded(x), decoded(kernel), params)


def _scaled_by(value: Any, axis: int) -> Any:
    """The value, decoded if it has scales along other axes than this one."""
    if not isinstance(value, Quantized):
        return value
    value = free_expanded(value, [i for i in range(len(value.shape)) if i != axis])
    return value if all(size == 1 for i, size in enumerate(value.scale.shape) if i != axis) else value.dense()


def _bound(x: Array, kernel: Array, params: Mapping[str, Any]) -> Array:
    return jax.lax.conv_general_dilated_p.bind(x, kernel, **params)


def _along_result(part: Array, axis: int, place: int, numbers: Any) -> Array:
    """A scale along one axis of an operand, along the axis of the result: 0 for examples, 1 for channels."""
    shape = [1] * part.ndim
    shape[numbers.out_spec[place]] = part.shape[axis]
    return part.reshape(shape)


def _kernel_scale(kernel: Quantized, numbers: Any) -> Array:
    return _along_result(kernel.scale, numbers.rhs_spec[0], 1, numbers).astype(jnp.float32)


def _coded(x: Quantized, kernel: Quantized, params: Mapping[str, Any]) -> Array:
    """The convolution of codes, without their scales, float32."""
    numbers = params["dimension_numbers"]
    if x.is_float8:
        wide = {**params, "preferred_element_type": np.dtype(np.float32)}
        return _bound(x.qvalue, kernel.qvalue, wide)
    wide = {**params, "preferred_element_type": np.dtype(np.int32)}
    (a, p), (b, q) = int8(x), int8(kernel)
    if q is not None or (p is not None and (p.size != 1 or params["batch_group_count"] != 1)):
        # Every window has a sum of inputs of its own: integers less their zero points are multiplied instead.
        return _bound(x.integers(jnp.int32), kernel.integers(jnp.int32), wide).astype(jnp.float32)
    if p is None:
        return _bound(a, b, wide).astype(jnp.float32)
    # The zero point all around and in between; then every window has whole kernels' sums of it to subtract.
    spatial = dict(zip(numbers.lhs_spec[2:], zip(params["padding"], params["lhs_dilation"])))
    filled = [(*spatial[i][0], spatial[i][1] - 1) if i in spatial else (0, 0, 0) for i in range(a.ndim)]
    a = jax.lax.pad(a, p.reshape(()).astype(jnp.int8), filled)
    none = len(spatial)
    out = _bound(a, b, {**wide, "padding": ((0, 0),) * none, "lhs_dilation": (1,) * none})
    channel = numbers.rhs_spec[0]
    sums = jnp.sum(b, [i for i in range(b.ndim) if i != channel], keepdims=True, dtype=jnp.int32)
    return (out - p * _along_result(sums, channel, 1, numbers)).astype(jnp.float32)
