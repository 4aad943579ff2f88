"""The non-zero elements, and where they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lepton_jax.coding import tensor_codes
from lepton_jax.coding.bit_packing import pack_bits, unpack_bits
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.packed import Coded, register_packed
from lepton_jax.core.typing import Array, Path
from lepton_jax.leaves.figures import Figures, of_numbers
from lepton_jax.leaves.form import Native, Operation
from lepton_jax.leaves.stored import Spec, packed_codes, put_array, remember, require, take_array


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

    letters: ClassVar[Mapping[str, str]] = {"s": "sparse"}
    keeps_zeros: ClassVar[bool] = True

    @classmethod
    def from_dense(cls, array: Array) -> Sparse:
        """Keep the non-zero elements of `array` (not under jit: their number must be known)."""
        keep = (array != 0) | jnp.signbit(array)  # -0 is kept: what is unpacked is the same bit for bit
        return cls(array[keep], pack_bits(keep, 1), array.shape, jnp.dtype(array.dtype).name)

    def unpack(self) -> Array:
        return self.native("").dense()

    def dense(self) -> Array:
        if self.values.dtype != self.dtype:
            return self.unpack()
        out = np.zeros(self.size, self.dtype)
        out[_mask(self)] = np.asarray(self.values)
        return jnp.asarray(out.reshape(self.shape))

    def masked(self, mask: Array) -> Sparse:
        return Sparse.from_dense(jnp.where(mask, self.unpack(), 0))

    def trained(self) -> Array:
        return self.values

    def retrained(self, array: Array) -> Sparse:
        return dataclasses.replace(self, values=array)

    def native(self, path: Path) -> Scattered:
        keep = unpack_bits(self.mask, 1, self.size).astype(bool).reshape(self.shape)
        return Scattered(self.values, keep, jnp.int32(0), self.output_dtype, path)

    def write(self, writer: Writer, hints: Hints) -> tuple[str, tuple[int, ...]]:
        mask = _mask(self)
        writer.put(tensor_codes.encode(mask.view(np.uint8), 2, self.shape, hints).data)
        put_array(writer, self.values, hints)
        remember(hints, mask, self.shape)
        return "s", ()

    @classmethod
    def read(cls, reader: Reader, spec: Spec, limit: int, hints: Hints) -> Sparse:
        mask = tensor_codes.decode(reader, 2, spec.shape, hints, "positions")
        values = take_array(reader, limit, hints, "values")
        require(values.shape == (int(mask.sum()),), f"{values.shape} values for {int(mask.sum())} positions", reader)
        remember(hints, mask != 0, spec.shape)
        return cls(values, packed_codes(mask, 1), spec.shape, spec.dtype)

    def figures(self) -> Figures:
        return of_numbers(_mask(self), np.asarray(self.values), self.shape)


@register_packed("values", "keep", "start")
class Scattered(Native):
    """The elements that are not zero, those of this part from `start` on, and where they are."""

    values: Any
    keep: Array
    start: Array
    dtype: str
    path: Path

    kind = "Sparse"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.keep.shape

    def dense(self) -> Array:
        place = self.start + jnp.cumsum(self.keep.reshape(-1), dtype=jnp.int32) - 1
        gathered = self.values[jnp.maximum(place, 0)] if self.values.size else jnp.zeros(place.shape, self.values.dtype)
        return jnp.where(self.keep, gathered.reshape(self.shape), 0).astype(self.dtype)

    def opened(self) -> Array:
        return self.dense()

    def moved(self, operation: Operation) -> Array:
        return operation.bind([self.dense()])

    def rows(self, index: Array) -> Array:
        return jnp.take(self.dense(), index, axis=0)

    def layers(self, length: int) -> Scattered:
        """The same, but for the values, which the layers share: each reads them from its own start."""
        counts = jnp.sum(self.keep.reshape(length, -1), axis=1, dtype=jnp.int32)
        return dataclasses.replace(self, values=(), start=self.start + jnp.cumsum(counts) - counts)

    def taken(self, whole: Scattered) -> Scattered:
        return dataclasses.replace(self, values=whole.values)


def _mask(leaf: Sparse) -> np.ndarray:
    return unpack_bits(np.asarray(leaf.mask), 1, leaf.size) != 0
