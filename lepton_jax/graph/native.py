"""Packed leaves in the form in which they run: a slice of one, as a scan takes it, is one too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.packed import LowRank, Packed
from lepton_jax.packed_blocks import BlockSparse
from lepton_jax.quantization.numerics import QArray
from lepton_jax.typing import Array, Path


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


@dataclass(frozen=True, eq=False)
class Quantized(Native):
    """``(qvalue - zero_point) * scale``; the scale has the same axes, of size 1 or whole. `zero_point` is () if all zero."""

    qvalue: Array
    scale: Array
    zero_point: Any
    dtype: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qvalue.shape

    def integers(self, dtype: Any) -> Array:
        """``qvalue - zero_point``, exact in `dtype` (of at least 9 bits' precision)."""
        if isinstance(self.zero_point, tuple):
            return self.qvalue.astype(dtype)
        return (self.qvalue.astype(jnp.int32) - self.zero_point).astype(dtype)

    def dense(self) -> Array:
        return (self.integers(jnp.float32) * self.scale).astype(self.dtype)

    def mapped(self, change: Callable[[Array], Array]) -> Quantized:
        """The same with `change` applied to integers, scale and zero point alike."""
        zero = self.zero_point if isinstance(self.zero_point, tuple) else change(self.zero_point)
        return replace(self, qvalue=change(self.qvalue), scale=change(self.scale), zero_point=zero)


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


_register(Quantized, "qvalue", "scale", "zero_point")
_register(Factored, "u", "v")
_register(Blocked, "blocks", "rows")


def native(leaf: Any, path: Path) -> Any:
    """Return a packed leaf in the form in which it runs; one of no such form as it is."""
    if isinstance(leaf, QArray):
        zero_point = () if leaf.format.symmetric else leaf.zero_point
        return Quantized(leaf.qvalue, leaf.scale, zero_point, leaf.output_dtype, path)
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
