"""Structures: which weights are removed together.

A structure says what a *unit* is: `reduce` gives one score a unit, `expand` spreads the units' mask over the weights.
A *local* structure (N:M) chooses within small groups instead: it defines `mask`, and takes no part in a common threshold.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from lepton_jax.typing import Array, Path


class Structure:
    """Base of all structures. Subclasses are frozen dataclasses.

    Attributes:
      local: True for a structure that chooses by itself, by `mask`; False for one that defines `reduce` and `expand`.

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

    local: ClassVar[bool] = False

    def check(self, shapes: Mapping[Path, tuple[int, ...]], sparsity: float) -> None:
        """Raise where the structure does not fit; called once, before any mask is made.

        Args:
          shapes: of the selected leaves, by path.
          sparsity: the fraction removed in the end, [0, 1).

        Raises:
          ValueError: naming every path whose shape, or the sparsity, does not suit the structure.
        """
        del shapes, sparsity

    def mask(self, scores: Array, sparsity: Array) -> Array:
        """Return a local structure's mask of the scores' shape.

        Args:
          scores: of one leaf; -inf where a weight must not return.
          sparsity: float32 scalar, the fraction to be removed now; traced.
        """
        raise TypeError(f"{type(self).__name__} does not choose by itself")

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
