"""Activations of one value each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.interchange.onnx.host import on_device
from lepton_jax.interchange.onnx.rules.elementwise import aligned
from lepton_jax.interchange.onnx.site import Rule, Site


def softmax(site: Site, x: Any) -> Any:
    """Softmax or its logarithm; before operator set 13, over all axes from one on."""
    function = jax.nn.log_softmax if site.node.op == "LogSoftmax" else jax.nn.softmax
    if site.version >= 13:
        return function(x, axis=site.get("axis", -1))
    axis = site.get("axis", 1)
    return function(x, axis=tuple(range(axis + x.ndim if axis < 0 else axis, x.ndim)))


def hardmax(site: Site, x: Any) -> Any:
    """1 at the first largest element along an axis, or before operator set 13 of all axes from one on, else 0."""
    axis = site.get("axis", -1 if site.version >= 13 else 1) % x.ndim
    if site.version >= 13:
        return jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], dtype=x.dtype, axis=axis)
    flat = x.reshape(*x.shape[:axis], -1)
    return jax.nn.one_hot(jnp.argmax(flat, -1), flat.shape[-1], dtype=x.dtype).reshape(x.shape)


def prelu(site: Site, x: Any, slope: Any) -> Any:
    """A slope of its own below zero."""
    x, slope = aligned(site, x, slope)
    return jnp.where(x < 0, x * slope, x)


def gelu(site: Site, x: Any) -> Any:
    """Gaussian error linear unit, exact or by tanh."""
    return jax.nn.gelu(x, approximate=site.get("approximate", "none") == "tanh")


def leaky_relu(site: Site, x: Any) -> Any:
    """A small slope below zero."""
    return jnp.where(x < 0, x * np.asarray(site.get("alpha", 0.01), x.dtype), x)


def elu(site: Site, x: Any) -> Any:
    """Exponential below zero."""
    return jax.nn.elu(x, np.asarray(site.get("alpha", 1.0), x.dtype))


def celu(site: Site, x: Any) -> Any:
    """Exponential below zero, with a derivative that goes on."""
    return jax.nn.celu(x, np.asarray(site.get("alpha", 1.0), x.dtype))


def selu(site: Site, x: Any) -> Any:
    """Scaled exponential below zero."""
    alpha, gamma = site.get("alpha", 1.67326319217681884765625), site.get("gamma", 1.05070102214813232421875)
    return np.asarray(gamma, x.dtype) * jax.nn.elu(x, np.asarray(alpha, x.dtype))


def hard_sigmoid(site: Site, x: Any) -> Any:
    """A line between 0 and 1."""
    alpha, beta = (np.asarray(site.get(name, by), x.dtype) for name, by in (("alpha", 0.2), ("beta", 0.5)))
    return jnp.clip(x * alpha + beta, 0, 1)


def hard_swish(site: Site, x: Any) -> Any:
    """``x`` times a line between 0 and 1."""
    return x * jnp.clip(x * np.asarray(1 / 6, x.dtype) + np.asarray(0.5, x.dtype), 0, 1)


def swish(site: Site, x: Any) -> Any:
    """``x`` times the sigmoid of ``alpha x``."""
    return x * jax.nn.sigmoid(x * np.asarray(site.get("alpha", 1.0), x.dtype))


def shrink(site: Site, x: Any) -> Any:
    """Towards zero by a bias, and zero within a threshold."""
    bias, limit = (np.asarray(site.get(name, by), x.dtype) for name, by in (("bias", 0.0), ("lambd", 0.5)))
    return jnp.where(x < -limit, x + bias, jnp.where(x > limit, x - bias, jnp.zeros_like(x)))


def thresholded_relu(site: Site, x: Any) -> Any:
    """Zero up to a threshold."""
    return jnp.where(x > np.asarray(site.get("alpha", 1.0), x.dtype), x, jnp.zeros_like(x))


def dropout(site: Site, x: Any, ratio: Any = None, training: Any = None) -> Any:
    """What evaluation has of it: nothing."""
    if training is not None and np.any(training):
        raise ValueError("is in training mode; export the model in evaluation mode")
    return (x, jnp.ones(x.shape, bool))[: max(site.outs, 1)]


RULES: dict[str, Rule] = {
    "Celu": Rule(celu),
    "Dropout": Rule(dropout, host=(2,)),
    "Elu": Rule(elu),
    "Erf": Rule(lambda site, x: lax.erf(x)),
    "Gelu": Rule(gelu),
    "HardSigmoid": Rule(hard_sigmoid),
    "HardSwish": Rule(hard_swish),
    "Hardmax": Rule(hardmax),
    "LeakyRelu": Rule(leaky_relu),
    "LogSoftmax": Rule(softmax),
    "Mish": Rule(lambda site, x: x * jnp.tanh(jax.nn.softplus(x))),
    "PRelu": Rule(prelu),
    "Relu": Rule(lambda site, x: jax.nn.relu(on_device(x))),
    "Selu": Rule(selu),
    "Shrink": Rule(shrink),
    "Sigmoid": Rule(lambda site, x: jax.nn.sigmoid(x)),
    "Softmax": Rule(softmax),
    "Softplus": Rule(lambda site, x: jax.nn.softplus(x)),
    "Softsign": Rule(lambda site, x: x / (1 + jnp.abs(x))),
    "Swish": Rule(swish),
    "ThresholdedRelu": Rule(thresholded_relu),
}
