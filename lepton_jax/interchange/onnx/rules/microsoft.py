"""Operators that ONNX Runtime has beside the standard's, as its optimizer and its quantization tools write them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.interchange.onnx.host import on_device
from lepton_jax.interchange.onnx.rules import activations, convolutions, normalization, products, quantized, recurrent
from lepton_jax.interchange.onnx.rules.elementwise import aligned
from lepton_jax.interchange.onnx.site import Codes, Rule, Site


def _activated(site: Site, y: Any) -> Any:
    """What a fused operator ends with."""
    name = site.get("activation", "")
    numbers = [np.asarray(one, y.dtype) for one in site.get("activation_params", [])]
    if name == "LeakyRelu":
        return jnp.where(y < 0, y * (numbers or [np.asarray(0.01, y.dtype)])[0], y)
    if name == "Clip":
        return jnp.clip(y, *numbers)
    if name == "HardSigmoid":
        return jnp.clip(y * numbers[0] + numbers[1], 0, 1)
    known = {"": lambda x: x, "Relu": jax.nn.relu, "Tanh": jnp.tanh, "Sigmoid": jax.nn.sigmoid}
    if name not in known:
        raise ValueError(f"ends with {name}, which there is no rule for")
    return known[name](y)


def fused_conv(site: Site, x: Any, w: Any, bias: Any = None, more: Any = None) -> Any:
    """A convolution, what is added to it, and an activation."""
    y = convolutions.convolve(site, x, w, bias)
    return _activated(site, y if more is None else y + more)


def fused_gemm(site: Site, a: Any, b: Any, c: Any = None) -> Any:
    """A product of matrices and an activation."""
    return _activated(site, products.gemm(site, a, b, c))


def fused_matmul(site: Site, a: Any, b: Any) -> Any:
    """A product of matrices, either transposed, times a number."""
    a = jnp.swapaxes(a, -1, -2) if site.get("transA", 0) else a
    b = jnp.swapaxes(b, -1, -2) if site.get("transB", 0) else b
    return products.scaled(products.matmul(site, a, b), site.get("alpha", 1.0))


def bias_gelu(site: Site, x: Any, bias: Any) -> Any:
    """A bias and a Gaussian error linear unit."""
    x, bias = aligned(site, x, bias)
    return jax.nn.gelu(x + bias, approximate=False)


def fast_gelu(site: Site, x: Any, bias: Any = None) -> Any:
    """The same by tanh."""
    if bias is not None:
        x, bias = aligned(site, x, bias)
        x = x + bias
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(site: Site, x: Any) -> Any:
    """``x`` times the sigmoid of ``alpha x``."""
    return x * jax.nn.sigmoid(x * np.asarray(site.get("alpha", 1.702), x.dtype))


def skip_layer_norm(site: Site, x: Any, skip: Any, gamma: Any, beta: Any = None, bias: Any = None) -> Any:
    """What is skipped is added, then normalized; the fourth result is the sum."""
    total = x + skip
    if bias is not None:
        total, bias = aligned(site, total, bias)
        total = total + bias
    y = normalization.layer_norm(site, total, gamma, beta)
    return (y[0], None, None, total)[: max(site.outs, 1)]


def simplified_layer_norm(site: Site, x: Any, scale: Any) -> Any:
    """Divided by the root of the mean square."""
    return normalization.rms_norm(site, x, scale)


def skip_simplified_layer_norm(site: Site, x: Any, skip: Any, gamma: Any, bias: Any = None) -> Any:
    """What is skipped is added, then divided by the root of the mean square; the fourth result is the sum."""
    total = x + skip
    if bias is not None:
        total, bias = aligned(site, total, bias)
        total = total + bias
    return (normalization.rms_norm(site, total, gamma), None, None, total)[: max(site.outs, 1)]


def matmul_nbits(site: Site, x: Any, codes: Any, scale: Any, zero: Any = None, *rest: Any) -> Any:
    """A product with a weight of few bits in blocks along its inputs."""
    if any(one is not None for one in rest[:1]):
        raise ValueError("its groups are given by an index, which is not read")
    rows, length, bits, block = (site.get(name) for name in ("N", "K", "bits", "block_size"))
    if bits not in (4, 8):
        raise ValueError(f"weights of {bits} bits; 4 and 8 are read")
    blocks = -(-length // block)
    values = _nibbles(codes.reshape(rows, blocks, -1), bits)[..., :block].astype(jnp.float32)
    middle: Any = np.float32(2 ** (bits - 1))
    if zero is not None:
        if jnp.issubdtype(zero.dtype, jnp.floating):
            middle = zero.reshape(rows, blocks, 1)
        else:
            middle = _nibbles(zero.reshape(rows, -1), bits)[:, :blocks].astype(jnp.float32)[..., None]
    weight = ((values - middle) * scale.reshape(rows, blocks, 1).astype(jnp.float32)).reshape(rows, -1)[:, :length]
    y = jnp.matmul(x, weight.T.astype(x.dtype))
    return y if len(rest) < 2 or rest[1] is None else y + rest[1].reshape((1,) * (y.ndim - 1) + (-1,))


def _nibbles(bytes_: Any, bits: int) -> Any:
    """Two codes of four bits a byte, the first in the low half."""
    bytes_ = on_device(bytes_)
    if bits == 8:
        return bytes_
    return jnp.stack([bytes_ & 15, bytes_ >> 4], -1).reshape(*bytes_.shape[:-1], -1)


def integers_to_float(site: Site, a: Any, b: Any, a_s: Any, b_s: Any, az: Any = None, bz: Any = None, bias: Any = None) -> Any:
    """A product of integers, scaled."""
    y = quantized.integer_matmul(site, a, b, az, bz).value
    scale = on_device(b_s)
    scale = scale.reshape((1,) * (y.ndim - 1) + (-1,)) if scale.size > 1 else scale.reshape(())
    y = y * (on_device(a_s).reshape(()) * scale)
    return y if bias is None else y + on_device(bias).reshape((1,) * (y.ndim - 1) + (-1,))


def dynamic_matmul(site: Site, a: Any, b: Any, b_s: Any, bz: Any = None, bias: Any = None) -> Any:
    """A product of integers, the first of which are rounded by the range that is found now."""
    codes, scale, zero = quantized.dynamic_quantize(site, a)
    return integers_to_float(site, codes, b, scale, b_s, zero, bz, bias)


def dynamic_lstm(site: Site, x: Any, w: Any, r: Any, *rest: Any) -> Any:
    """An LSTM whose inputs and states are rounded at every step by the range that is found then.

    Its weights are (directions, inputs, gates * hidden), as this package keeps them.
    """
    b, lens, h, c, p, ws, wz, rs, rz = (*rest, *(None,) * 9)[:9]
    floating = [not isinstance(one, Codes) and jnp.issubdtype(one.dtype, jnp.floating) for one in (w, r)]
    w = w if floating[0] else quantized.whole(w, _each(wz, w)) * _each(ws, w)
    r = r if floating[1] else quantized.whole(r, _each(rz, r)) * _each(rs, r)
    return recurrent.lstm(site, x, w, r, b, lens, h, c, p, rounded=_rounded)


def _each(part: Any, like: Any) -> Any:
    """A scale or zero point, one a direction or one a column, for weights (directions, inputs, gates * hidden)."""
    part = on_device(part)
    return part.reshape(part.shape[0], 1, -1) if part.ndim else part.reshape(1, 1, 1)


def _rounded(x: Any) -> Any:
    """A value as eight bits of its own range hold it."""
    codes, scale, zero = quantized.dynamic_quantize(None, x)  # type: ignore[arg-type]
    return (codes.value - zero.value) * scale


RULES: dict[str, Rule] = {
    "SimplifiedLayerNormalization": Rule(simplified_layer_norm),
    "com.microsoft:BiasGelu": Rule(bias_gelu),
    "com.microsoft:DynamicQuantizeLSTM": Rule(dynamic_lstm, codes="kept"),
    "com.microsoft:DynamicQuantizeMatMul": Rule(dynamic_matmul, codes="kept"),
    "com.microsoft:FastGelu": Rule(fast_gelu),
    "com.microsoft:FusedConv": Rule(fused_conv),
    "com.microsoft:FusedGemm": Rule(fused_gemm),
    "com.microsoft:FusedMatMul": Rule(fused_matmul),
    "com.microsoft:Gelu": Rule(activations.gelu),
    "com.microsoft:MatMulIntegerToFloat": Rule(integers_to_float, codes="kept"),
    "com.microsoft:MatMulNBits": Rule(matmul_nbits),
    "com.microsoft:QuickGelu": Rule(quick_gelu),
    "com.microsoft:SkipLayerNormalization": Rule(skip_layer_norm),
    "com.microsoft:SkipSimplifiedLayerNormalization": Rule(skip_simplified_layer_norm),
}
