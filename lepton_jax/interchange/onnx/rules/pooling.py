"""Pooling over windows and over whole images."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.interchange.onnx.host import is_dim
from lepton_jax.interchange.onnx.rules.windows import Pads, along, count, last_pads, pads_of
from lepton_jax.interchange.onnx.site import Rule, Site


class _Window:
    """The windows of a node over an image."""

    def __init__(self, site: Site, x: Any):
        n = x.ndim - 2
        self.kernel, self.strides = along(site, "kernel_shape", n), along(site, "strides", n)
        self.dilations, sizes = along(site, "dilations", n), x.shape[2:]
        self.inner: Pads = pads_of(site, sizes, self.kernel, self.strides, self.dilations)
        self.pads = self.inner
        if site.get("ceil_mode", 0) and site.get("auto_pad", "NOTSET") == "NOTSET":
            self.pads = last_pads(sizes, self.kernel, self.strides, self.dilations, self.inner)

    def reduce(self, x: Any, initial: Any, combine: Any, pads: Pads | None = None) -> Any:
        sizes, steps = (1, 1, *self.kernel), (1, 1, *self.strides)
        spread = ((0, 0), (0, 0), *(self.pads if pads is None else pads))
        return lax.reduce_window(x, initial, combine, sizes, steps, spread, window_dilation=(1, 1, *self.dilations))

    def counts(self, sizes: Any, padded: Pads, outs: Any) -> list[np.ndarray]:
        """How many places each window has along each axis that are of the image, or of the padding that counts."""
        found = []
        for axis, (n, out) in enumerate(zip(sizes, outs)):
            k, dilation, (a, z) = self.kernel[axis], self.dilations[axis], padded[axis]
            starts = np.arange(out) * self.strides[axis] - self.pads[axis][0]
            first = np.maximum(-((starts + a) // dilation), 0)
            last = np.minimum((n + z - 1 - starts) // dilation, k - 1)
            found.append(np.maximum(last - first + 1, 0))
        return found


def _lowest(dtype: Any) -> Any:
    return np.asarray(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def max_pool(site: Site, x: Any) -> Any:
    """The largest of each window, and the place of it in the flat array if that is asked for."""
    window = _Window(site, x)
    y = window.reduce(x, _lowest(x.dtype), lax.max)
    return (y, _places(site, x, window)) if site.wants(1) else y


def _places(site: Site, x: Any, window: _Window) -> Any:
    axes = range(x.ndim) if not site.get("storage_order", 0) else [0, 1, *range(x.ndim - 1, 1, -1)]
    numbers = jnp.arange(int(np.prod([x.shape[a] for a in axes]))).reshape([x.shape[a] for a in axes])
    numbers = numbers if not site.get("storage_order", 0) else numbers.transpose(0, 1, *range(x.ndim - 1, 1, -1))
    bottom = _lowest(x.dtype)

    def better(a: Any, b: Any) -> Any:
        (value, place), (other, there) = a, b
        first = (value > other) | ((value == other) & (place <= there))
        return jnp.where(first, value, other), jnp.where(first, place, there)

    sizes, steps = (1, 1, *window.kernel), (1, 1, *window.strides)
    spread = ((0, 0), (0, 0), *window.pads)
    last = np.asarray(np.iinfo(np.int32).max, numbers.dtype)
    both = lax.reduce_window(
        (x, numbers), (bottom, last), better, sizes, steps, spread, window_dilation=(1, 1, *window.dilations)
    )
    return both[1].astype(jax.dtypes.canonicalize_dtype(np.int64))


def average_pool(site: Site, x: Any) -> Any:
    """The mean of each window; its padding counts only if that is asked for."""
    window = _Window(site, x)
    zero = np.zeros((), x.dtype)
    total = window.reduce(x, zero, lax.add)
    if site.get("count_include_pad", 0) and window.pads == window.inner:
        return total / np.asarray(count(window.kernel), x.dtype)
    sizes = x.shape[2:]
    if any(map(is_dim, sizes)):
        return total / window.reduce(jnp.ones((1, 1, *sizes), x.dtype), zero, lax.add)
    # What a last window has beyond the padding never counts.
    padded = window.inner if site.get("count_include_pad", 0) else [(0, 0)] * len(sizes)
    site.room(total.shape, total.dtype)
    for axis, counts in enumerate(window.counts(sizes, padded, total.shape[2:])):
        total = total / counts.astype(x.dtype).reshape([-1 if i == axis + 2 else 1 for i in range(x.ndim)])
    return total


def lp_pool(site: Site, x: Any) -> Any:
    """The norm of each window."""
    p = site.get("p", 2)
    total = _Window(site, x).reduce(lax.integer_pow(jnp.abs(x), p), np.zeros((), x.dtype), lax.add)
    return total ** np.asarray(1 / p, x.dtype)


def _over_image(name: str) -> Rule:
    return Rule(lambda site, x: getattr(jnp, name)(x, tuple(range(2, x.ndim)), keepdims=True))


def global_lp_pool(site: Site, x: Any) -> Any:
    """The norm of each channel."""
    p = site.get("p", 2)
    total = jnp.sum(lax.integer_pow(jnp.abs(x), p), tuple(range(2, x.ndim)), keepdims=True)
    return total ** np.asarray(1 / p, x.dtype)


def max_unpool(site: Site, x: Any, places: Any, dims: Any = None) -> Any:
    """Values put back where their places in the flat array say."""
    n = x.ndim - 2
    kernel, strides = along(site, "kernel_shape", n), along(site, "strides", n)
    pads = site.get("pads", [0] * 2 * n)
    own = [(size - 1) * s + k - pads[i] - pads[i + n] for i, (size, s, k) in enumerate(zip(x.shape[2:], strides, kernel))]
    inner = (*x.shape[:2], *own)
    site.room(inner, x.dtype)
    flat = jnp.zeros(int(np.prod(inner)), x.dtype).at[places.reshape(-1)].set(x.reshape(-1))
    if dims is None:
        return flat.reshape(inner)
    wanted = [int(one) for one in np.asarray(dims)]
    site.room(wanted, x.dtype)
    return jnp.pad(flat.reshape(inner), [(0, n - m) for n, m in zip(wanted, inner)])


RULES: dict[str, Rule] = {
    "AveragePool": Rule(average_pool),
    "GlobalAveragePool": _over_image("mean"),
    "GlobalLpPool": Rule(global_lp_pool),
    "GlobalMaxPool": _over_image("max"),
    "LpPool": Rule(lp_pool),
    "MaxPool": Rule(max_pool, codes="moved"),
    "MaxUnpool": Rule(max_unpool, host=(2,)),
}
