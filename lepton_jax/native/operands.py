"""Packed leaves in the form in which they run: a slice of one, as a scan takes it, is one too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.packed import Packed
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.typing import Array, Path
from lepton_jax.leaves.bits import unpack_bits
from lepton_jax.leaves.block_sparse import BlockSparse
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.native.ready import Ready


def _register(cls: type, *data: str) -> None:
    meta = [field.name for field in fields(cls) if field.name not in data]
    jax.tree_util.register_dataclass(cls, data_fields=list(data), meta_fields=meta)


class Native:
    """A compressed weight inside a graph. Its shape follows from its arrays, so that a slice of it is one too."""

    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense array's."""
        raise TypeError(f"{type(self).__name__} has no shape")

    def dense(self) -> Array:
        """The array it stands for."""
        raise TypeError(f"{type(self).__name__} has no dense form")

    def layers(self, length: int) -> Native | None:
        """The same, every array of it with a leading axis of a scan's length; None if it cannot be taken apart."""
        return self if all(part.shape[:1] == (length,) for part in jax.tree.leaves(self)) else None


@dataclass(frozen=True, eq=False)
class Quantized(Native):
    """Codes and scales; where `is_linear`, ``(qvalue - zero_point) * scale``.

    The scale has the axes of `qvalue`, each of size 1, whole, or one for every `group` neighbours. `zero_point` is () if all
    zero. `seen` is what an operand was before it was rounded, or in the simulation: it has the derivative; or ().
    """

    qvalue: Array
    scale: Array
    zero_point: Any
    seen: Any
    format: Any
    group: int
    dtype: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qvalue.shape

    @property
    def is_float8(self) -> bool:
        """Whether the codes are floating numbers of eight bits."""
        return jnp.issubdtype(self.qvalue.dtype, jnp.floating)

    @property
    def is_linear(self) -> bool:
        """Whether the codes are numbers of which the scale is a factor."""
        return self.is_float8 or self.format.is_integer

    @property
    def groups(self) -> tuple[int, ...]:
        """The axes along which neighbours share a scale, in groups."""
        return tuple(axis for axis, size in enumerate(self.scale.shape) if size not in (1, self.shape[axis]))

    def integers(self, dtype: Any) -> Array:
        """``qvalue - zero_point``, exact in `dtype` (of at least 9 bits' precision) for codes of eight bits."""
        if isinstance(self.zero_point, tuple):
            return self.qvalue.astype(dtype)
        return (self.qvalue.astype(jnp.int32) - self.expanded(self.zero_point)).astype(dtype)

    def expanded(self, part: Array) -> Array:
        """A scale or zero point, repeated over its groups."""
        for axis, (size, length) in enumerate(zip(part.shape, self.shape)):
            if size not in (1, length):
                part = self.expanded_along(part, axis)
        return part

    def expanded_along(self, part: Array, axis: int) -> Array:
        """A scale or zero point, repeated over its groups along one axis."""
        return jax.lax.slice_in_dim(_repeated(part, self.group, axis), 0, self.shape[axis], axis=axis)

    def dense(self) -> Array:
        zero = jnp.int32(0) if isinstance(self.zero_point, tuple) else self.expanded(self.zero_point)
        out = self.format.from_codes(self.qvalue, self.expanded(self.scale), zero).astype(self.dtype)
        return out if isinstance(self.seen, tuple) else straight_through(self.seen, out)

    def mapped(self, change: Callable[[Array], Array]) -> Quantized:
        """The same with `change` applied to codes, scale and zero point alike."""
        zero, seen = (part if isinstance(part, tuple) else change(part) for part in (self.zero_point, self.seen))
        return replace(self, qvalue=change(self.qvalue), scale=change(self.scale), zero_point=zero, seen=seen)

    def layers(self, length: int) -> Quantized:
        return self.mapped(lambda part: _layers(part, length, self.group))


@dataclass(frozen=True, eq=False)
class Words(Native):
    """Codes as they are stored, several a byte; `layout` is the dense shape without stacked axes. See `Quantized`."""

    words: Array
    scale: Array
    zero_point: Any
    format: Any
    layout: tuple[int, ...]
    dtype: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.words.shape[:-1], *self.layout)

    def opened(self) -> Quantized:
        """The same, one element a code."""
        zero = jnp.zeros((1,) * len(self.shape), jnp.int32) if isinstance(self.zero_point, tuple) else self.zero_point
        leaf = QArray(self.words.reshape(-1), self.scale, zero, self.format, self.shape, self.dtype)
        group = self.format.group_size or 0
        return Quantized(leaf.qvalue, self.scale, self.zero_point, (), self.format, group, self.dtype, self.path)

    def dense(self) -> Array:
        return self.opened().dense()

    def layers(self, length: int) -> Words | Quantized | None:
        words = self.rows(length)
        if words is None:
            return self.opened().layers(length)
        group = self.format.group_size or 0
        zero = self.zero_point if isinstance(self.zero_point, tuple) else _layers(self.zero_point, length, group)
        return replace(self, words=words, scale=_layers(self.scale, length, group), zero_point=zero, layout=self.layout[1:])

    def rows(self, length: int) -> Array | None:
        """The bytes of every index of the first axis; None where an index ends within a byte."""
        bits = math.prod(self.layout[1:]) * self.format.bits
        return self.words.reshape(length, bits // 8) if bits % 8 == 0 and self.words.ndim == 1 else None


@dataclass(frozen=True, eq=False)
class Looked(Native):
    """``table[codes]``; in a scan there is a table for each layer."""

    codes: Array
    table: Array
    dtype: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def dense(self) -> Array:
        return self.table[self.codes].astype(self.dtype)

    def mapped(self, change: Callable[[Array], Array]) -> Looked:
        """The same with `change` applied to the codes."""
        return replace(self, codes=change(self.codes))

    def layers(self, length: int) -> Looked:
        return replace(self, table=jnp.broadcast_to(self.table, (length, *self.table.shape)))


@dataclass(frozen=True, eq=False)
class Scattered(Native):
    """The elements that are not zero, those of this part from `start` on, and where they are."""

    values: Any
    keep: Array
    start: Array
    dtype: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.keep.shape

    def dense(self) -> Array:
        place = self.start + jnp.cumsum(self.keep.reshape(-1), dtype=jnp.int32) - 1
        taken = self.values[jnp.maximum(place, 0)] if self.values.size else jnp.zeros(place.shape, self.values.dtype)
        return jnp.where(self.keep, taken.reshape(self.shape), 0).astype(self.dtype)

    def layers(self, length: int) -> Scattered:
        """The same, but for the values, which the layers share."""
        counts = jnp.sum(self.keep.reshape(length, -1), axis=1, dtype=jnp.int32)
        return replace(self, values=(), start=self.start + jnp.cumsum(counts) - counts)


@dataclass(frozen=True, eq=False)
class Factored(Native):
    """``u @ v``: u of shape (*rows, r), v of shape (r, n); in a scan each with the layers first."""

    u: Any
    v: Any
    dtype: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.u.shape[:-1], self.v.shape[-1])

    def dense(self) -> Array:
        u, v = (part.dense() if isinstance(part, Native) else part for part in (self.u, self.v))
        if v.ndim == 2:
            return jnp.tensordot(u, v, axes=1).astype(self.dtype)
        rows = u.reshape(*v.shape[:-2], -1, u.shape[-1])
        return jnp.matmul(rows, v).reshape(self.shape).astype(self.dtype)

    def layers(self, length: int) -> Factored | None:
        """The same; a factor v that all layers share is given to each."""
        parts = []
        for part, shared in ((self.u, False), (self.v, len(self.v.shape) == 2)):
            if shared:
                part = jax.tree.map(lambda x: jnp.broadcast_to(x, (length, *np.shape(x))), part)
            elif isinstance(part, Native):
                part = part.layers(length)
            if part is None or any(np.shape(leaf)[:1] != (length,) for leaf in jax.tree.leaves(part)):
                return None
            parts.append(part)
        return replace(self, u=parts[0], v=parts[1])


@dataclass(frozen=True, eq=False)
class Blocked(Native):
    """Block-sparse; see `BlockSparse`. `layout` is the dense shape without stacked axes."""

    blocks: Array
    rows: Array
    layout: tuple[int, ...]
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.blocks.shape[:-4], *self.layout)

    def dense(self) -> Array:
        return BlockSparse(self.blocks, self.rows, self.shape).unpack()


_register(Quantized, "qvalue", "scale", "zero_point", "seen")
_register(Words, "words", "scale", "zero_point")
_register(Looked, "codes", "table")
_register(Scattered, "values", "keep", "start")
_register(Factored, "u", "v")
_register(Blocked, "blocks", "rows")


def _repeated(part: Array, times: int, axis: int) -> Array:
    wide = jnp.broadcast_to(jnp.expand_dims(part, axis + 1), (*part.shape[: axis + 1], times, *part.shape[axis + 1 :]))
    return wide.reshape(*part.shape[:axis], -1, *part.shape[axis + 1 :])


def _layers(part: Array, length: int, group: int) -> Array:
    """A scale with one for each layer, where they share one, or groups of them do."""
    if part.shape[0] == 1:
        return jnp.broadcast_to(part, (length, *part.shape[1:]))
    return part if part.shape[0] == length else _repeated(part, group, 0)[:length]


def stored(leaf: Any, path: Path) -> Any:
    """Return a packed leaf in the form in which it waits for its operation: as `native`, but codes are not unpacked yet."""
    if not isinstance(leaf, QArray | Ready):
        return native(leaf, path)
    zero_point = () if leaf.format.symmetric else leaf.zero_point
    if isinstance(leaf, Ready):
        group = leaf.format.group_size or 0
        return Quantized(leaf.qvalue, leaf.scale, zero_point, (), leaf.format, group, leaf.output_dtype, path)
    return Words(leaf.words, leaf.scale, zero_point, leaf.format, leaf.shape, leaf.output_dtype, path)


def native(leaf: Any, path: Path) -> Any:
    """Return a packed leaf in the form in which it runs; one of no such form as it is."""
    if isinstance(leaf, QArray) and leaf.format.is_integer and leaf.format.group_size is None:
        zero_point = () if leaf.format.symmetric else leaf.zero_point
        group = leaf.format.group_size or 0
        return Quantized(leaf.qvalue, leaf.scale, zero_point, (), leaf.format, group, leaf.output_dtype, path)
    if isinstance(leaf, CodebookArray):
        table = jnp.concatenate([jnp.zeros(1, leaf.codebook.dtype), leaf.codebook])
        return Looked(leaf.codes, table, leaf.output_dtype, path)
    if isinstance(leaf, Sparse):
        keep = unpack_bits(leaf.mask, 1, leaf.size).astype(bool).reshape(leaf.shape)
        return Scattered(leaf.values, keep, jnp.int32(0), leaf.output_dtype, path)
    if isinstance(leaf, LowRank):
        u, v = (native(part, path) for part in (leaf.u, leaf.v))
        rows = (*leaf.shape[:-1], u.shape[-1])
        if u.shape != rows:
            u = (u.dense() if isinstance(u, Native) else _array(u)).reshape(rows)
        return Factored(
            u if isinstance(u, Native) else _array(u), v if isinstance(v, Native) else _array(v), str(leaf.dtype), path
        )
    if isinstance(leaf, BlockSparse):
        return Blocked(leaf.blocks, leaf.rows, leaf.shape[leaf.blocks.ndim - 4 :], path)
    return leaf


def _array(leaf: Any) -> Array:
    return leaf.unpack() if isinstance(leaf, Packed) else leaf
