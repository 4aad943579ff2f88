"""Magnitude."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.pruning.criteria.base import Criterion, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Magnitude(Criterion):
    """Score a weight by its size: ``|w|``.

    Example:
      >>> Magnitude().scores(jnp.array([-2.0, 1.0]), ())
      Array([2., 1.], dtype=float32)

    Source: Han, Pool, Tran, Dally 2015, "Learning both weights and connections".
    """

    def scores(self, weight: Array, state: Any) -> Array:
        del state
        return jnp.abs(wide(weight))
