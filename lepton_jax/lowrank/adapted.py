"""Leaves of adapted weights in training: what is trained of one, and what stands where a leaf is not trained."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from lepton_jax.core.packed import Packed, register_packed
from lepton_jax.core.typing import Array


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
      >>> import jax
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
