"""Rounded numbers: into few bits, out of them, and products of them.

What comes out of a rounding is `Codes`: whole numbers as floating ones, with the derivative of what was rounded, so that a
model quantized elsewhere can be tuned here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lepton_jax.core.straight_through import straight_through
from lepton_jax.interchange.onnx.element_types import dtype_of
from lepton_jax.interchange.onnx.host import on_device
from lepton_jax.interchange.onnx.rules.convolutions import convolve
from lepton_jax.interchange.onnx.rules.elementwise import aligned
from lepton_jax.interchange.onnx.site import Codes, Rule, Site


def spread(site: Site, scale: Any, x: Any) -> Any:
    """A scale or zero point so that it fits the value: one for all, one an index of an axis, or one for each block along it."""
    scale = on_device(scale)
    if scale.ndim == 0 or scale.size == 1:
        return scale.reshape((1,) * len(x.shape))
    axis = site.get("axis", 1) % len(x.shape)
    if scale.ndim == 1:
        return scale.reshape([-1 if i == axis else 1 for i in range(len(x.shape))])
    block = site.get("block_size", 0) or -(-x.shape[axis] // scale.shape[axis])
    wide = jnp.repeat(scale, block, axis=axis)
    return wide[(slice(None),) * axis + (slice(0, x.shape[axis]),)]


def nearest(x: Any) -> Any:
    """The nearest whole numbers, halves to even ones, with the derivative of x."""
    return straight_through(x, jnp.rint(x))


def whole(x: Any, zero: Any = None) -> Any:
    """Integers less their zero point, as float32."""
    value = x.value if isinstance(x, Codes) else on_device(x).astype(jnp.float32)
    if zero is None:
        return value
    less = whole(zero)
    return value - (less.reshape((1,) * value.ndim) if less.size == 1 else less)


def quantize_linear(site: Site, x: Any, scale: Any, zero: Any = None) -> Any:
    """``round(x / scale) + zero``."""
    number = site.get("output_dtype", 0)
    dtype = dtype_of(number) if number else np.dtype(zero.dtype if zero is not None else np.uint8)
    y = x.astype(scale.dtype) / spread(site, scale, x)
    if dtype.kind not in "iu" and dtype not in (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2):
        most = float(ml_dtypes.finfo(dtype).max)
        return jnp.clip(y, -most, most).astype(dtype)
    y = y.astype(jnp.float32)
    # Rounded before the zero point is added, as engines do: ties are decided by the number itself.
    narrow, at = ml_dtypes.iinfo(dtype), 0 if zero is None else spread(site, whole(zero), x)
    return Codes(jnp.clip(nearest(y) + at, narrow.min, narrow.max), dtype)


def dequantize_linear(site: Site, x: Any, scale: Any, zero: Any = None) -> Any:
    """``(x - zero) * scale``."""
    number = site.get("output_dtype", 0)
    dtype = dtype_of(number) if number else scale.dtype
    value = whole(x) if zero is None else whole(x) - spread(site, whole(zero), x)
    return (value * spread(site, scale, x).astype(jnp.float32)).astype(dtype)


def dynamic_quantize(site: Site, x: Any) -> Any:
    """Rounded to eight bits by the range that is found now; with its scale and zero point."""
    low, high = jnp.minimum(jnp.min(x), 0), jnp.maximum(jnp.max(x), 0)
    # Behind the barrier XLA divides, as the engine does; a known divisor it would replace by a factor, an ulp off.
    scale = (high - low) / jax.lax.optimization_barrier(jnp.asarray(255, x.dtype))
    scale = jnp.where(scale == 0, 1, scale)
    zero = nearest(jnp.clip(-low / scale, 0, 255))
    value = jnp.clip(nearest(x / scale) + zero, 0, 255)
    return Codes(value, np.dtype(np.uint8)), scale, Codes(zero, np.dtype(np.uint8))


def weight_codes(w: Any, scale: Any, zero: Any, axis: int) -> Any:
    """The integers of a weight, less its zero point: of a variable, which holds numbers, those that it rounds to."""
    if not isinstance(w, Codes) and jnp.issubdtype(w.dtype, jnp.floating):
        by = on_device(scale)
        by = by.reshape([-1 if by.size > 1 and i == axis % w.ndim else 1 for i in range(w.ndim)])
        return nearest(w / by)
    zero = None if zero is None else whole(zero)
    if zero is not None and zero.size > 1:
        zero = zero.reshape([-1 if i == axis % len(w.shape) else 1 for i in range(len(w.shape))])
    return whole(w, zero)


def requantized(site: Site, total: Any, scale: Any, zero: Any) -> Codes:
    """Sums of products of integers, rounded."""
    dtype = np.dtype(zero.dtype)
    narrow = ml_dtypes.iinfo(dtype)
    y = nearest(total * scale) + whole(zero).reshape((1,) * total.ndim)
    return Codes(jnp.clip(y, narrow.min, narrow.max), dtype)


def linear_conv(site: Site, x: Any, xs: Any, xz: Any, w: Any, ws: Any, wz: Any, ys: Any, yz: Any, bias: Any = None) -> Any:
    """A convolution of integers."""
    total = convolve(site, whole(x, xz), weight_codes(w, ws, wz, -1 if site.node.stored else 0))
    if bias is not None:
        total = total + on_device(bias).astype(jnp.float32).reshape((1, -1) + (1,) * (total.ndim - 2))
    scale = on_device(xs).reshape(-1) * on_device(ws).reshape(-1) / on_device(ys).reshape(-1)
    return requantized(site, total, scale.reshape((1, -1) + (1,) * (total.ndim - 2)), yz)


def linear_matmul(site: Site, a: Any, a_s: Any, az: Any, b: Any, bs: Any, bz: Any, ys: Any, yz: Any) -> Any:
    """A product of matrices of integers."""
    rows = lambda s: s.reshape(*s.shape, 1) if s.ndim and s.size > 1 else s.reshape(-1)  # noqa: E731
    zero = whole(az)
    left = whole(a) - (rows(zero) if zero.size > 1 else zero.reshape(()))
    total = jnp.matmul(left, weight_codes(b, bs, bz, -1))
    first = on_device(a_s)
    first = first.reshape(*first.shape, 1) if first.size > 1 else first.reshape(())
    last = on_device(bs)
    last = last.reshape((1,) * (total.ndim - 1) + (-1,)) if last.size > 1 else last.reshape(())
    first = first.reshape((1,) * (total.ndim - first.ndim) + first.shape) if first.ndim else first
    return requantized(site, total, first * last / on_device(ys).reshape(()), yz)


def integer_matmul(site: Site, a: Any, b: Any, az: Any = None, bz: Any = None) -> Any:
    """A product of matrices of integers, not rounded; as float32, which holds such sums up to 2^24 exactly."""
    left = whole(a)
    if az is not None:
        zero = whole(az)
        left = left - (zero.reshape(()) if zero.size == 1 else zero.reshape(*zero.shape, 1) if zero.ndim == 1 else zero)
    return Codes(jnp.matmul(left, _right(b, bz)), np.dtype(np.int32))


def _right(b: Any, zero: Any) -> Any:
    if not isinstance(b, Codes) and jnp.issubdtype(b.dtype, jnp.floating):
        return b  # a variable, less its zero point already
    less = None if zero is None else whole(zero)
    if less is not None and less.ndim == 1 and less.size > 1:
        less = less.reshape((1,) * (len(b.shape) - 1) + (-1,))
    return whole(b, less)


def integer_conv(site: Site, x: Any, w: Any, xz: Any = None, wz: Any = None) -> Any:
    """A convolution of integers, not rounded; as `integer_matmul`."""
    if not isinstance(w, Codes) and jnp.issubdtype(w.dtype, jnp.floating):
        return Codes(convolve(site, whole(x, xz), w), np.dtype(np.int32))
    zero = None if wz is None else whole(wz)
    zero = zero.reshape([-1] + [1] * (len(w.shape) - 1)) if zero is not None and zero.size > 1 else zero
    return Codes(convolve(site, whole(x, xz), whole(w, zero)), np.dtype(np.int32))


def _linear_unary(name: str) -> Rule:
    """A function of rounded numbers: out of few bits, and into them again."""

    def function(site: Site, x: Any, xs: Any, xz: Any, ys: Any, yz: Any = None) -> Any:
        from lepton_jax.interchange.onnx.rules import RULES as ALL

        value = whole(x, xz) * on_device(xs).reshape((1,) * len(x.shape))
        y = ALL[name].function(site, value)
        zero = np.zeros((), x.dtype) if yz is None else yz
        return requantized(site, y, 1 / on_device(ys).reshape((1,) * y.ndim), zero)

    return Rule(function)


def _linear_binary(name: str) -> Rule:
    def function(site: Site, a: Any, a_s: Any, az: Any, b: Any, bs: Any, bz: Any, ys: Any, yz: Any = None) -> Any:
        left, right = aligned(
            site, *(whole(x, z) * on_device(s).reshape((1,) * len(x.shape)) for x, s, z in ((a, a_s, az), (b, bs, bz)))
        )
        y = getattr(jnp, name)(left, right)
        zero = np.zeros((), a.dtype) if yz is None else yz
        return requantized(site, y, 1 / on_device(ys).reshape((1,) * y.ndim), zero)

    return Rule(function)


def linear_concat(site: Site, ys: Any, yz: Any, *parts: Any) -> Any:
    """Rounded numbers of different scales, one after the other in one scale."""
    values = [whole(x, z) * on_device(s).reshape((1,) * len(x.shape)) for x, s, z in zip(parts[::3], parts[1::3], parts[2::3])]
    y = jnp.concatenate(values, site.get("axis"))
    return requantized(site, y, 1 / on_device(ys).reshape((1,) * y.ndim), yz)


RULES: dict[str, Rule] = {
    "ConvInteger": Rule(integer_conv, codes="kept"),
    "DequantizeLinear": Rule(dequantize_linear, codes="kept"),
    "DynamicQuantizeLinear": Rule(dynamic_quantize),
    "MatMulInteger": Rule(integer_matmul, codes="kept"),
    "QLinearConv": Rule(linear_conv, codes="kept"),
    "QLinearMatMul": Rule(linear_matmul, codes="kept"),
    "QuantizeLinear": Rule(quantize_linear),
    "com.microsoft:DequantizeLinear": Rule(dequantize_linear, codes="kept"),
    "com.microsoft:QLinearAdd": _linear_binary("add"),
    "com.microsoft:QLinearConcat": Rule(linear_concat, codes="kept"),
    "com.microsoft:QLinearGlobalAveragePool": _linear_unary("GlobalAveragePool"),
    "com.microsoft:QLinearLeakyRelu": _linear_unary("LeakyRelu"),
    "com.microsoft:QLinearMul": _linear_binary("multiply"),
    "com.microsoft:QLinearSigmoid": _linear_unary("Sigmoid"),
    "com.microsoft:QLinearSoftmax": _linear_unary("Softmax"),
    "com.microsoft:QLinearAveragePool": _linear_unary("AveragePool"),
    "com.microsoft:QuantizeLinear": Rule(quantize_linear),
}
