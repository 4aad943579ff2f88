"""Structures: which weights are removed together.

A structure says what a *unit* is: `reduce` gives one score a unit, `expand` spreads the units' mask over the weights.
"""

import dataclasses

from lepton_jax.typing import Array


class Structure:
    """Base of all structures. Subclasses are frozen dataclasses.

    Example:
      >>> import jax.numpy as jnp
      >>> class Rows(Structure):
      ...     def reduce(self, scores):
      ...         return scores.sum(axis=1)
      ...
      ...     def expand(self, mask, shape):
      ...         return jnp.broadcast_to(mask[:, None], shape)
      >>> Rows().expand(jnp.array([True, False]), (2, 2)).tolist()
      [[True, True], [False, False]]
    """

    def reduce(self, scores: Array) -> Array:
        """Return one score a unit."""
        raise TypeError(f"{type(self).__name__} defines no units")

    def expand(self, mask: Array, shape: tuple[int, ...]) -> Array:
        """Return the units' mask spread over an array of `shape`."""
        raise TypeError(f"{type(self).__name__} defines no units")


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

    def expand(self, mask: Array, shape: tuple[int, ...]) -> Array:
        return mask.reshape(shape)
