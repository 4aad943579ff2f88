"""Layer-adaptive magnitude."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.pruning.criteria.base import Criterion, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lamp(Criterion):
    """Score a weight by its share of what would be left of its leaf: ``w_u**2 / sum_{v >= u} w_v**2``.

    `v >= u` are the weights of the leaf that go after `u` when they are removed from the smallest up; of equal ones, the lower
    flat index goes last, as everywhere. So within a leaf the order is that of magnitudes, and the last weight of a leaf scores
    1: with ``scope="global"`` no leaf ever loses its last weight. A leaf of zeros scores 0.

    Example:
      >>> Lamp().scores(jnp.array([1.0, -2.0, 2.0]), ()).tolist()
      [0.111..., 1.0, 0.5]

    Source: Lee, Park, Mo, Ahn, Shin 2021, "Layer-adaptive sparsity for the magnitude-based pruning", equation 1.
    """

    def apart(self, weight: Array, scores: Array) -> Array:
        return self.scores(weight, ())

    def scores(self, weight: Array, state: Any) -> Array:
        del state
        size = jnp.abs(wide(weight)).reshape(-1)
        largest = jnp.max(size, initial=0.0)
        squares = (size / jnp.where(largest > 0, largest, 1.0)) ** 2  # of a ratio: neither overflows nor vanishes for all
        order = jnp.argsort(-size, stable=True)
        # A parallel sum may fall by a rounding from one entry to the next; the order within the leaf must not.
        sums = jnp.maximum.accumulate(jnp.cumsum(squares[order]))
        shares = squares[order] / jnp.where(sums > 0, sums, 1.0)
        return jnp.zeros_like(shares).at[order].set(shares, unique_indices=True).reshape(weight.shape)
