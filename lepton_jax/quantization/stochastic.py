"""Stochastic rounding of weights: up or down by chance, right on average."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, PyTree, Select, Step
from lepton_jax.formats import Uniform, expand
from lepton_jax.formats.ranges import Calibration
from lepton_jax.formats.ranges.base import check_calibration
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.rounding import calibrated, fake
from lepton_jax.quantization.learned_step import uniform_of
from lepton_jax.quantization.weights import on_weights, packed_levels


class StochasticState(NamedTuple):
    """The key of the draws that the view shows until the next update."""

    key: Array


@checked
def stochastic_levels(x: Array, scale: Array, key: Array, fmt: Uniform) -> Array:
    """Return each value at the level below or above it: above with the probability of its distance from below.

    ``y = s floor(x / s + u)``, u uniform in [0, 1), so that ``E[y] = x``. Values on a level stay, 0 among them.

    Args:
      x: floating, any shape.
      scale: s, in the scale layout.
      key: a typed random key.
      fmt: the number format, for its layout.

    Returns:
      float32; not clipped.

    Example:
      >>> stochastic_levels(jnp.array([0.0, 2.0, -1.0]), jnp.array([1.0]), jax.random.key(0), Uniform(4)).tolist()
      [0.0, 2.0, -1.0]

    Source: Gupta et al. 2015, "Deep learning with limited numerical precision", section 3.1.
    """
    spread = expand(scale.astype(jnp.float32), x.shape, fmt)
    place = jnp.nan_to_num(x.astype(jnp.float32) / spread, nan=0.0)
    low = jnp.floor(place)
    # Not floor(place + u): that sum is rounded to float32, so that a level could draw the next one.
    return (low + (jax.random.uniform(key, x.shape) < place - low)) * spread


@checked
@named
def stochastic_quant(
    format: Uniform | int | str, key: Array, *, calibration: Calibration | None = None, select: Select = paths.matrices
) -> Transform:
    """Show weights rounded up or down by chance, right on average: ``E[view] = w`` within the range.

    The range is that of the weights as they are at each step, and both its ends are levels, as in a narrow range: what lay
    beyond the last level would be too small on average. The gradient goes straight through. Each update draws anew; until then,
    and in `pack`, the draws are the same.

    Args:
      format: uniform, with any scale layout; or its bits, or its short name, "int4".
      key: a typed random key; it is kept in the state.
      calibration: finds the range; by default that of all weights.
      select: which leaves; by default those with two axes or more.

    Raises:
      ValueError: for a selector that matches nothing.
      TypeError: for a format that is not uniform.

    Example:
      >>> transform = stochastic_quant(2, jax.random.key(0))
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, -1.0], [0.0, 0.5]])})
      >>> transform.view(params, state)["kernel"][0].tolist()
      [1.0, -1.0]

    Source: Gupta et al. 2015, "Deep learning with limited numerical precision", section 3.1. Deviation: masters stay
    float32.
    """
    fmt = uniform_of("stochastic_quant", format)
    check_calibration("stochastic_quant", calibration)

    def drawn(w: Array, fmt: Uniform, state: StochasticState, place: int) -> tuple[Array, Array, Array]:
        """The values at their levels, scale and zero point."""
        symmetric = bool(fmt.symmetric and fmt.signed)
        scale, zero_point = calibrated(w, dataclasses.replace(fmt, narrow_range=symmetric), calibration)
        levels = stochastic_levels(w, scale, jax.random.fold_in(state.key, place), fmt)
        return jax.lax.stop_gradient(levels), scale, zero_point

    def seen(w: Array, fmt: Uniform, state: StochasticState, place: int) -> Array:
        levels, *grid = drawn(w, fmt, state, place)
        return straight_through(w, fake(levels, fmt, *grid).astype(w.dtype))

    def coded(w: Array, fmt: Uniform, state: StochasticState, place: int) -> QArray:
        return packed_levels(*drawn(w, fmt, state, place), fmt, w.dtype)

    def update(params: PyTree, state: StochasticState, grads: PyTree, step: Step) -> tuple[PyTree, StochasticState]:
        return params, StochasticState(jax.random.fold_in(state.key, step))

    def first() -> StochasticState:
        return StochasticState(jax.random.clone(key))  # a training step is free to donate its state, not the caller's key

    return on_weights("stochastic_quant", fmt, select, seen=seen, coded=coded, state=first, update=update)
