"""Packed leaves: compressed parameters as typed pytree nodes in their place in the tree.

A packed leaf knows its dense `shape` and `dtype`, and how to `unpack` itself; `unpack(tree)` does so for a whole tree.
There are two kinds:

* a *coded* leaf stores one code an element (`QArray`, `CodebookArray`, `Sparse`): it can be masked and cast as an array can;
* a *factored* leaf (`LowRank`) is made of smaller arrays, each a leaf of its own (``Dense_0/kernel/u``), which may be packed
  in turn.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self, dataclass_transform

import jax
import jax.numpy as jnp

from lepton_jax.typing import Array, PyTree


class Packed:
    """Base of all packed leaves."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def unpack(self) -> Array:
        """Return the dense array, bit for bit what the view gave."""
        raise TypeError(f"{type(self).__name__} does not say how it is unpacked")


class Coded(Packed):
    """Base of packed leaves that store one code an element.

    ``output_dtype`` names the dtype of the dense array; a dataclass field of every subclass.
    """

    output_dtype: str

    @property
    def dtype(self) -> jnp.dtype:  # type: ignore[override]
        return jnp.dtype(self.output_dtype)

    def astype(self, dtype: Any) -> Self | Array:
        """Return the same codes, to be unpacked to another dtype; the dense array, if a wider one could undo the rounding."""
        if jnp.promote_types(self.dtype, dtype) != self.dtype:
            return self.unpack().astype(dtype)
        return dataclasses.replace(self, output_dtype=jnp.dtype(dtype).name)  # type: ignore[type-var]

    def masked(self, mask: Array) -> Self:
        """Return the leaf with the codes of zero where `mask` is False."""
        raise TypeError(f"{type(self).__name__} does not say how it is masked")


def pack_bits(codes: Array, bits: int) -> Array:
    """Pack unsigned codes of `bits` bits into bytes, little end first.

    Codes may straddle bytes; the last byte is filled with zeros: ``ceil(n * bits / 8)`` bytes in all.

    Args:
      codes: unsigned integers below ``2**bits``, of any shape; read in flat order.
      bits: 1 to 8, or 16.

    Returns:
      uint8 array of one axis.

    Example:
      >>> pack_bits(jnp.array([1, 2, 3, 0], jnp.uint8), 2).tolist()
      [57]
    """
    if bits == 8:
        return codes.astype(jnp.uint8).reshape(-1)
    if bits == 16:
        wide = codes.astype(jnp.uint16).reshape(-1, 1)
        return (wide >> jnp.arange(0, 16, 8, dtype=jnp.uint16)[None, :]).astype(jnp.uint8).reshape(-1)
    if 8 % bits == 0:  # whole codes in a byte: no stream of single bits is made
        flat, shifts = codes.astype(jnp.uint8).reshape(-1), jnp.arange(0, 8, bits, dtype=jnp.uint8)
        flat = jnp.pad(flat, (0, -flat.size % shifts.size)).reshape(-1, shifts.size)
        return jnp.sum(flat << shifts[None, :], axis=1, dtype=jnp.uint8)
    shifts = jnp.arange(bits, dtype=jnp.uint8)
    stream = (codes.astype(jnp.uint8).reshape(-1, 1) >> shifts[None, :]) & 1
    return jnp.packbits(stream.reshape(-1), bitorder="little")


def unpack_bits(words: Array, bits: int, count: int) -> Array:
    """Return the `count` unsigned codes that `pack_bits` packed, as uint8 (uint16 if they have 16 bits).

    Example:
      >>> unpack_bits(jnp.array([57], jnp.uint8), 2, 4).tolist()
      [1, 2, 3, 0]
    """
    if bits == 8:
        return words
    if bits == 16:
        low, high = words.reshape(-1, 2).astype(jnp.uint16).T
        return low | high << 8
    if 8 % bits == 0:
        shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)
        return (words[:, None] >> shifts[None, :] & (2**bits - 1)).reshape(-1)[:count]
    stream = jnp.unpackbits(words, count=count * bits, bitorder="little").reshape(count, bits)
    weights = jnp.left_shift(jnp.uint8(1), jnp.arange(bits, dtype=jnp.uint8))
    return jnp.sum(stream * weights[None, :], axis=1, dtype=jnp.uint8)


@dataclass_transform(frozen_default=True, eq_default=False)
def register_packed(*data_fields: str) -> Any:
    """Make a class a frozen dataclass and a pytree node whose children are `data_fields`; the other fields are static."""

    def decorate(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        meta = [field.name for field in dataclasses.fields(cls) if field.name not in data_fields]
        return jax.tree_util.register_dataclass(cls, data_fields=list(data_fields), meta_fields=meta)

    return decorate


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


@register_packed("index", "codebook")
class CodebookArray(Coded):
    """Codes into a table of values: ``w = codebook[index - 1]``, and exactly 0 where the index is 0.

    Args:
      index: packed codes of `bits` bits, see `pack_bits`.
      codebook: shape (k,), k < 2**bits.
      bits: bits a code.
      shape: the dense leaf's.
      output_dtype: the dense leaf's dtype.
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


def is_packed(leaf: Any) -> bool:
    """True for packed leaves of either kind."""
    return isinstance(leaf, Packed)


def is_coded(leaf: Any) -> bool:
    """True for packed leaves that store one code an element."""
    return isinstance(leaf, Coded)


def unpack_coded(tree: PyTree) -> PyTree:
    """Return `tree` with its coded leaves as dense arrays; factored leaves stay in factors.

    Example:
      >>> unpack_coded({"a": Sparse.from_dense(jnp.array([0.0, 2.0]))})["a"].tolist()
      [0.0, 2.0]
    """
    return jax.tree.map(lambda leaf: leaf.unpack() if is_coded(leaf) else leaf, tree, is_leaf=is_coded)


def unpack(tree: PyTree) -> PyTree:
    """Return `tree` with every packed leaf as a dense array, bit for bit what the training view gave.

    Example:
      >>> unpack({"a": LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)), (2, 2)), "b": 1})["a"].shape
      (2, 2)
    """
    return jax.tree.map(lambda leaf: leaf.unpack() if is_packed(leaf) else leaf, tree, is_leaf=is_packed)
