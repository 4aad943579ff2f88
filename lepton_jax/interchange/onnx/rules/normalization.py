"""Normalization over batches, channels, layers and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.interchange.onnx.rules.elementwise import aligned
from lepton_jax.interchange.onnx.site import Rule, Site


def _channels(x: Any, ndim: int) -> Any:
    return x.reshape((1, -1) + (1,) * (ndim - 2))


def batch_norm(site: Site, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    """By running statistics, as in evaluation."""
    if site.get("training_mode", 0):
        raise ValueError("is in training mode; export the model in evaluation mode")
    factor = scale * lax.rsqrt(variance + np.asarray(site.get("epsilon", 1e-5), variance.dtype))
    y = (x - _channels(mean.astype(x.dtype), x.ndim)) * _channels(factor.astype(x.dtype), x.ndim)
    return y + _channels(bias.astype(x.dtype), x.ndim)


def normalized(x: Any, axes: Sequence[int], epsilon: float) -> Any:
    """Zero mean and unit variance over axes, in float32 at least."""
    mean = jnp.mean(x, tuple(axes), keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred * centred, tuple(axes), keepdims=True)
    return centred * lax.rsqrt(variance + np.asarray(epsilon, x.dtype))


def instance_norm(site: Site, x: Any, scale: Any, bias: Any) -> Any:
    """Every channel of every image by itself."""
    y = normalized(x, range(2, x.ndim), site.get("epsilon", 1e-5))
    return y * _channels(scale, x.ndim) + _channels(bias, x.ndim)


def layer_norm(site: Site, x: Any, scale: Any, bias: Any = None) -> Any:
    """Over all axes from one on; its mean and the inverse of its deviation, if asked for."""
    axis, epsilon = site.get("axis", -1) % x.ndim, site.get("epsilon", 1e-5)
    axes = tuple(range(axis, x.ndim))
    wide = x.astype(jnp.float32) if x.dtype in (jnp.float16, jnp.bfloat16) else x
    mean = jnp.mean(wide, axes, keepdims=True)
    centred = wide - mean
    inverse = lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + np.asarray(epsilon, wide.dtype))
    y, scale = aligned(site, (centred * inverse).astype(x.dtype), scale)
    y = y * scale
    if bias is not None:
        y, bias = aligned(site, y, bias)
        y = y + bias
    return (y, mean, inverse)[: max(site.outs, 1)]


def rms_norm(site: Site, x: Any, scale: Any) -> Any:
    """Divided by the root of the mean square over all axes from one on."""
    axes = tuple(range(site.get("axis", -1) % x.ndim, x.ndim))
    wide = x.astype(jnp.float32) if x.dtype in (jnp.float16, jnp.bfloat16) else x
    square = jnp.mean(wide * wide, axes, keepdims=True)
    y = (wide * lax.rsqrt(square + np.asarray(site.get("epsilon", 1e-5), wide.dtype))).astype(x.dtype)
    y, scale = aligned(site, y, scale)
    return y * scale


def group_norm(site: Site, x: Any, scale: Any, bias: Any) -> Any:
    """Over groups of channels; before operator set 21 with a scale a group."""
    groups = site.get("num_groups")
    n, c = x.shape[:2]
    y = normalized(x.reshape(n, groups, -1), (2,), site.get("epsilon", 1e-5))
    if scale.shape[0] == groups and groups != c:
        scale, bias = (jnp.repeat(one, c // groups) for one in (scale, bias))
    return y.reshape(x.shape) * _channels(scale, x.ndim) + _channels(bias, x.ndim)


def mean_variance_norm(site: Site, x: Any) -> Any:
    """Zero mean and unit variance over axes."""
    axes = tuple(site.get("axes", [0, 2, 3]))
    mean = jnp.mean(x, axes, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(x * x, axes, keepdims=True) - mean * mean)
    return (x - mean) / (deviation + np.asarray(1e-9, x.dtype))


def local_response_norm(site: Site, x: Any) -> Any:
    """Divided by the power of what neighbouring channels have."""
    size = site.get("size")
    before = (size - 1) // 2
    pads = ((0, 0), (before, size - 1 - before), *((0, 0) for _ in range(x.ndim - 2)))
    window = (1, size, *(1 for _ in range(x.ndim - 2)))
    total = lax.reduce_window(x * x, np.zeros((), x.dtype), lax.add, window, (1,) * x.ndim, pads)
    alpha, beta, bias = (
        np.asarray(site.get(name, by), x.dtype) for name, by in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return x / (bias + alpha / np.asarray(size, x.dtype) * total) ** beta


RULES: dict[str, Rule] = {
    "BatchNormalization": Rule(lambda site, *values: batch_norm(site, *values[:5])),
    "GroupNormalization": Rule(group_norm),
    "InstanceNormalization": Rule(instance_norm),
    "LRN": Rule(local_response_norm),
    "LayerNormalization": Rule(layer_norm),
    "MeanVarianceNormalization": Rule(mean_variance_norm),
    "RMSNormalization": Rule(rms_norm),
}
