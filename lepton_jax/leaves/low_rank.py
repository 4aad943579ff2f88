"""A matrix as the product of two thin ones."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from lepton_jax.core.packed import Packed, register_packed, unpack
from lepton_jax.core.typing import Array


@register_packed("u", "v")
class LowRank(Packed):
    """A matrix as the product of two thin ones: ``W[..., i, j] = sum_r u[..., i, r] v[..., r, j]``.

    Args:
      u: shape (..., m, r).
      v: shape (..., r, n).
      shape: the dense leaf's; all its axes but the last are read as the m rows (and the stacked axes, if u has any).

    Example:
      >>> LowRank(jnp.ones((3, 1)), jnp.full((1, 2), 2.0), (3, 2)).unpack().tolist()
      [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """

    u: Any
    v: Any
    shape: tuple[int, ...]

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return jnp.result_type(self.u.dtype, self.v.dtype)

    @property
    def rank(self) -> int:
        return self.u.shape[-1]

    def unpack(self) -> Array:
        return jnp.matmul(unpack(self.u), unpack(self.v)).reshape(self.shape)
