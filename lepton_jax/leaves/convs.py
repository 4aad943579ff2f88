"""Convolutions of codes: of integers accumulated in int32, or of codes against floats."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.leaves.dots import alike, castable, decoded, differentiated, free_expanded, int8, is_codes, sums_along
from lepton_jax.leaves.integer_convs import bound, integers

if TYPE_CHECKING:  # which is built on this
    from lepton_jax.leaves.quantized import Quantized


def conv(x: Any, kernel: Any, params: Mapping[str, Any]) -> Array:
    """Return a `conv_general_dilated` of `Quantized` operands, or of one and an array.

    Integers of eight bits on both sides are multiplied as int8 and summed in int32, if the scales are one for each output
    channel of the kernel and one for each example (or fewer); so are eight-bit floats, in float32. What is filled in around and
    between the inputs is 0, that is, their zero point. Codes against floats are cast, exactly. Anything else is decoded here.

    The result's derivative is that of the convolution of what the codes stand for; see `dots.differentiated`.
    """
    numbers = params["dimension_numbers"]
    x, kernel = _scaled_by(x, numbers.lhs_spec[0]), _scaled_by(kernel, numbers.rhs_spec[0])
    if is_codes(x) and is_codes(kernel):
        if alike(x, kernel):
            return differentiated(partial(_coded, params=params), partial(bound, params=params), x, kernel)
    elif is_codes(kernel) and castable(kernel, x.dtype):
        return bound(x, kernel.integers(x.dtype), params) * _kernel_scale(kernel, numbers)
    elif is_codes(x) and castable(x, kernel.dtype) and params["batch_group_count"] == 1:
        return bound(x.integers(kernel.dtype), kernel, params) * _image_scale(x, numbers)
    return bound(decoded(x), decoded(kernel), params)


def _scaled_by(value: Any, axis: int) -> Any:
    """The value, decoded if it has scales along other axes than this one."""
    if not is_codes(value):
        return value
    value = free_expanded(value, [i for i in range(len(value.shape)) if i != axis])
    return value if all(size == 1 for i, size in enumerate(value.scale.shape) if i != axis) else value.dense()


def _along_result(part: Array, axis: int, place: int, numbers: Any) -> Array:
    """A scale along one axis of an operand, along the axis of the result: 0 for examples, 1 for channels."""
    shape = [1] * part.ndim
    shape[numbers.out_spec[place]] = part.shape[axis]
    return part.reshape(shape)


def _kernel_scale(kernel: Quantized, numbers: Any) -> Array:
    return _along_result(kernel.scale, numbers.rhs_spec[0], 1, numbers).astype(jnp.float32)


def _image_scale(x: Quantized, numbers: Any) -> Array:
    return _along_result(x.scale, numbers.lhs_spec[0], 0, numbers).astype(jnp.float32)


def _coded(x: Quantized, kernel: Quantized, params: Mapping[str, Any]) -> Array:
    """The scaled convolution of codes with codes."""
    numbers = params["dimension_numbers"]
    return _sums(x, kernel, params) * (_image_scale(x, numbers) * _kernel_scale(kernel, numbers))


def _sums(x: Quantized, kernel: Quantized, params: Mapping[str, Any]) -> Array:
    """The convolution of codes, without their scales, float32."""
    numbers = params["dimension_numbers"]
    if x.is_float8:
        wide = {**params, "preferred_element_type": np.dtype(np.float32)}
        return bound(x.qvalue, kernel.qvalue, wide)
    wide = {**params, "preferred_element_type": np.dtype(np.int32)}
    (a, p), (b, q) = int8(x), int8(kernel)
    if q is not None or (p is not None and (p.size != 1 or params["batch_group_count"] != 1)):
        # Every window has a sum of inputs of its own: integers less their zero points are multiplied instead.
        return bound(x.integers(jnp.int32), kernel.integers(jnp.int32), wide).astype(jnp.float32)
    if p is None:
        return integers(a, b, wide, None).astype(jnp.float32)
    # The zero point all around and in between; then every window has whole kernels' sums of it to subtract.
    out = integers(a, b, wide, p.reshape(()).astype(jnp.int8))
    channel = numbers.rhs_spec[0]
    sums = sums_along(b, [i for i in range(b.ndim) if i != channel])
    return (out - p * _along_result(sums, channel, 1, numbers)).astype(jnp.float32)
