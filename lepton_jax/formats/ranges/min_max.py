"""Cover everything."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format
from lepton_jax.formats.ranges.base import Range
from lepton_jax.formats.statistics import extremes


class MinMaxState(NamedTuple):
    """The range so far.

    Attributes:
      low: float32.
      high: float32, of the same shape.
    """

    low: Array
    high: Array


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class MinMax:
    """Cover everything: ``[min x, max x]``. In a symmetric format this is the largest magnitude ("absmax").

    NaN is passed over; an empty array has the range [0, 0].

    Example:
      >>> MinMax()(jnp.array([[1.0, -2.0]]), (0, 1))
      (Array([[-2.]], dtype=float32), Array([[1.]], dtype=float32))
    """

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format | None = None) -> Range:
        return extremes(x, axes)

    def init(self, shape: tuple[int, ...]) -> MinMaxState:
        return MinMaxState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def observe(self, state: MinMaxState, x: Array, axes: tuple[int, ...]) -> MinMaxState:
        low, high = extremes(x, axes)
        return MinMaxState(jnp.minimum(state.low, low), jnp.maximum(state.high, high))

    def range(self, state: MinMaxState, fmt: Format | None = None) -> Range:
        return state.low, state.high
