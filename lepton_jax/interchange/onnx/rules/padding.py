"""Padding with a number, the edge, or what is mirrored or wrapped around."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.interchange.onnx.host import integers, is_dim, is_host, on_device
from lepton_jax.interchange.onnx.site import Rule, Site

_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def pad(site: Site, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    """Padded before and behind axes; where the number is negative, cut."""
    given = integers(site.get("pads", site.get("paddings")) if pads is None else pads)
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in integers(axes)]
    if len(given) != 2 * len(along):
        raise ValueError(f"{len(given)} paddings for {len(along)} axes")
    widths: list[tuple[Any, Any]] = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        widths[axis] = (given[i], given[i + len(along)])
    site.room([n + a + z for n, (a, z) in zip(x.shape, widths)], x.dtype)
    mode = site.get("mode", "constant")
    if mode == "constant":
        return _constant(site, x, widths, value)
    # Cut first: what is mirrored is what is left.
    index = tuple(slice(_cut(a), n - _cut(z)) if _cut(a) or _cut(z) else slice(None) for n, (a, z) in zip(x.shape, widths))
    more = [(_grown(a), _grown(z)) for a, z in widths]
    return (np if is_host(x) else jnp).pad(x[index], more, _MODES[mode])


def _cut(n: Any) -> Any:
    return 0 if is_dim(n) else max(-n, 0)


def _grown(n: Any) -> Any:
    return n if is_dim(n) else max(n, 0)


def _constant(site: Site, x: Any, widths: list[tuple[Any, Any]], value: Any) -> Any:
    fill = site.get("value", 0.0) if value is None else value
    if is_host(x) and is_host(fill):
        index = tuple(slice(_cut(a), n - _cut(z)) for n, (a, z) in zip(x.shape, widths))
        grown = [(_grown(a), _grown(z)) for a, z in widths]
        return np.pad(x[index], grown, constant_values=np.asarray(fill).reshape(()).item())
    filled = jnp.asarray(on_device(np.asarray(fill)) if is_host(fill) or isinstance(fill, float) else fill, x.dtype)
    return lax.pad(on_device(x), filled.reshape(()), [(a, z, 0) for a, z in widths])


RULES: dict[str, Rule] = {"Pad": Rule(pad, host=(1, 3), both=True)}
