"""Sums, means, extremes and norms over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.interchange.onnx.host import is_host, namespace, on_device
from lepton_jax.interchange.onnx.rules.shapes import axes_of
from lepton_jax.interchange.onnx.site import Rule, Site


def _reduced(name: str, before: Callable[[Any], Any] | None = None, after: Callable[[Any], Any] | None = None) -> Rule:
    def function(site: Site, x: Any, axes: Any = None) -> Any:
        along = axes_of(site, axes)
        if not along and site.get("noop_with_empty_axes", 0):
            return x if before is None and after is None else _both(x, before, after)
        x = x if before is None else before(x)
        if not is_host(x) and name in ("max", "min") and jnp.issubdtype(x.dtype, jnp.bool_):
            return _over(x, "any" if name == "max" else "all", along, site)
        y = _over(x, name, along, site)
        return y if after is None else after(y)

    return Rule(function, host=(1,), both=before is None and after is None)


def _both(x: Any, before: Callable[[Any], Any] | None, after: Callable[[Any], Any] | None) -> Any:
    x = x if before is None else before(x)
    return x if after is None else after(x)


def _over(x: Any, name: str, axes: list[int], site: Site) -> Any:
    keep = bool(site.get("keepdims", 1))
    along = tuple(axes) if axes else None
    if is_host(x):
        return np.asarray(getattr(np, name)(x, axis=along, keepdims=keep)).astype(x.dtype)
    if name == "logsumexp":
        return jax.nn.logsumexp(x, axis=along, keepdims=keep)
    options = {"initial": _least(x.dtype, name)} if name in ("max", "min") and 0 in x.shape else {}
    made = getattr(jnp, name)(x, axis=along, keepdims=keep, **options)
    return made if made.dtype == x.dtype or name in ("any", "all") else made.astype(x.dtype)


def _least(dtype: Any, name: str) -> Any:
    floating = jnp.issubdtype(dtype, jnp.floating)
    facts = jnp.finfo(dtype) if floating else jnp.iinfo(dtype)
    if floating:
        return -jnp.inf if name == "max" else jnp.inf
    return facts.min if name == "max" else facts.max


def extreme_place(site: Site, x: Any) -> Any:
    """The place of the largest or smallest element along an axis: the first, or the last of equal ones."""
    axis, find = site.get("axis", 0), jnp.argmax if site.node.op == "ArgMax" else jnp.argmin
    if site.get("select_last_index", 0):
        places = x.shape[axis] - 1 - find(jnp.flip(x, axis), axis)
    else:
        places = find(x, axis)
    places = places.astype(jax.dtypes.canonicalize_dtype(np.int64))
    return jnp.expand_dims(places, axis) if site.get("keepdims", 1) else places


def cumulative(site: Site, x: Any, axis: Any) -> Any:
    """Running sums or products."""
    along, product = int(np.asarray(axis).reshape(())), site.node.op == "CumProd"
    names = namespace(x)
    run = names.cumprod if product else names.cumsum
    flip = (lambda y: names.flip(y, along)) if site.get("reverse", 0) else (lambda y: y)
    y = flip(x)
    if site.get("exclusive", 0):
        first = names.ones_like if product else names.zeros_like
        head = [slice(None)] * x.ndim
        one, rest = list(head), list(head)
        one[along], rest[along] = slice(0, 1), slice(0, -1)
        y = names.concatenate([first(y[tuple(one)]), y[tuple(rest)]], along)
    return flip(run(y, along)).astype(x.dtype)


def lp_normalization(site: Site, x: Any) -> Any:
    """Divided by the norm along an axis; zero where that is zero."""
    axis = site.get("axis", -1)
    norm = jnp.sum(jnp.abs(x), axis, keepdims=True) if site.get("p", 2) == 1 else _root(jnp.sum(x * x, axis, keepdims=True))
    return jnp.where(norm == 0, jnp.zeros_like(x), x / jnp.where(norm == 0, jnp.ones_like(norm), norm))


def _root(x: Any) -> Any:
    """The square root, with the derivative zero at zero."""
    return jnp.where(x == 0, jnp.zeros_like(x), jnp.sqrt(jnp.where(x == 0, jnp.ones_like(x), x)))


RULES: dict[str, Rule] = {
    "ArgMax": Rule(extreme_place),
    "ArgMin": Rule(extreme_place),
    "CumProd": Rule(cumulative, host=(1,), both=True),
    "CumSum": Rule(cumulative, host=(1,), both=True),
    "LpNormalization": Rule(lp_normalization),
    "ReduceL1": _reduced("sum", before=lambda x: jnp.abs(on_device(x))),
    "ReduceL2": _reduced("sum", before=lambda x: on_device(x) * x, after=lambda y: jnp.sqrt(y)),
    "ReduceLogSum": _reduced("sum", after=lambda y: jnp.log(y)),
    "ReduceLogSumExp": _reduced("logsumexp", before=on_device),
    "ReduceMax": _reduced("max"),
    "ReduceMean": _reduced("mean"),
    "ReduceMin": _reduced("min"),
    "ReduceProd": _reduced("prod"),
    "ReduceSum": _reduced("sum"),
    "ReduceSumSquare": _reduced("sum", before=lambda x: on_device(x) * x),
}
