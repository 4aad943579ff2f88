"""Shapes: what they are, what makes a value of one, and what only moves elements."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lepton_jax.interchange.onnx.element_types import dtype_of
from lepton_jax.interchange.onnx.host import integers, is_dim, is_host, lengths, namespace, on_device
from lepton_jax.interchange.onnx.site import Codes, Rule, Site

_FLOAT8 = {
    np.dtype(kind)
    for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz)
}


def shape(site: Site, x: Any) -> Any:
    """Lengths of the axes, or of some of them."""
    return lengths(x.shape)[site.get("start", 0) : site.get("end", len(x.shape))]


def size(site: Site, x: Any) -> Any:
    """How many elements there are."""
    count = math.prod(x.shape)
    made = np.empty((), object if is_dim(count) else np.int64)
    made[()] = count
    return made


def cast(site: Site, x: Any, like: Any = None) -> Any:
    """Elements of another type."""
    if like is not None:
        dtype = like.dtype
    else:
        dtype = dtype_of(site.get("to"))
    if isinstance(x, Codes):
        return (
            x.value.astype(dtype) if dtype.kind == "f" else on_device(x.integers()).astype(jax.dtypes.canonicalize_dtype(dtype))
        )
    if is_host(x):
        if x.dtype == object:
            return x
        with np.errstate(all="ignore"):
            return np.asarray(x).astype(dtype)
    kind = jax.dtypes.canonicalize_dtype(dtype)
    if kind in _FLOAT8 and site.get("saturate", 1) and jnp.issubdtype(x.dtype, jnp.floating):
        most = float(ml_dtypes.finfo(kind).max)
        x = jnp.where(jnp.isnan(x), x, jnp.clip(x, -most, most))
    return x.astype(kind)


def constant_of_shape(site: Site, dims: Any) -> Any:
    """One number everywhere."""
    value = np.asarray(site.get("value", np.zeros(1, np.float32))).reshape(())
    wanted = integers(dims)
    site.room(wanted, value.dtype)
    if any(map(is_dim, wanted)):
        return jnp.full(wanted, on_device(value))
    return np.full(wanted, value)


def numbers(site: Site, start: Any, limit: Any, step: Any) -> Any:
    """Evenly spaced numbers."""
    first, last, by = (np.asarray(one).reshape(()).item() for one in (start, limit, step))
    dtype = next((np.asarray(one).dtype for one in (start, limit, step) if np.asarray(one).dtype != object), np.dtype(np.int64))
    if by == 0:
        raise ValueError("the step is 0")
    if is_dim(first) or is_dim(last):
        count = (last - first + by - (1 if by > 0 else -1)) // by
        return on_device(first) + by * jnp.arange(count, dtype=jax.dtypes.canonicalize_dtype(dtype))
    site.room((max(0, math.ceil((last - first) / by)),), dtype)
    return np.arange(first, last, by, dtype=dtype)


def reshape(site: Site, x: Any, dims: Any) -> Any:
    """The same elements in other axes; 0 keeps a length, -1 is what is left."""
    wanted = integers(dims if dims is not None else site.get("shape"))
    if not site.get("allowzero", 0):
        wanted = [x.shape[i] if not is_dim(n) and n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(tuple(_resolved(x.shape, wanted)))


def _resolved(have: tuple[Any, ...], wanted: list[Any]) -> list[Any]:
    """Lengths with the open one filled in, by cancelling equal ones: symbolic quotients need not be proven."""
    if not any(not is_dim(n) and n == -1 for n in wanted) or not any(map(is_dim, have)):
        return wanted
    left, rest = list(have), [n for n in wanted if is_dim(n) or n != -1]
    for n in [n for n in rest if is_dim(n)]:
        match = next((i for i, m in enumerate(left) if is_dim(m) and m == n), None)
        if match is not None:
            left.pop(match)
            rest.remove(n)
    count = math.prod(left) // math.prod(rest) if rest else math.prod(left)
    return [count if not is_dim(n) and n == -1 else n for n in wanted]


def flatten(site: Site, x: Any) -> Any:
    """A matrix: the axes before one, and those from it on."""
    axis = site.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(site: Site, x: Any) -> Any:
    """Axes in another order, by default reversed."""
    return x.transpose(site.get("perm", list(range(len(x.shape)))[::-1]))


def unsqueeze(site: Site, x: Any, axes: Any = None) -> Any:
    """New axes of length one."""
    return namespace(x).expand_dims(x, tuple(axes_of(site, axes)))


def squeeze(site: Site, x: Any, axes: Any = None) -> Any:
    """Without axes of length one: those that are named, or all."""
    given = site.get("axes") if axes is None else integers(axes)
    if given is None:
        given = [axis for axis, n in enumerate(x.shape) if not is_dim(n) and n == 1]
    return namespace(x).squeeze(x, tuple(given))


def axes_of(site: Site, axes: Any, ndim: int | None = None) -> list[int]:
    """Axes by an attribute, as older operators have them, or by an input."""
    found = (
        list(site.get("axes")) if axes is None and site.get("axes") is not None else integers(axes if axes is not None else [])
    )
    return found if ndim is None else [axis % ndim for axis in found]


def expand(site: Site, x: Any, dims: Any) -> Any:
    """Repeated along axes of length one."""
    wanted = integers(dims)
    rank = max(len(wanted), x.ndim)
    have, wanted = [1] * (rank - x.ndim) + list(x.shape), [1] * (rank - len(wanted)) + wanted
    new = [b if not is_dim(a) and a == 1 else a for a, b in zip(have, wanted)]
    if bad := [(a, b) for a, b in zip(have, wanted) if not is_dim(a) and not is_dim(b) and 1 not in (a, b) and a != b]:
        raise ValueError(f"lengths {bad[0]} do not fit")
    site.room(new, x.dtype)
    return namespace(x).broadcast_to(x.reshape(have), new)


def tile(site: Site, x: Any, repeats: Any, *older: Any) -> Any:
    """Repeated as a whole along axes."""
    times = integers(repeats)
    if older:  # operator set 1: one axis
        times = [times[0] if axis == int(older[0]) else 1 for axis in range(x.ndim)]
    site.room([n * m for n, m in zip(x.shape, times)], x.dtype)
    return namespace(x).tile(x, times)


def concat(site: Site, *values: Any) -> Any:
    """One after the other along an axis."""
    axis = site.get("axis", 1 if site.version < 4 else 0)
    if all(map(is_host, values)):
        arrays = [np.asarray(value) for value in values]
        site.room((sum(array.size for array in arrays),), np.int64)
        return np.concatenate([a.astype(object) for a in arrays] if any(a.dtype == object for a in arrays) else arrays, axis)
    kinds = [value.dtype for value in values if not is_host(value)]
    return jnp.concatenate([on_device(value, kinds[0]) for value in values], axis)


def split(site: Site, x: Any, parts: Any = None) -> Any:
    """Cut along an axis: in parts of given lengths, or of equal ones."""
    axis = site.get("axis", 0)
    given = site.get("split") if parts is None else integers(parts)
    if given is None:
        each = -(-x.shape[axis] // site.outs)
        given = [each] * (site.outs - 1) + [x.shape[axis] - each * (site.outs - 1)]
    if not any(map(is_dim, (*given, x.shape[axis]))) and sum(given) != x.shape[axis]:
        raise ValueError(f"parts of {given} do not make {x.shape[axis]}")
    out, start, rest = [], 0, [slice(None)] * (axis % x.ndim)
    for length in given:
        out.append(x[(*rest, slice(start, start + length))])
        start += length
    return tuple(out)


def depth_to_space(site: Site, x: Any) -> Any:
    """Channels laid out as blocks of pixels."""
    n, c, h, w = x.shape
    by = site.get("blocksize")
    if site.get("mode", "DCR") == "DCR":
        return x.reshape(n, by, by, c // by**2, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c // by**2, h * by, w * by)
    return x.reshape(n, c // by**2, by, by, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // by**2, h * by, w * by)


def space_to_depth(site: Site, x: Any) -> Any:
    """Blocks of pixels laid out as channels."""
    n, c, h, w = x.shape
    by = site.get("blocksize")
    return x.reshape(n, c, h // by, by, w // by, by).transpose(0, 3, 5, 1, 2, 4).reshape(n, c * by**2, h // by, w // by)


def eye_like(site: Site, x: Any) -> Any:
    """Ones on a diagonal."""
    dtype = dtype_of(site.get("dtype")) if site.get("dtype") else np.dtype(x.dtype)
    return jnp.eye(x.shape[0], x.shape[1], k=site.get("k", 0), dtype=jax.dtypes.canonicalize_dtype(dtype))


def constant(site: Site) -> Any:
    """What the attribute holds."""
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for name, value in site.node.attributes.items():
        if name == "value" and isinstance(value, np.ndarray):
            return value
        if name in kinds:
            return np.asarray(value, kinds[name])
    raise ValueError("holds text or a sparse tensor, which no jax array does")


def bit_cast(site: Site, x: Any) -> Any:
    """The same bits as elements of another type of as many bytes."""
    kind = dtype_of(site.get("to"))
    x = x.astype(np.uint8) if x.dtype == bool else x
    if x.dtype.itemsize != kind.itemsize:
        raise ValueError(f"elements of {x.dtype.itemsize} bytes as {kind}, of {kind.itemsize}")
    if is_host(x):
        return np.asarray(x).view(kind)
    return jax.lax.bitcast_convert_type(x, jax.dtypes.canonicalize_dtype(kind))


RULES: dict[str, Rule] = {
    "BitCast": Rule(bit_cast, both=True),
    "Cast": Rule(cast, both=True, codes="kept"),
    "CastLike": Rule(cast, both=True, codes="kept"),
    "Concat": Rule(concat, both=True),
    "Constant": Rule(constant, both=True),
    "ConstantOfShape": Rule(constant_of_shape, host=(0,), both=True),
    "DepthToSpace": Rule(depth_to_space, codes="moved"),
    "Expand": Rule(expand, host=(1,), both=True),
    "EyeLike": Rule(eye_like),
    "Flatten": Rule(flatten, both=True, codes="moved"),
    "Range": Rule(numbers, host=(0, 1, 2), both=True),
    "Reshape": Rule(reshape, host=(1,), both=True, codes="moved"),
    "Shape": Rule(shape, both=True, codes="kept"),
    "Size": Rule(size, both=True, codes="kept"),
    "SpaceToDepth": Rule(space_to_depth, codes="moved"),
    "Split": Rule(split, host=(1,), both=True),
    "Squeeze": Rule(squeeze, host=(1,), both=True, codes="moved"),
    "Tile": Rule(tile, host=(1, 2), both=True),
    "Transpose": Rule(transpose, both=True, codes="moved"),
    "Unsqueeze": Rule(unsqueeze, host=(1,), both=True, codes="moved"),
}
