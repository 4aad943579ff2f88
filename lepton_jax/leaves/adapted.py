"""A weight and its correction, kept apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.packed import Packed, register_packed, unpack
from lepton_jax.core.typing import Array


@register_packed("base", "correction")
class Adapted(Packed):
    """A weight and a correction of low rank: ``W = base + correction``, added in float32 at least, in the base's dtype.

    What LoRA and QLoRA train, what LoftQ begins with, and what makes up for the error of quantization.

    Args:
      base: an array, or a coded leaf such as `QArray`.
      correction: a `LowRank` of the same shape.

    Example:
      >>> from lepton_jax.leaves.low_rank import LowRank
      >>> leaf = Adapted(jnp.ones((3, 2)), LowRank(jnp.ones((3, 1)), jnp.full((1, 2), 2.0), (3, 2)))
      >>> leaf.unpack().tolist(), leaf.rank
      ([[3.0, 3.0], [3.0, 3.0], [3.0, 3.0]], 1)
    """

    base: Any
    correction: Any

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.base.shape)

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.base.dtype

    @property
    def rank(self) -> int:
        """Of the correction."""
        return self.correction.rank

    def unpack(self) -> Array:
        return _sum(self)


@jax.jit  # compiled whole wherever it runs: a product and a sum then round together, under jit and outside alike
def _sum(leaf: Adapted) -> Array:
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    return (unpack(leaf.base).astype(wide) + unpack(leaf.correction).astype(wide)).astype(leaf.dtype)
