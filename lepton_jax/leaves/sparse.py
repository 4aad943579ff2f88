"""The non-zero elements, and where they are."""

from __future__ import annotations

import jax.numpy as jnp

from lepton_jax.core.packed import Coded, register_packed
from lepton_jax.core.typing import Array
from lepton_jax.leaves.bits import pack_bits, unpack_bits


@register_packed("values", "mask")
class Sparse(Coded):
    """The non-zero elements in flat order, and one bit an element that says where they are.

    What the artifact stores: values and positions are coded apart.

    Args:
      values: shape (nonzeros,): the elements where the mask is set.
      mask: bytes of one-bit codes, see `pack_bits`.
      shape: the dense leaf's.
      output_dtype: the dense leaf's dtype.

    Example:
      >>> sparse = Sparse.from_dense(jnp.array([[0.0, 3.0], [5.0, 0.0]]))
      >>> sparse.values.tolist(), sparse.mask.tolist(), sparse.unpack().tolist()
      ([3.0, 5.0], [6], [[0.0, 3.0], [5.0, 0.0]])
    """

    values: Array
    mask: Array
    shape: tuple[int, ...]
    output_dtype: str

    @classmethod
    def from_dense(cls, array: Array) -> Sparse:
        """Keep the non-zero elements of `array` (not under jit: their number must be known)."""
        keep = (array != 0) | jnp.signbit(array)  # -0 is kept: what is unpacked is the same bit for bit
        return cls(array[keep], pack_bits(keep, 1), array.shape, jnp.dtype(array.dtype).name)

    def unpack(self) -> Array:
        keep = unpack_bits(self.mask, 1, self.size).astype(bool)
        place = jnp.cumsum(keep, dtype=jnp.int32) - 1
        gathered = self.values[jnp.maximum(place, 0)] if self.values.size else jnp.zeros(self.size, self.values.dtype)
        return jnp.where(keep, gathered, 0).astype(self.dtype).reshape(self.shape)

    def masked(self, mask: Array) -> Sparse:
        return Sparse.from_dense(jnp.where(mask, self.unpack(), 0))
