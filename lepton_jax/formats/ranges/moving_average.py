"""Follow the range from batch to batch."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import is_traced
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format
from lepton_jax.formats.ranges.base import Range
from lepton_jax.formats.statistics import extremes


class MovingAverageState(NamedTuple):
    """The averages so far.

    Attributes:
      low: float32.
      high: float32, of the same shape.
      batches: how many there were, int32.
    """

    low: Array
    high: Array
    batches: Array


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """Average the batches' smallest and largest values: ``m = decay * m + (1 - decay) * new``, the first batch as it is.

    One outlier moves the range by ``1 - decay`` of its size. Of one array it is the whole range.

    Args:
      decay: in [0, 1); 0 forgets all but the last batch.

    Raises:
      ValueError: for a decay outside of that.

    Example:
      >>> average = MovingAverage(decay=0.5)
      >>> state = average.init((1,))
      >>> for x in ([0.0, 4.0], [0.0, 8.0], [-2.0, 6.0]):
      ...     state = average.observe(state, jnp.array(x), (0,))
      >>> average.range(state)
      (Array([-1.], dtype=float32), Array([6.], dtype=float32))

    Source: Jacob et al. 2018, section 3.1.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not is_traced(self.decay) and not 0 <= self.decay < 1:
            raise ValueError(f"MovingAverage: decay must be in [0, 1); got {self.decay}. Near 1 forgets slowly: 0.9.")

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format | None = None) -> Range:
        return extremes(x, axes)

    def init(self, shape: tuple[int, ...]) -> MovingAverageState:
        return MovingAverageState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros((), jnp.int32))

    def observe(self, state: MovingAverageState, x: Array, axes: tuple[int, ...]) -> MovingAverageState:
        decay = jnp.where(state.batches > 0, self.decay, 0.0).astype(jnp.float32)
        low, high = (decay * old + (1 - decay) * new for old, new in zip(state[:2], extremes(x, axes)))
        return MovingAverageState(low, high, state.batches + 1)

    def range(self, state: MovingAverageState, fmt: Format | None = None) -> Range:
        return state.low, state.high
