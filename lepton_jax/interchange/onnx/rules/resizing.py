"""Images of another size: nearest, linear and cubic, along each axis by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.interchange.onnx.host import integers, is_dim
from lepton_jax.interchange.onnx.site import Rule, Site

_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda c: np.ceil(c - 0.5),
    "round_prefer_ceil": lambda c: np.floor(c + 0.5),
}


def resize(site: Site, x: Any, *given: Any) -> Any:
    """Resized by scales or to sizes; see the operator for how coordinates correspond."""
    roi, scales, sizes = _asked(site, *given)
    axes = [axis % x.ndim for axis in site.get("axes", range(x.ndim))]
    factors: dict[int, float] = {}
    lengths: dict[int, Any] = {}
    for i, axis in enumerate(axes):
        n = x.shape[axis]
        if sizes is not None:
            lengths[axis] = sizes[i]
        elif scales[i] != 1:
            lengths[axis] = math.floor(n * scales[i]) if not is_dim(n) else _scaled(n, scales[i])
            factors[axis] = scales[i]
    policy = site.get("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and policy != "stretch":
        pick = min if policy == "not_larger" else max
        factor = pick(lengths[axis] / x.shape[axis] for axis in axes)
        lengths = {axis: math.floor(factor * x.shape[axis] + 0.5) for axis in axes}
        factors = dict.fromkeys(axes, factor)
    site.room([lengths.get(axis, n) for axis, n in enumerate(x.shape)], x.dtype)
    regions = {axis: (roi[i], roi[i + len(axes)]) for i, axis in enumerate(axes)} if roi is not None else {}
    for axis, new in lengths.items():
        cropped = site.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        if not _same(new, x.shape[axis]) or cropped or factors.get(axis, 1) != 1:
            x = _along(site, x, axis, new, factors.get(axis), regions.get(axis))
    return x


def _asked(site: Site, *given: Any) -> tuple[Any, Any, Any]:
    """Region, scales and sizes, however this version of the operator is told."""
    if site.node.op == "Upsample" or site.version < 11:
        scales = site.get("scales") if site.get("scales") is not None else given[0]
        return None, [float(s) for s in np.asarray(scales).reshape(-1)], None
    roi, scales, sizes = (*given, None, None, None)[:3]
    roi = None if roi is None or np.size(roi) == 0 else [float(r) for r in np.asarray(roi).reshape(-1)]
    if sizes is not None and np.size(sizes):
        return roi, None, integers(sizes)
    return roi, [float(s) for s in np.asarray(scales).reshape(-1)], None


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(a == b)


def _scaled(n: Any, by: float) -> Any:
    if by != int(by):
        raise ValueError(f"a symbolic length times {by}")
    return n * int(by)


def _along(site: Site, x: Any, axis: int, new: Any, factor: float | None, region: Any) -> Any:
    mode = site.get("mode", "nearest")
    old = x.shape[axis]
    if is_dim(old) or is_dim(new):
        return _repeated(site, x, axis, new)
    where = _coordinates(site, old, new, factor, region)
    if mode == "nearest":
        kind = site.get("nearest_mode", "floor" if site.node.op == "Upsample" or site.version < 11 else "round_prefer_floor")
        places = np.clip(_NEAREST[kind](where), 0, old - 1).astype(int)
        if old and new % old == 0 and (places == np.repeat(np.arange(old), new // old)).all():
            y = jnp.repeat(x, new // old, axis=axis)
        else:
            y = jnp.take(x, places, axis)
    else:
        scale = new / old if factor is None else factor
        y = _weighted(site, x, axis, where, scale)
    if site.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        outside = ((where < 0) | (where > old - 1)).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        y = jnp.where(outside, np.asarray(site.get("extrapolation_value", 0.0), x.dtype), y)
    return y


def _repeated(site: Site, x: Any, axis: int, new: Any) -> Any:
    times = new // x.shape[axis]
    if site.get("mode", "nearest") != "nearest" or is_dim(times):
        raise ValueError("an axis of symbolic length can only be resized by whole factors, to the nearest")
    return jnp.repeat(x, int(times), axis=axis)


def _coordinates(site: Site, old: int, new: int, factor: float | None, region: Any) -> np.ndarray:
    """Where each new element lies between the old ones."""
    kind = site.get("coordinate_transformation_mode", "asymmetric" if site.version < 11 else "half_pixel")
    if site.node.op == "Upsample":
        kind = "asymmetric"
    scale = new / old if factor is None else factor
    j = np.arange(new, dtype=np.float64)
    if kind == "asymmetric":
        return j / scale
    if kind == "align_corners":
        length = scale * old
        return j * (old - 1) / (length - 1) if new > 1 and length != 1 else j * 0
    if kind == "pytorch_half_pixel" and new == 1:
        return j * 0
    if kind == "tf_half_pixel_for_nn":
        return (j + 0.5) / scale
    if kind == "tf_crop_and_resize":
        first, last = region
        if new > 1:
            return first * (old - 1) + j * (last - first) * (old - 1) / (new - 1)
        return 0.5 * (first + last) * (old - 1) + j * 0
    if kind == "half_pixel_symmetric":
        adjusted = new / (scale * old)
        centre = old / 2
        return centre * (1 - adjusted) + (j + 0.5) / scale - 0.5
    return (j + 0.5) / scale - 0.5


def _weighted(site: Site, x: Any, axis: int, where: np.ndarray, scale: float) -> Any:
    """Linear or cubic: each new element a sum of old ones near it."""
    cubic, old = site.get("mode") == "cubic", x.shape[axis]
    wide = scale < 1 and bool(site.get("antialias", 0))
    if not cubic and not wide:
        return _linear(x, axis, where)
    site.room((len(where), old), np.float64)
    places, weights = _taps(where, cubic, scale if wide else 1.0, site.get("cubic_coeff_a", -0.75))
    if (cubic and site.get("exclude_outside", 0)) or wide:
        weights = weights * ((places >= 0) & (places < old))
    total = weights.sum(1, keepdims=True)
    matrix = np.zeros((len(where), old))
    np.add.at(matrix, (np.arange(len(where))[:, None], np.clip(places, 0, old - 1)), weights / np.where(total == 0, 1, total))
    used = np.flatnonzero((matrix != 0).any(0))
    kept = jnp.take(x, used, axis) if len(used) < old else x
    return jnp.moveaxis(jnp.tensordot(kept, jnp.asarray(matrix[:, used], x.dtype), axes=((axis,), (1,))), -1, axis)


def _linear(x: Any, axis: int, where: np.ndarray) -> Any:
    old = x.shape[axis]
    where = np.clip(where, 0, old - 1)
    low = np.floor(where).astype(int)
    high, shape = np.minimum(low + 1, old - 1), [-1 if i == axis else 1 for i in range(x.ndim)]
    part = (where - low).astype(x.dtype).reshape(shape)
    return jnp.take(x, low, axis) * (1 - part) + jnp.take(x, high, axis) * part


def _taps(where: np.ndarray, cubic: bool, scale: float, a: float) -> tuple[np.ndarray, np.ndarray]:
    """The places of old elements near each new one, and their weights, (new, taps)."""
    reach = math.ceil((2 if cubic else 1) / scale)
    places = np.floor(where)[:, None].astype(np.int64) + np.arange(1 - reach, reach + 1)
    d = np.abs(places - where[:, None]) * scale
    if not cubic:
        return places, np.maximum(1 - d, 0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return places, np.where(d <= 1, near, np.where(d < 2, far, 0))


RULES: dict[str, Rule] = {
    "Resize": Rule(resize, host=(1, 2, 3)),
    "Upsample": Rule(resize, host=(1,)),
}
