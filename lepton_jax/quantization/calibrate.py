"""Calibration: the range of values that a format shall cover."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp

from lepton_jax.typing import Array


class Calibration(Protocol):
    """Finds the range to cover, one a channel."""

    def __call__(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return (low, high) over `axes`, with those axes kept at length 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinMax:
    """Cover everything: ``[min x, max x]``. In a symmetric format this is the largest magnitude ("absmax").

    NaN is passed over; an empty array has the range [0, 0].

    Example:
      >>> MinMax()(jnp.array([[1.0, -2.0]]), (0, 1))
      (Array([[-2.]], dtype=float32), Array([[1.]], dtype=float32))
    """

    def __call__(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        x = jnp.nan_to_num(x, nan=0.0)
        return jnp.min(x, axes, keepdims=True, initial=0.0), jnp.max(x, axes, keepdims=True, initial=0.0)
