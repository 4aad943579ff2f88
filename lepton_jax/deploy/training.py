"""Training through the roundings of an engine: values at sites and weights rounded, derivatives straight through.

Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
section 3. Deviations: batch norms are folded for good, ranges stay those of calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.straight_through import slope_where, straight_through
from lepton_jax.core.typing import Array
from lepton_jax.deploy.at_sites import AtSites
from lepton_jax.deploy.sites import Grid
from lepton_jax.deploy.weights import outputs_of
from lepton_jax.graph.trace import Equation


class Training(AtSites):
    """Evaluates a graph with the numbers that an engine's codes stand for; it has a derivative for everything."""

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if len(eqn.path) == 1 and all(map(self.graph.is_constant, eqn.outvars)):
            return self.default(eqn, values)  # weights are traced here, and not looked at
        return super().handle(eqn, values)

    def round(self, var: Any, value: Any) -> Any:
        site = self.at.get(var)
        # What is moved only was rounded before.
        return value if site is None or site.of != site.name else rounded_value(value, self.grids[site.of])

    def done(self, eqn: Equation, values: list[Any]) -> list[Any] | None:
        if not self.graph.is_weighted(eqn) or eqn.invars[0] not in self.at:
            return None
        weight = rounded_weight(values[1], outputs_of(eqn), self.largest)
        return list(self.bind(eqn, [values[0], weight]))


def rounded_value(value: Array, grid: Grid) -> Array:
    """Round a value to its codes: ``(clip(round(x / s) + z, 0, 255) - z) s``; its derivative is 1 within the range, else 0.

    Example:
      >>> import numpy as np
      >>> jax.value_and_grad(lambda x: rounded_value(x, Grid(np.float32(0.5), 0)))(1.2)
      (Array(1., dtype=float32), Array(1., dtype=float32))
    """
    low, high = -float(grid.zero_point), 255.0 - grid.zero_point
    steps = value / grid.scale
    seen = jnp.clip(jnp.round(steps), low, high) * grid.scale
    return straight_through(slope_where((steps > low - 0.5) & (steps < high + 0.5), value), seen.astype(value.dtype))


_STEPS = (*range(1, 17), 31, 32, 63, 64, 128)
"""Steps to the largest weight that weights of few bits have, which they keep."""


def rounded_weight(weight: Array, outputs: tuple[int, ...], largest: int) -> Array:
    """Round a weight as `weights.in_codes` does, with a scale for each output; its derivative is 1.

    Weights that are in few steps already, as those of four bits are, stay as they are.

    Example:
      >>> (127 * rounded_weight(jnp.array([[1.0], [0.5], [0.302]]), (1,), 127)[:, 0]).round().tolist()
      [127.0, 64.0, 38.0]
    """
    dense = jax.lax.stop_gradient(weight.astype(jnp.float32))
    summed = tuple(axis for axis in range(weight.ndim) if axis not in outputs)
    top = jnp.max(jnp.abs(dense), summed, keepdims=True, initial=0)
    steps = jnp.array([steps for steps in _STEPS if steps <= largest + 1], jnp.float32).reshape(-1, *[1] * weight.ndim)
    places = steps * (dense / jnp.where(top > 0, top, 1))[None]
    whole = jnp.round(places)
    fits = jnp.all((jnp.abs(places - whole) < 1e-3) & (whole <= largest), tuple(axis + 1 for axis in summed), keepdims=True)
    ends = jnp.min(jnp.where(fits, steps, largest), 0)
    scale = jnp.where(top > 0, top / ends, 1)
    seen = jnp.clip(jnp.round(dense / scale), -ends, largest) * scale
    return straight_through(weight, seen.astype(weight.dtype))
