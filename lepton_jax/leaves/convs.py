"""Convolutions of codes: of integers accumulated in int32, or of codes against floats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.leaves.dots import alike, castable, decoded, differentiated, free_expanded, int8, is_codes

if TYPE_CHECKING:  # which is built on this
    from lepton_jax.leaves.quantized import Quantized

_VECTOR = 32
"""XLA's own convolution of int8 is fast for features that are a multiple of this."""
_FEW_CHANNELS = 8
_MOST_TAPS = 16
"""Patches are as many times the input as the kernel has elements in space."""


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
            return differentiated(partial(_coded, params=params), partial(_bound, params=params), x, kernel)
    elif is_codes(kernel) and castable(kernel, x.dtype):
        return _bound(x, kernel.integers(x.dtype), params) * _kernel_scale(kernel, numbers)
    elif is_codes(x) and castable(x, kernel.dtype) and params["batch_group_count"] == 1:
        return _bound(x.integers(kernel.dtype), kernel, params) * _image_scale(x, numbers)
    return _bound(decoded(x), decoded(kernel), params)


def _scaled_by(value: Any, axis: int) -> Any:
    """The value, decoded if it has scales along other axes than this one."""
    if not is_codes(value):
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
        return _bound(x.qvalue, kernel.qvalue, wide)
    wide = {**params, "preferred_element_type": np.dtype(np.int32)}
    (a, p), (b, q) = int8(x), int8(kernel)
    if q is not None or (p is not None and (p.size != 1 or params["batch_group_count"] != 1)):
        # Every window has a sum of inputs of its own: integers less their zero points are multiplied instead.
        return _bound(x.integers(jnp.int32), kernel.integers(jnp.int32), wide).astype(jnp.float32)
    if p is None:
        return _integers(a, b, wide).astype(jnp.float32)
    # The zero point all around and in between; then every window has whole kernels' sums of it to subtract.
    spatial = dict(zip(numbers.lhs_spec[2:], zip(params["padding"], params["lhs_dilation"])))
    filled = [(*spatial[i][0], spatial[i][1] - 1) if i in spatial else (0, 0, 0) for i in range(a.ndim)]
    a = jax.lax.pad(a, p.reshape(()).astype(jnp.int8), filled)
    none = len(spatial)
    out = _integers(a, b, {**wide, "padding": ((0, 0),) * none, "lhs_dilation": (1,) * none})
    channel = numbers.rhs_spec[0]
    sums = jnp.sum(b, [i for i in range(b.ndim) if i != channel], keepdims=True, dtype=jnp.int32)
    return (out - p * _along_result(sums, channel, 1, numbers)).astype(jnp.float32)


def _integers(x: Array, kernel: Array, params: Mapping[str, Any]) -> Array:
    """The convolution of int8 with int8, int32; on CPU in the form that is fastest there, of the same integers.

    XLA's own is, where features come in whole vectors or channels are few; else dots are, one a row of the kernel, whose
    patches are small. For a kernel larger than its image XLA has plain loops, and one dot of all patches is fastest. A large
    kernel of few channels is fastest in float32, which has all sums below ``2**24`` exactly.
    """
    numbers = params["dimension_numbers"]
    taps = math.prod(kernel.shape[axis] for axis in numbers.rhs_spec[2:])
    image = [x.shape[axis] for axis in numbers.lhs_spec[2:]]
    small = all(isinstance(n, int) for n in image) and taps > math.prod(image)
    channels = x.shape[numbers.lhs_spec[1]]
    direct = kernel.shape[numbers.rhs_spec[0]] % _VECTOR == 0 or channels < _FEW_CHANNELS
    grouped = params["feature_group_count"] != 1 or params["batch_group_count"] != 1
    if grouped or any(step != 1 for step in params["lhs_dilation"]):
        return _bound(x, kernel, params)
    if taps > _MOST_TAPS:
        if channels >= _FEW_CHANNELS or taps * channels * 2**14 >= 2**24:
            return _bound(x, kernel, params)
        cpu = partial(_in_float32, params=params)
    elif direct and not small:
        return _bound(x, kernel, params)
    else:
        cpu = partial(_as_dots, params=params, rows=not small)
    # The compiler takes one of them, by the platform that it compiles for.
    return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=partial(_bound, params=params))


def _in_float32(x: Array, kernel: Array, params: Mapping[str, Any]) -> Array:
    """The same integers, as floats."""
    wide = {**params, "preferred_element_type": np.dtype(np.float32)}
    return _bound(x.astype(jnp.float32), kernel.astype(jnp.float32), wide).astype(jnp.int32)


def _as_dots(x: Array, kernel: Array, params: Mapping[str, Any], rows: bool) -> Array:
    """Dots of patches: one of all taps, or one for each row of the kernel, added up."""
    numbers = params["dimension_numbers"]
    x = jnp.transpose(x, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    kernel = jnp.transpose(kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    x = jax.lax.pad(x, jnp.int8(0), ((0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0)))
    strides, dilations, sizes = params["window_strides"], params["rhs_dilation"], kernel.shape[:-2]
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations)]
    counts = [(length - span) // stride + 1 for length, span, stride in zip(x.shape[1:-1], spans, strides)]
    last = (((x.ndim - 1,), (0,)), ((), ()))

    def product(taps: Sequence[tuple[int, ...]], weights: Array) -> Array:
        patches = [patch(tap) for tap in taps]
        joined = jnp.concatenate(patches, axis=-1) if len(patches) > 1 else patches[0]
        return jax.lax.dot_general(joined, weights.reshape(-1, weights.shape[-1]), last, preferred_element_type=jnp.int32)

    def patch(tap: Sequence[int]) -> Array:
        start = [place * dilation for place, dilation in zip(tap, dilations)]
        stop = [first + (count - 1) * stride + 1 for first, count, stride in zip(start, counts, strides)]
        limits = (x.shape[0], *stop, x.shape[-1])
        return jax.lax.slice(x, (0, *start, 0), limits, (1, *strides, 1))

    taps = list(np.ndindex(*sizes))
    if rows and len(sizes) > 1:
        out = sum(product([t for t in taps if t[0] == row], kernel[row]) for row in range(sizes[0]))
    else:
        out = product(taps, kernel)
    order = np.argsort((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))
    return jnp.transpose(out, tuple(int(axis) for axis in order))
