"""Codes into a table of values."""

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
from lepton_jax.formats.codebook import Codebook
from lepton_jax.leaves.figures import Figures, histogram, of_codes
from lepton_jax.leaves.form import Native, Operation
from lepton_jax.leaves.stored import Spec, check_code_bits, is_real, packed_codes, put_array, remember, require, take_array


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

    letters: ClassVar[Mapping[str, str]] = {"c": "codebook"}
    keeps_zeros: ClassVar[bool] = True

    @property
    def codes(self) -> Array:
        """The indices, uint8, in the dense shape."""
        return unpack_bits(self.index, self.bits, self.size).reshape(self.shape)

    @property
    def table(self) -> Array:
        """The values, that of index 0 first."""
        return jnp.concatenate([jnp.zeros(1, self.codebook.dtype), self.codebook])

    @property
    def stored_as(self) -> str:
        return f"{self.codebook.size} centroids"

    def unpack(self) -> Array:
        return self.table[self.codes].astype(self.dtype)

    def dense(self) -> Array:
        if self.codebook.dtype != self.dtype:
            return self.unpack()
        table = np.concatenate([np.zeros(1, self.dtype), np.asarray(self.codebook)])
        # An index beyond the table reads its last entry, as in jax.
        return jnp.asarray(table[np.minimum(_codes(self), table.size - 1)].reshape(self.shape))

    def masked(self, mask: Array) -> CodebookArray:
        return dataclasses.replace(self, index=pack_bits(jnp.where(mask, self.codes, 0), self.bits))

    def trained(self) -> Array:
        return self.codebook

    def retrained(self, array: Array) -> CodebookArray:
        return dataclasses.replace(self, codebook=array)

    def native(self, path: Path) -> Looked:
        return Looked(self.codes, self.table, self.output_dtype, path)

    def write(self, writer: Writer, hints: Hints) -> tuple[str, tuple[int, ...]]:
        codes = _codes(self)
        put_array(writer, self.codebook, hints)
        alphabet = max(int(codes.max(initial=0)), min(self.codebook.size, 2**self.bits - 1)) + 1
        writer.put(bytes([alphabet - 1]))
        writer.put(tensor_codes.encode(codes, alphabet, self.shape, hints).data)
        remember(hints, codes != 0, self.shape)
        return "c", (self.bits,)

    @classmethod
    def check_numbers(cls, letter: str, numbers: tuple[int, ...]) -> None:
        check_code_bits(numbers, 1)

    @classmethod
    def read(cls, reader: Reader, spec: Spec, limit: int, hints: Hints) -> CodebookArray:
        [bits], codebook = spec.numbers, take_array(reader, limit, hints, "codebook")
        alphabet = reader.take(1)[0] + 1
        plain = codebook.ndim == 1 and codebook.size < 256 and is_real(codebook) and alphabet <= 2**bits
        require(plain, f"a table of shape {codebook.shape}, {codebook.dtype}, for {alphabet} codes", reader)
        codes = tensor_codes.decode(reader, alphabet, spec.shape, hints)
        remember(hints, codes != 0, spec.shape)
        return cls(packed_codes(codes, bits), codebook, bits, spec.shape, spec.dtype)

    def figures(self) -> Figures:
        codes, counts = _codes(self), histogram(_codes(self), 2**self.bits)
        kept = np.asarray(self.table).astype(self.dtype) != 0
        nonzeros = int(counts[: kept.size][kept].sum() + counts[kept.size :].sum() * bool(kept[-1]))
        width = max(int(self.codebook.size - 1).bit_length(), 1)
        extra = self.codebook.nbytes
        return of_codes(codes != 0, nonzeros, counts, self.shape, value_bits=width, bits=self.bits, extra=extra)


@register_packed("codes", "table")
class Looked(Native):
    """``table[codes]``; in a scan there is a table for each layer."""

    codes: Array
    table: Array
    dtype: str
    path: Path

    kind = "CodebookArray"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def dense(self) -> Array:
        return self.table[self.codes].astype(self.dtype)

    def opened(self) -> Array:
        return self.dense()

    def moved(self, operation: Operation) -> Looked:
        return dataclasses.replace(self, codes=operation.bind([self.codes]))

    def layers(self, length: int) -> Looked:
        return dataclasses.replace(self, table=jnp.broadcast_to(self.table, (length, *self.table.shape)))

    def rows(self, index: Array) -> Array:
        return dataclasses.replace(self, codes=jnp.take(self.codes, index, axis=0, mode="clip")).dense()


def _codes(leaf: CodebookArray) -> np.ndarray:
    return unpack_bits(np.asarray(leaf.index), leaf.bits, leaf.size)


def coded(fmt: Codebook, centroids: Array, codes: Array, dtype: Any) -> CodebookArray:
    """Return codes and their table as a packed leaf."""
    bits = fmt.bits + 1
    return CodebookArray(pack_bits(codes, bits), centroids, bits, codes.shape, jnp.dtype(dtype).name)
