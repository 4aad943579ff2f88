"""Histograms over batches whose range is not known beforehand, and the calibrations that count in them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.formats.statistics import extremes

_SMALLEST = -120
"""The exponent before anything was seen: bins as narrow as float32 can have."""


class Histogram(NamedTuple):
    """How many values fell into each of 2 n bins of equal width, which cover ``[-2**exponent, 2**exponent)``.

    Attributes:
      counts: uint32, of a range's shape and an axis of 2 n bins more.
      exponent: int32, of a range's shape.
      low: the smallest value, float32, of a range's shape.
      high: the largest.
    """

    counts: Array
    exponent: Array
    low: Array
    high: Array


def empty(shape: tuple[int, ...], bins: int) -> Histogram:
    """Return histograms of nothing.

    Args:
      shape: of the ranges.
      bins: n, on either side of zero.
    """
    zeros = jnp.zeros(shape, jnp.float32)
    counts = jnp.zeros((*shape, 2 * bins), jnp.uint32)
    return Histogram(counts, jnp.full(shape, _SMALLEST, jnp.int32), zeros, jnp.copy(zeros))


def added(histogram: Histogram, x: Array, axes: tuple[int, ...]) -> Histogram:
    """Count one more array, over `axes`.

    Bins widen by powers of two, so that old ones merge whole: in whatever order batches come, the counts are those of all
    values at once. NaN counts as 0; infinities in the outermost bins.

    Example:
      >>> one = added(empty((1,), 2), jnp.array([0.1, 0.6, 0.7]), (0,))
      >>> two = added(one, jnp.array([-1.5]), (0,))
      >>> one.counts.tolist(), two.counts.tolist(), two.exponent.tolist()
      ([[0, 0, 1, 2]], [[1, 0, 3, 0]], [1])
    """
    bins = histogram.counts.shape[-1] // 2
    x = jnp.nan_to_num(x.astype(jnp.float32), nan=0.0)
    low, high = extremes(x, axes)
    largest = jnp.maximum(-low, high)
    needed = jnp.where(largest > 0, jnp.frexp(largest)[1], _SMALLEST)
    exponent = jnp.maximum(histogram.exponent, needed)
    counts = _widened(histogram.counts, exponent - histogram.exponent)
    place = jnp.floor(jnp.ldexp(x, -exponent) * bins)
    place = jnp.clip(place, -bins, bins - 1).astype(jnp.int32) + bins
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    rows = jnp.transpose(place, (*kept, *axes)).reshape(exponent.size, x.size // max(exponent.size, 1))
    # One flat count: row r, bin b at r * 2 bins + b.
    flat = (rows + 2 * bins * jnp.arange(exponent.size)[:, None]).reshape(-1)
    new = jnp.zeros(counts.size, jnp.uint32).at[flat].add(1, mode="promise_in_bounds")
    return Histogram(
        counts + new.reshape(counts.shape), exponent, jnp.minimum(histogram.low, low), jnp.maximum(histogram.high, high)
    )


def edges(histogram: Histogram) -> Array:
    """Return the bins' edges, float32, of the counts' shape but one longer."""
    bins = histogram.counts.shape[-1] // 2
    steps = jnp.arange(-bins, bins + 1, dtype=jnp.float32) * (1 / bins)
    return jnp.ldexp(steps.reshape((1,) * histogram.exponent.ndim + (-1,)), histogram.exponent[..., None])


def centers(histogram: Histogram) -> Array:
    """Return the middles of the bins, float32, of the counts' shape; none lies beyond the extremes."""
    borders = edges(histogram)
    return jnp.clip((borders[..., :-1] + borders[..., 1:]) / 2, histogram.low[..., None], histogram.high[..., None])


def _widened(counts: Array, times: Array) -> Array:
    """Merge bins, ``2**times`` neighbours each; `times` is of a range's shape."""
    size = counts.shape[-1]
    bins = size // 2
    # More than 31 merge everything on one side of zero, as 31 do.
    place = jnp.right_shift(jnp.arange(-bins, bins)[None], jnp.clip(times, 0, 31).reshape(-1, 1)) + bins
    rows = counts.reshape(-1, size)
    merged = jax.vmap(lambda row, to: jnp.zeros_like(row).at[to].add(row, mode="promise_in_bounds"))(rows, place)
    return merged.reshape(counts.shape)


class Counting:
    """What calibrations share that count values over batches, in `bins` bins on either side of zero.

    Example:
      >>> from lepton_jax.formats.ranges import Percentile
      >>> Percentile(bins=16).init((1,)).counts.shape
      (1, 32)
    """

    bins: int

    def __post_init__(self) -> None:
        check_whole(f"{type(self).__name__}: bins", self.bins, 16, 2**16)

    def init(self, shape: tuple[int, ...]) -> Histogram:
        return empty(shape, self.bins)

    def observe(self, state: Histogram, x: Array, axes: tuple[int, ...]) -> Histogram:
        return added(state, x, axes)


class Shrinking(Counting):
    """What calibrations share that try `candidates` fractions of the whole range, evenly spaced from `smallest` to 1.

    Example:
      >>> from lepton_jax.formats.ranges import Mse
      >>> Mse(candidates=3, smallest=0.5).fractions.tolist()
      [1.0, 0.75, 0.5]
    """

    candidates: int
    smallest: float

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_whole(f"{name}: candidates", self.candidates, 2)
        if not 0 < self.smallest < 1:
            raise ValueError(f"{name}: smallest must be in (0, 1), a fraction of the whole range; got {self.smallest}.")

    @property
    def fractions(self) -> np.ndarray:
        """From the whole downwards, float32."""
        return np.linspace(1, self.smallest, self.candidates, dtype=np.float32)
