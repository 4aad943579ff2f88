"""Lengths of axes as a program computes with them: known numbers and symbolic ones."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np


class Lengths:
    """An array of lengths of axes, of which some are symbolic.

    Args:
      array: of objects.

    Example:
      >>> Lengths(np.array([2, 3], object)).dims()
      (2, 3)
    """

    def __init__(self, array: np.ndarray):
        self.array = array

    def dims(self) -> tuple[Any, ...]:
        """The lengths."""
        return tuple(self.array.reshape(-1))


def lengths_of(value: Any) -> tuple[Any, ...]:
    """A shape that a program computed.

    Example:
      >>> lengths_of(np.array([2, 3]))
      (2, 3)
    """
    if isinstance(value, Lengths):
        return tuple(int(dim) if isinstance(dim, int | np.integer) else dim for dim in value.dims())
    return tuple(int(dim) for dim in np.asarray(value).reshape(-1))


def kept(array: np.ndarray) -> Any:
    """Lengths, or an ordinary array where all are known."""
    if all(isinstance(dim, int | np.integer) for dim in array.reshape(-1)):
        return array.astype(np.int32)
    return Lengths(array)


def as_array(value: Any) -> Any:
    """An array in place of lengths.

    Example:
      >>> as_array(3)
      3
    """
    if not isinstance(value, Lengths):
        return value
    return jnp.stack([jnp.asarray(dim, jnp.int32) for dim in value.dims()]).reshape(value.array.shape)


def objects(value: Any) -> np.ndarray:
    """Lengths or a known array as an array of objects."""
    return value.array if isinstance(value, Lengths) else np.asarray(value).astype(object)
