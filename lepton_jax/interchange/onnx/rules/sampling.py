"""Values between the elements of images, at places that are given: grids, regions, and convolutions with moved taps."""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.interchange.onnx.rules.windows import along, pads_of
from lepton_jax.interchange.onnx.site import Rule, Site

_CUBIC = -0.75


def grid_sample(site: Site, x: Any, grid: Any) -> Any:
    """``x[N, C, ...]`` at places of ``grid[N, ..., r]`` between -1 and 1, the last axis of `x` first."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(site.get("mode", "linear"), site.get("mode", "linear"))
    corners, padding = bool(site.get("align_corners", 0)), site.get("padding_mode", "zeros")
    sizes = x.shape[2:]
    places = []
    for axis, size in enumerate(sizes):
        n = grid[..., len(sizes) - 1 - axis].astype(jnp.float32)
        at = (n + 1) / 2 * (size - 1) if corners else ((n + 1) * size - 1) / 2
        at = jnp.rint(at) if mode == "nearest" else at
        places.append(_inside(at, size, padding, corners))
    taps = [_taps(at, mode) for at in places]
    site.room((*x.shape[:2], *grid.shape[1:-1], len(taps[0]) ** len(taps)), x.dtype)
    return _summed(x, taps, padding, corners)


def _inside(at: Any, size: int, padding: str, corners: bool) -> Any:
    """Places brought into the image, as the padding has it."""
    if padding == "border":
        return jnp.clip(at, 0, size - 1)
    return _mirrored(at, size, corners) if padding == "reflection" else at


def _mirrored(at: Any, size: int, corners: bool) -> Any:
    """Places reflected at the ends, as often as is needed."""
    low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
    if high == low:
        return jnp.zeros_like(at)
    back = jnp.mod(at - low, 2 * (high - low))
    return jnp.where((at < low) | (at > high), low + jnp.minimum(back, 2 * (high - low) - back), at)


def _taps(at: Any, mode: str) -> list[tuple[Any, Any]]:
    """Elements that a place is made of along one axis, and their weights."""
    if mode == "nearest":
        return [(at.astype(jnp.int32), jnp.ones_like(at))]
    first = jnp.floor(at)
    t, first = at - first, first.astype(jnp.int32)
    if mode == "linear":
        return [(first, 1 - t), (first + 1, t)]
    if mode != "cubic":
        raise ValueError(f"mode {mode!r}; there are linear, nearest and cubic")
    near = [((_CUBIC + 2) * s - (_CUBIC + 3)) * s * s + 1 for s in (t, 1 - t)]
    far = [((_CUBIC * s - 5 * _CUBIC) * s + 8 * _CUBIC) * s - 4 * _CUBIC for s in (t + 1, 2 - t)]
    return [(first - 1, far[0]), (first, near[0]), (first + 1, near[1]), (first + 2, far[1])]


def _summed(x: Any, taps: list[list[tuple[Any, Any]]], padding: str, corners: bool) -> Any:
    """The weighted sum of elements of ``x[N, C, ...]``; taps are ``[N, ...]``."""
    sizes, total = x.shape[2:], 0
    for chosen in itertools.product(*taps):
        weight, index = 1.0, []
        for (place, share), size in zip(chosen, sizes):
            if padding == "zeros":
                share = jnp.where((place >= 0) & (place < size), share, 0)
            elif padding == "reflection":
                place = _mirrored(place.astype(jnp.float32), size, corners).astype(jnp.int32)
            index.append(jnp.clip(place, 0, size - 1))
            weight = weight * share
        total = total + _picked(x, index) * jnp.expand_dims(weight, 1).astype(x.dtype)
    return total


def _picked(x: Any, index: list[Any]) -> Any:
    """``x[n, c, index[n, ...], ...]``."""
    n = np.arange(x.shape[0]).reshape(-1, *[1] * (index[0].ndim - 1))
    return jnp.moveaxis(x[(n, slice(None), *index)], -1, 1)


def roi_align(site: Site, x: Any, rois: Any, batches: Any) -> Any:
    """Regions ``rois[R, 4]`` of ``x[N, C, H, W]``, each as so many cells, of means or largest of points within."""
    points, moved = site.get("sampling_ratio", 0), site.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    moved = moved and site.version >= 16
    if points < 1:
        raise ValueError("sampling_ratio 0: how many points are taken depends on the regions, so that no shape is known")
    cells = (site.get("output_height", 1), site.get("output_width", 1))
    site.room((rois.shape[0], x.shape[1], *(points * count for count in cells)), x.dtype)
    rois = rois.astype(jnp.float32) * np.float32(site.get("spatial_scale", 1.0)) - (0.5 if moved else 0.0)
    places, there = [], []
    for axis, size, count in ((0, x.shape[2], cells[0]), (1, x.shape[3], cells[1])):
        start, length = rois[:, 1 - axis], rois[:, 3 - axis] - rois[:, 1 - axis]
        length = length if moved else jnp.maximum(length, 1.0)
        steps = (np.arange(count * points, dtype=np.float32) + 0.5) / (count * points)
        at = start[:, None] + length[:, None] * steps
        there.append((at >= -1) & (at <= size))
        places.append(jnp.clip(at, 0, size - 1))
    both = [
        jnp.broadcast_to(one, (len(rois), *(count * points for count in cells)))
        for one in (places[0][:, :, None], places[1][:, None, :])
    ]
    kept = there[0][:, :, None] & there[1][:, None, :]
    mine = x[batches.astype(jnp.int32)]
    parts = []
    for chosen in itertools.product(*(_taps(at, "linear") for at in both)):
        weight = jnp.where(kept, chosen[0][1] * chosen[1][1], 0)
        index = [jnp.clip(place, 0, size - 1) for (place, _), size in zip(chosen, x.shape[2:])]
        parts.append(_picked(mine, index) * weight[:, None].astype(x.dtype))
    largest = site.get("mode", "avg") == "max"
    values = jnp.max(jnp.stack(parts), axis=0) if largest else sum(parts)
    values = values.reshape(len(rois), x.shape[1], cells[0], points, cells[1], points)
    return values.max((3, 5)) if largest else values.mean((3, 5))


def max_roi_pool(site: Site, x: Any, rois: Any) -> Any:
    """The largest element of every cell of regions ``rois[R, 5]``, (image, x1, y1, x2, y2), of ``x[N, C, H, W]``; 0 of none."""
    cells = tuple(site.get("pooled_shape"))
    most = max(cells[0] * x.shape[2], cells[0] * cells[1]) * x.shape[3]
    site.room((rois.shape[0], x.shape[1], most), x.dtype)
    # Halves go away from zero.
    at = rois[:, 1:].astype(jnp.float32) * np.float32(site.get("spatial_scale", 1.0))
    corners = jnp.sign(at) * jnp.floor(jnp.abs(at) + 0.5)
    values = x[rois[:, 0].astype(jnp.int32)]
    for axis, count in zip((2, 3), cells):
        size, first, last = x.shape[axis], corners[:, 3 - axis], corners[:, 5 - axis]
        step = (jnp.maximum(last - first + 1, 1) / count)[:, None]
        ends = [jnp.clip(one + first[:, None], 0, size) for one in _around(np.arange(count, dtype=np.float32), step)]
        places = jnp.arange(size)
        inside = (places >= ends[0][..., None]) & (places < ends[1][..., None])  # (R, count, size)
        inside = jnp.expand_dims(inside, (1, 4) if axis == 2 else (1, 2))
        values = jnp.max(jnp.where(inside, jnp.expand_dims(values, axis), -jnp.inf), axis=axis + 1)
    return jnp.where(jnp.isneginf(values), 0, values).astype(x.dtype)


def _around(number: Any, step: Any) -> tuple[Any, Any]:
    """Where cells of a length that is not whole begin and end."""
    return jnp.floor(number * step), jnp.ceil((number + 1) * step)


def deform_conv(site: Site, x: Any, w: Any, offset: Any, bias: Any = None, mask: Any = None) -> Any:
    """A convolution of ``x[N, C, H, W]`` each of whose taps is moved by an offset of its own, and weighted by a mask."""
    n = w.ndim - 2
    if n != 2:
        raise ValueError(f"{n} spatial axes; there is a rule for 2")
    kernel, groups, shared = w.shape[2:], site.get("group", 1), site.get("offset_group", 1)
    strides, dilations = along(site, "strides", n), along(site, "dilations", n)
    pads = pads_of(site, x.shape[2:], kernel, strides, dilations)
    taps, outer = kernel[0] * kernel[1], offset.shape[2:]
    moves = offset.reshape(x.shape[0], shared, taps, 2, *outer)
    weights = jnp.ones_like(moves[:, :, :, 0]) if mask is None else mask.reshape(moves[:, :, :, 0].shape)
    site.room((*x.shape[:2], taps, *outer), x.dtype)
    found = []
    for part in range(shared):
        some = x[:, part * x.shape[1] // shared : (part + 1) * x.shape[1] // shared]
        places = []
        for axis in range(n):
            first = np.arange(outer[axis], dtype=np.float32) * strides[axis] - pads[axis][0]
            first = first.reshape([-1 if at == axis else 1 for at in range(n)])
            steps = np.indices(kernel)[axis].reshape(-1, 1, 1) * dilations[axis]
            places.append(moves[:, part, :, axis] + (first[None] + steps.astype(np.float32)))
        picked = _summed(some, [_taps(at, "linear") for at in places], "zeros", True)
        found.append(picked * weights[:, part, None])
    patches = jnp.concatenate(found, axis=1).reshape(x.shape[0], groups, -1, taps, *outer)
    rows = w.reshape(groups, -1, w.shape[1], taps)
    y = jnp.einsum("ngcthw,goct->ngohw", patches, rows).reshape(x.shape[0], w.shape[0], *outer)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


RULES: dict[str, Rule] = {
    "DeformConv": Rule(deform_conv),
    "GridSample": Rule(grid_sample),
    "MaxRoiPool": Rule(max_roi_pool),
    "RoiAlign": Rule(roi_align),
}
