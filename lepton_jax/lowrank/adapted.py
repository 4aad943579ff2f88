"""Leaves of adapted weights: a fixed weight with a low-rank correction, and what stands where a leaf is not trained."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.packed import Packed, register_packed, unpack
from lepton_jax.typing import Array


@register_packed("base", "u", "v")
class Adapted(Packed):
    """A weight and a correction of low rank: ``W = base + u v``.

    Args:
      base: an array, or a coded leaf such as `QArray`, of the dense shape.
      u: shape (..., m, r).
      v: shape (..., r, n).
      shape: the dense leaf's; read as `LowRank` reads it.

    Example:
      >>> leaf = Adapted(jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.full((1, 2), 2.0), (3, 2))
      >>> leaf.unpack().tolist()
      [[3.0, 3.0], [3.0, 3.0], [3.0, 3.0]]
    """

    base: Any
    u: Any
    v: Any
    shape: tuple[int, ...]

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.base.dtype

    @property
    def rank(self) -> int:
        """Of the correction."""
        return self.u.shape[-1]

    def unpack(self) -> Array:
        return _sum(self)


@jax.jit  # compiled whole wherever it runs: a product and a sum then round together, under jit and outside alike
def _sum(leaf: Adapted) -> Array:
    correction = jnp.matmul(unpack(leaf.u), unpack(leaf.v)).reshape(leaf.shape)
    return unpack(leaf.base) + correction.astype(leaf.dtype)


@register_packed("u", "v", "magnitude")
class Directed(Packed):
    """What is trained of a weight that is adapted in direction and magnitude; the weight itself lies in the transform's state.

    Args:
      u: shape (..., m, r).
      v: shape (..., r, n).
      magnitude: shape (..., 1, n), the norm of every output's weights.
      shape: the dense leaf's.

    Example:
      >>> Directed(jnp.ones((3, 1)), jnp.ones((1, 2)), jnp.ones((1, 2)), (3, 2)).size
      6
    """

    u: Any
    v: Any
    magnitude: Any
    shape: tuple[int, ...]

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.u.dtype

    def unpack(self) -> Array:
        raise TypeError("Directed: the weight it corrects lies in the transform's state; take transform.view(params, state).")


@register_packed()
class Held(Packed):
    """The place of a leaf that is not trained and lies in the transform's state: it has no arrays, so no optimiser moves it.

    Args:
      shape: the leaf's.
      held_dtype: the name of its dtype.

    Example:
      >>> held = Held((3, 2), "float32")
      >>> held.size, jax.tree.leaves({"kernel": held})
      (6, [])
    """

    shape: tuple[int, ...]
    held_dtype: str

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return jnp.dtype(self.held_dtype)

    def unpack(self) -> Array:
        raise TypeError("Held: the leaf lies in the transform's state; take transform.view(params, state).")
