"""Single weights."""

import dataclasses

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.pruning.structures.base import Shape, Structure


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Unstructured(Structure):
    """Every weight is a unit of its own.

    Example:
      >>> import jax.numpy as jnp
      >>> Unstructured().reduce(jnp.array([1.0, 2.0])).tolist()
      [1.0, 2.0]
    """

    def reduce(self, scores: Array) -> Array:
        return scores

    def expand(self, mask: Array, shape: Shape) -> Array:
        return mask.reshape(shape)
