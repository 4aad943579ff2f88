"""Clip where the distribution of the values changes least."""

import dataclasses

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format
from lepton_jax.formats.ranges import histogram
from lepton_jax.formats.ranges.base import Range, format_of
from lepton_jax.formats.ranges.histogram import Histogram, Shrinking
from lepton_jax.formats.statistics import extremes


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Entropy(Shrinking):
    """Take, of ranges that are a fraction of the whole, the one whose rounded values are distributed most as the values are.

    With the histogram P of the values, those beyond the range counted in its outermost bins, and Q that of the values within
    it, each level's count spread evenly over its bins that are not empty in P: ``argmin KL(P || Q)``, of equals the widest.

    Args:
      bins: on either side of zero; many more than there are levels.
      candidates: ranges to try, evenly spaced from `smallest` to the whole.
      smallest: the smallest fraction, in (0, 1).

    Raises:
      ValueError: for settings out of range.
      TypeError: when called without the number format.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> import jax
      >>> x = jnp.concatenate([jax.random.normal(jax.random.key(0), (5000,)), jnp.array([20.0])])
      >>> low, high = Entropy(bins=128)(x, (0,), Uniform(bits=4))
      >>> bool(6 < high[0] < 12)
      True

    Source: Migacz 2017, "8-bit inference with TensorRT". Deviations: both sides of zero in one histogram, so that it serves
    affine formats; the levels are the format's own; `candidates` ranges instead of one a bin.
    """

    bins: int = 1024
    candidates: int = 100
    smallest: float = 0.05

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format | None = None) -> Range:
        low, _ = extremes(x, axes)
        return self.range(self.observe(self.init(low.shape), x, axes), fmt)

    def range(self, state: Histogram, fmt: Format | None = None) -> Range:
        number_format = format_of("Entropy", fmt)
        rows = jax.tree.map(lambda leaf: leaf.reshape(state.low.size, *leaf.shape[state.low.ndim :]), state)
        fractions = jnp.asarray(self.fractions)

        def of_row(row: Histogram) -> Array:
            return fractions[jnp.argmin(jax.lax.map(lambda fraction: _divergence(row, fraction, number_format), fractions))]

        chosen = jax.lax.map(of_row, rows).reshape(state.low.shape)
        return chosen * state.low, chosen * state.high


def _divergence(row: Histogram, fraction: Array, fmt: Format) -> Array:
    """KL(P || Q) of one histogram for a fraction of its range."""
    middles, counts = histogram.centers(row), row.counts.astype(jnp.float32)
    low, high = fraction * row.low, fraction * row.high
    scale, zero_point = (value[None] for value in fmt.scale_and_zero_point(low, high))
    inside = (middles >= low) & (middles <= high)
    first, last = jnp.argmax(inside), inside.size - 1 - jnp.argmax(inside[::-1])
    within = jnp.where(inside, counts, 0)
    place = jnp.arange(inside.size)
    p = within.at[first].add(jnp.sum(jnp.where(place < first, counts, 0)))
    p = p.at[last].add(jnp.sum(jnp.where(place > last, counts, 0)))
    # Values rise from bin to bin, so a level is a run of bins that are read back alike.
    values = fmt.from_codes(fmt.to_codes(middles, scale, zero_point), scale, zero_point)
    level = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), (values[1:] != values[:-1]).astype(jnp.int32)]))
    filled = (p > 0).astype(jnp.float32)
    size = inside.size
    mass, number = (jax.ops.segment_sum(value, level, size, indices_are_sorted=True) for value in (within, filled))
    q = filled * (mass / jnp.maximum(number, 1))[level]
    p, q = p / jnp.maximum(jnp.sum(p), 1), q / jnp.maximum(jnp.sum(q), 1)
    # A bin that only values from beyond the range fall into: as unlikely as float32 has room for, not impossible.
    return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30) / jnp.maximum(q, 1e-9)), 0))
