"""Values that are known while a graph is traced: shapes, axes, counts, and what is computed of them.

They are numpy arrays, of whatever dtype the file says: what jax would cut to 32 bits stays whole. Where a length is symbolic,
an array of objects holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np


def is_host(value: Any) -> bool:
    """Whether a value is known while tracing.

    Example:
      >>> is_host(np.ones(2)), is_host(jnp.ones(2)), is_host(None)
      (True, False, True)
    """
    return value is None or isinstance(value, (np.ndarray, np.generic))


def namespace(*values: Any) -> Any:
    """The module that computes with these: numpy if all are known, else `jax.numpy`.

    Example:
      >>> namespace(np.ones(2)) is np, namespace(np.ones(2), jnp.ones(2)) is jnp
      (True, True)
    """
    return np if all(map(is_host, values)) else jnp


def is_dim(value: Any) -> bool:
    """Whether a value is a symbolic length.

    Example:
      >>> is_dim(jax.export.symbolic_shape("b")[0]), is_dim(3)
      (True, False)
    """
    return jax.export.is_symbolic_dim(value)


def integers(value: Any) -> list[Any]:
    """The numbers of a known vector, as Python integers and symbolic lengths.

    Example:
      >>> integers(np.array([2, -1]))
      [2, -1]
    """
    return [one if is_dim(one) else int(one) for one in np.asarray(value).reshape(-1).tolist()]


def lengths(dims: Sequence[Any]) -> np.ndarray:
    """A shape as a vector.

    Example:
      >>> lengths((2, 3))
      array([2, 3])
    """
    if any(is_dim(one) for one in dims):
        made = np.empty(len(dims), object)
        made[:] = list(dims)
        return made
    return np.array([int(one) for one in dims], np.int64)


def on_device(value: Any, dtype: Any = None) -> Any:
    """A value as jax computes with it: integers that do not fit are the nearest that do.

    Args:
      value: known or not.
      dtype: of symbolic lengths; of all else its own is kept.

    Example:
      >>> on_device(np.array([2**40, -1])).tolist()
      [2147483647, -1]
    """
    if not is_host(value) or value is None:
        return value
    array = np.asarray(value)
    if array.dtype == object:
        flat = [jnp.asarray(one) for one in array.reshape(-1).tolist()]
        return jnp.stack(flat).reshape(array.shape).astype(dtype or flat[0].dtype)
    kind = jax.dtypes.canonicalize_dtype(array.dtype)
    if kind != array.dtype and array.dtype.kind in "iu":
        array = np.clip(array, np.iinfo(kind).min, np.iinfo(kind).max)
    return jnp.asarray(array.astype(kind))
