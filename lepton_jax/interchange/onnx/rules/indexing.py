"""Taking elements by their places, and putting them there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.interchange.onnx.host import integers, is_dim, is_host, namespace, on_device
from lepton_jax.interchange.onnx.rules.shapes import axes_of
from lepton_jax.interchange.onnx.site import Rule, Site

_FAR, _LONG = 2**31 - 1, 10**6


def cut(site: Site, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    """Slices along axes; bounds beyond an axis are its ends."""
    given = [site.get("starts") if starts is None else starts, site.get("ends") if ends is None else ends, axes, steps]
    if not all(map(is_host, given[:2])):
        return _moving(x, *given)
    first, last = integers(given[0]), integers(given[1])
    along = axes_of(site, axes, x.ndim) or list(range(len(first)))
    by = [1] * len(first) if steps is None else integers(steps)
    if not len(first) == len(last) == len(along) == len(by) or 0 in [one for one in by if not is_dim(one)]:
        raise ValueError(f"starts, ends, axes and steps of {first}, {last}, {along}, {by}")
    index: list[Any] = [slice(None)] * x.ndim
    for a, b, axis, step in zip(first, last, along, by):
        # What is written for "to the end": past the last element, or backwards past the first.
        far = not is_dim(b) and (b >= (_LONG if is_dim(x.shape[axis]) else _FAR - 1) or b < -_FAR)
        low = None if not is_dim(a) and abs(a) >= _FAR - 1 else a
        index[axis] = slice(low, None if far else b, step)
    return x[tuple(index)]


def _moving(x: Any, starts: Any, ends: Any, axes: Any, steps: Any) -> Any:
    """A slice whose place depends on the inputs: one element of an axis, as exporters write ``x[i]``."""
    raise ValueError("its bounds depend on the values of the model's inputs, and so does a shape; jax compiles none of that")


def gather(site: Site, x: Any, places: Any) -> Any:
    """Rows of an axis by their numbers; those below zero count from the end."""
    axis = site.get("axis", 0) % x.ndim
    if is_host(x) and is_host(places):
        site.room((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]), x.dtype)
        return np.take(x, places.astype(np.int64), axis)
    x = on_device(x)
    if is_host(places) and np.ndim(places) == 0:
        return lax.index_in_dim(x, int(places), axis, keepdims=False)  # a slice, which plans of channels follow
    return jnp.take(x, _positive(places, x.shape[axis]), axis, mode="clip")


def _positive(places: Any, length: Any) -> Any:
    places = on_device(places)
    return jnp.where(places < 0, places + length, places)


def gather_elements(site: Site, x: Any, places: Any) -> Any:
    """For each place an element along an axis."""
    axis = site.get("axis", 0) % x.ndim
    return jnp.take_along_axis(x, _positive(places, x.shape[axis]), axis, mode="clip")


def gather_nd(site: Site, x: Any, places: Any) -> Any:
    """Elements or blocks by coordinates, the last axis of `places`."""
    batch, depth = site.get("batch_dims", 0), places.shape[-1]
    columns = [_positive(places[..., i], x.shape[batch + i]) for i in range(depth)]
    rows = [_along(x.shape[i], i, columns[0].ndim) for i in range(batch)]
    return x.at[(*rows, *columns)].get(mode="clip")


def _along(length: int, axis: int, ndim: int) -> Any:
    return jnp.arange(length).reshape([-1 if i == axis else 1 for i in range(ndim)])


_JOINED = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}


def _put(site: Site, x: Any, index: tuple[Any, ...], updates: Any) -> Any:
    return getattr(x.at[index], _JOINED[site.get("reduction", "none")])(updates.astype(x.dtype))


def scatter_elements(site: Site, x: Any, places: Any, updates: Any) -> Any:
    """Elements put at places along an axis."""
    axis = site.get("axis", 0) % x.ndim
    index: list[Any] = [_along(n, i, x.ndim) for i, n in enumerate(places.shape)]
    index[axis] = _positive(places, x.shape[axis])
    return _put(site, x, tuple(index), updates)


def scatter_nd(site: Site, x: Any, places: Any, updates: Any) -> Any:
    """Elements or blocks put at coordinates."""
    if all(map(is_host, (x, places, updates))) and site.get("reduction", "none") == "none":
        out = np.array(x, object if updates.dtype == object else x.dtype)
        out[tuple(np.moveaxis(places, -1, 0))] = updates
        return out
    x, updates = on_device(x), on_device(updates)
    places = on_device(places)
    return _put(site, x, tuple(_positive(places[..., i], x.shape[i]) for i in range(places.shape[-1])), updates)


def one_hot(site: Site, places: Any, depth: Any, values: Any) -> Any:
    """One of two numbers: the second at the places, the first elsewhere."""
    [count] = integers(depth)
    axis = site.get("axis", -1) % (places.ndim + 1)
    site.room((*places.shape, count), values.dtype)
    places = _positive(places.astype(jnp.int32), count)
    hit = jax.nn.one_hot(places, count, axis=axis, dtype=bool)
    off, on = values[0], values[1]
    return jnp.where(hit, on, off)


def top_k(site: Site, x: Any, count: Any = None) -> Any:
    """The largest or smallest elements along an axis, sorted, and their places."""
    [k] = integers(site.get("k") if count is None else count)
    axis = site.get("axis", -1) % x.ndim
    y = jnp.moveaxis(on_device(x), axis, -1)
    if site.get("largest", 1):
        values, places = lax.top_k(y, k)
    else:
        order = jnp.argsort(y, axis=-1, stable=True)[..., :k]
        values, places = jnp.take_along_axis(y, order, -1), order
    whole = jax.dtypes.canonicalize_dtype(np.int64)
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(places.astype(whole), -1, axis)


def non_zero(site: Site, x: Any) -> Any:
    """Coordinates of what is not zero."""
    return np.stack(np.nonzero(x)).astype(np.int64) if np.ndim(x) else np.zeros((0, int(bool(x))), np.int64)


def compress(site: Site, x: Any, condition: Any) -> Any:
    """Where the condition holds."""
    axis = site.get("axis")
    places = np.nonzero(np.asarray(condition).reshape(-1))[0]
    return namespace(x).take(x.reshape(-1) if axis is None else x, places, 0 if axis is None else axis)


def trilu(site: Site, x: Any, diagonal: Any = None) -> Any:
    """The upper or the lower triangle of matrices."""
    k = 0 if diagonal is None else integers(diagonal)[0]
    names = namespace(x)
    return (names.triu if site.get("upper", 1) else names.tril)(x, k)


def reverse_sequence(site: Site, x: Any, counts: Any) -> Any:
    """The first elements of each sequence in reverse."""
    batch, time = site.get("batch_axis", 1), site.get("time_axis", 0)
    y = jnp.moveaxis(x, (batch, time), (0, 1))
    places = jnp.arange(y.shape[1])[None]
    counts = on_device(counts)[:, None]
    index = jnp.where(places < counts, counts - 1 - places, places)
    y = jnp.take_along_axis(y, index.reshape(*index.shape, *(1,) * (y.ndim - 2)), 1, mode="clip")
    return jnp.moveaxis(y, (0, 1), (batch, time))


def tensor_scatter(site: Site, past: Any, update: Any, starts: Any = None) -> Any:
    """A cache with new rows from each example's place on; circular ones go on at the beginning."""
    axis, length = site.get("axis", -2) % past.ndim, update.shape[site.get("axis", -2)]
    if length > past.shape[axis] or axis == 0:
        raise ValueError(f"{length} new rows along axis {axis} of {past.shape}")
    first = jnp.zeros(past.shape[0], jnp.int32) if starts is None else on_device(starts).astype(jnp.int32)
    places = first[:, None] + np.arange(length, dtype=np.int32)
    places = places % past.shape[axis] if site.get("mode", "linear") == "circular" else places
    y, new = (jnp.moveaxis(on_device(one), axis, 1) for one in (past, update))
    return jnp.moveaxis(y.at[np.arange(len(y))[:, None], places].set(new), 1, axis)


RULES: dict[str, Rule] = {
    "Compress": Rule(compress, host=(1,), both=True),
    "Gather": Rule(gather, both=True),
    "GatherElements": Rule(gather_elements),
    "GatherND": Rule(gather_nd),
    "NonZero": Rule(non_zero, host=(0,), both=True),
    "OneHot": Rule(one_hot, host=(1,)),
    "ReverseSequence": Rule(reverse_sequence),
    "Scatter": Rule(scatter_elements),
    "ScatterElements": Rule(scatter_elements),
    "ScatterND": Rule(scatter_nd, both=True),
    "Slice": Rule(cut, host=(1, 2, 3, 4), both=True),
    "TensorScatter": Rule(tensor_scatter),
    "TopK": Rule(top_k, host=(1,)),
    "Trilu": Rule(trilu, host=(1,), both=True),
}
