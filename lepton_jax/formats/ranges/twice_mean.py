"""Calibration by the mean magnitude, the beginning of learned steps."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format
from lepton_jax.formats.ranges.base import Range, format_of
from lepton_jax.formats.uniform import Uniform


class TwiceMeanState(NamedTuple):
    """Sum of magnitudes and number of values that are not zero, float32, in the shape of a range."""

    total: Array
    number: Array


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class TwiceMean:
    """Cover what the step ``2 mean|x| / sqrt(Q_p)`` covers, the mean over values that are not zero: LSQ's first step.

    The range is ``[-h, h]`` with ``h = 2 mean|x| / sqrt(Q_p)`` times `Uniform.steps`.

    Raises:
      TypeError: when used with a format that is not uniform and symmetric.

    Example:
      >>> TwiceMean()(jnp.array([1.0, -3.0, 0.0]), (0,), Uniform(3))[1].round(4)
      Array([8.0829], dtype=float32)

    Source: Esser et al. 2020, "Learned step size quantization", section 2.1. Deviation: zeros do not count, so that a pruned
    tensor begins at the step of its weights.
    """

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format | None = None) -> Range:
        return self.range(_sums(x, axes), fmt)

    def init(self, shape: tuple[int, ...]) -> TwiceMeanState:
        """Return the state before the first batch."""
        return TwiceMeanState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def observe(self, state: TwiceMeanState, x: Array, axes: tuple[int, ...]) -> TwiceMeanState:
        """Return the state after one more batch."""
        new = _sums(x, axes)
        return TwiceMeanState(state.total + new.total, state.number + new.number)

    def range(self, state: TwiceMeanState, fmt: Format | None = None) -> Range:
        """Return the range of what was observed."""
        fmt = format_of("TwiceMean", fmt)
        if not isinstance(fmt, Uniform) or not fmt.symmetric:
            raise TypeError(f"TwiceMean: takes a symmetric uniform format, e.g. Uniform(4); got {fmt}. Take Mse or MinMax.")
        high = 2 * state.total / jnp.maximum(state.number, 1) * (fmt.steps / fmt.q_range[1] ** 0.5)
        return -high, high


def _sums(x: Array, axes: tuple[int, ...]) -> TwiceMeanState:
    sizes = jnp.nan_to_num(jnp.abs(x.astype(jnp.float32)), nan=0.0)
    total, count = (jnp.sum(a, axes, keepdims=True) for a in (sizes, (sizes > 0).astype(jnp.float32)))
    return TwiceMeanState(total, count)
