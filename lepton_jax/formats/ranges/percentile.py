"""Leave out the outermost values."""

import dataclasses
import math

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import is_traced
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format
from lepton_jax.formats.ranges import histogram
from lepton_jax.formats.ranges.base import Range
from lepton_jax.formats.ranges.histogram import Counting, Histogram
from lepton_jax.formats.statistics import extremes


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Percentile(Counting):
    """Cover all values but the outermost of either side.

    With the n values in order, x_1 to x_n, and ``k = ceil((n - 1) q / 100)``, the range is ``[x_{n-k}, x_{k+1}]``, and zero:
    a value of each side, never between two. Over batches the values are counted in `bins` bins on either side of zero, and the
    range is a bin's edge, less than a bin beyond the percentile.

    Args:
      q: percents, above 50 and up to 100 (everything).
      bins: on either side of zero; a range of powers of two is divided into them, so that at least half are in use.

    Raises:
      ValueError: for settings out of range.

    Example:
      >>> Percentile(q=75)(jnp.array([-9.0, -1.0, 0.0, 1.0, 90.0]), (0,))
      (Array([-1.], dtype=float32), Array([1.], dtype=float32))

    Source: Wu et al. 2020, "Integer quantization for deep learning inference", section 5.1, with either side's percentile in
    place of the magnitude's.
    """

    q: float = 99.9
    bins: int = 2048

    def __post_init__(self) -> None:
        if not is_traced(self.q) and not 50 < self.q <= 100:
            raise ValueError(f"Percentile: q must be above 50 and up to 100, in percent; got {self.q}. Usual is 99.9.")
        super().__post_init__()

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format | None = None) -> Range:
        if not x.size:
            return extremes(x, axes)
        kept = [axis for axis in range(x.ndim) if axis not in axes]
        shape = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
        rows = jnp.nan_to_num(x.astype(jnp.float32), nan=0.0)
        rows = jnp.sort(jnp.transpose(rows, (*kept, *axes)).reshape(math.prod(shape), -1), axis=1)
        rank = self._rank(rows.shape[1])
        low, high = rows[:, rows.shape[1] - 1 - rank], rows[:, rank]
        return jnp.minimum(low, 0).reshape(shape), jnp.maximum(high, 0).reshape(shape)

    def _rank(self, count: int) -> int:
        return math.ceil((count - 1) * self.q / 100)

    def range(self, state: Histogram, fmt: Format | None = None) -> Range:
        below = jnp.cumsum(state.counts, axis=-1)
        total = below[..., -1:]
        # As many values as may be beyond the range, on either side. Whole numbers, in which float32 would lose the small rest.
        beyond = jnp.floor((total.astype(jnp.float32) - 1) * (1 - self.q / 100)).astype(jnp.uint32)
        beyond = jnp.where(total > 0, beyond, 0)
        borders = histogram.edges(state)
        first = jnp.argmax(below > beyond, axis=-1, keepdims=True)
        last = jnp.argmax(below >= total - beyond, axis=-1, keepdims=True)
        low = jnp.take_along_axis(borders, first, axis=-1)[..., 0]
        high = jnp.take_along_axis(borders, last + 1, axis=-1)[..., 0]
        return jnp.clip(low, state.low, 0), jnp.clip(high, 0, state.high)
