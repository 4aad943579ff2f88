"""Codes into a table of values."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.packed import Coded, register_packed
from lepton_jax.core.typing import Array
from lepton_jax.formats.codebook import Codebook
from lepton_jax.leaves.bits import pack_bits, unpack_bits


@register_packed("index", "codebook")
class CodebookArray(Coded):
    """Codes into a table of values: ``w = codebook[index - 1]``, and exactly 0 where the index is 0.

    Args:
      index: packed codes of `bits` bits, see `pack_bits`.
      codebook: shape (k,), k < 2**bits.
      bits: bits a code.
      shape: the dense leaf's.
      output_dtype: the dense leaf's dtype.

    Example:
      >>> leaf = CodebookArray(pack_bits(jnp.array([0, 1, 1, 0], jnp.uint8), 1), jnp.array([5.0]), 1, (4,), "float32")
      >>> leaf.unpack().tolist()
      [0.0, 5.0, 5.0, 0.0]
    """

    index: Array
    codebook: Array
    bits: int
    shape: tuple[int, ...]
    output_dtype: str

    @property
    def codes(self) -> Array:
        """The indices, uint8, in the dense shape."""
        return unpack_bits(self.index, self.bits, self.size).reshape(self.shape)

    def unpack(self) -> Array:
        table = jnp.concatenate([jnp.zeros(1, self.codebook.dtype), self.codebook])
        return table[self.codes].astype(self.dtype)

    def masked(self, mask: Array) -> CodebookArray:
        return dataclasses.replace(self, index=pack_bits(jnp.where(mask, self.codes, 0), self.bits))


def coded(fmt: Codebook, centroids: Array, codes: Array, dtype: Any) -> CodebookArray:
    """Return codes and their table as a packed leaf."""
    bits = fmt.bits + 1
    return CodebookArray(pack_bits(codes, bits), centroids, bits, codes.shape, jnp.dtype(dtype).name)
