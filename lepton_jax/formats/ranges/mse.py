"""Clip where the squared error is least."""

import dataclasses
from collections.abc import Callable

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
class Mse(Shrinking):
    """Take, of ranges that are a fraction of the whole, the one with the least squared error of rounding and clipping.

    ``argmin_c sum (x - fake(x, c [min x, max x]))**2`` over `candidates` fractions c, evenly spaced from `smallest` to 1; of
    equals the widest. Over batches the values are counted in `bins` bins on either side of zero, and stand for their middles.

    Args:
      candidates: at least 2.
      smallest: the smallest fraction, in (0, 1).
      bins: on either side of zero.

    Raises:
      ValueError: for settings out of range.
      TypeError: when called without the number format.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> x = jnp.concatenate([jnp.linspace(-1.0, 1.0, 200), jnp.array([1.4])])  # one outlier is clipped
      >>> low, high = Mse()(x, (0,), Uniform(bits=3))
      >>> round(float(high[0]), 2)
      1.03

    Source: Sung, Shin, Hwang 2015, "Resiliency of deep neural networks under quantization"; the search as in Nagel et al.
    2021, "A white paper on neural network quantization", section 3.1.
    """

    candidates: int = 80
    smallest: float = 0.2
    bins: int = 2048

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format | None = None) -> Range:
        number_format = format_of("Mse", fmt)
        x = jnp.nan_to_num(x.astype(jnp.float32), nan=0.0)

        def error(low: Array, high: Array) -> Array:
            scale, zero_point = number_format.scale_and_zero_point(low, high)
            rounded = number_format.from_codes(number_format.to_codes(x, scale, zero_point), scale, zero_point)
            return jnp.sum((x - rounded) ** 2, axes, keepdims=True)

        return self._best(*extremes(x, axes), error)

    def _best(self, low: Array, high: Array, error: Callable[[Array, Array], Array]) -> Range:
        """The fraction of the range whose error is least, from the whole range downwards."""

        def step(best: tuple[Array, Array], fraction: Array) -> tuple[tuple[Array, Array], None]:
            least, chosen = best
            new = error(fraction * low, fraction * high)
            better = new < least
            return (jnp.where(better, new, least), jnp.where(better, fraction, chosen)), None

        start = (error(low, high), jnp.ones_like(low))
        (_, chosen), _ = jax.lax.scan(step, start, jnp.asarray(self.fractions[1:]))
        return chosen * low, chosen * high

    def range(self, state: Histogram, fmt: Format | None = None) -> Range:
        number_format = format_of("Mse", fmt)
        middles, counts = histogram.centers(state), state.counts.astype(jnp.float32)

        def error(low: Array, high: Array) -> Array:
            scale, zero_point = (value[..., None] for value in number_format.scale_and_zero_point(low, high))
            rounded = number_format.from_codes(number_format.to_codes(middles, scale, zero_point), scale, zero_point)
            return jnp.sum(counts * (middles - rounded) ** 2, axis=-1)

        return self._best(state.low, state.high, error)
