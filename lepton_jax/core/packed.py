"""Packed leaves: compressed parameters as typed pytree nodes in their place in the tree."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self, dataclass_transform

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array, PyTree


class Packed:
    """Base of all packed leaves.

    Example:
      >>> from lepton_jax.leaves import LowRank
      >>> leaf = LowRank(jnp.ones((3, 1)), jnp.ones((1, 2)), (3, 2))
      >>> isinstance(leaf, Packed), leaf.ndim, leaf.size
      (True, 2, 6)
    """

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

    Example:
      >>> from lepton_jax.leaves import Sparse
      >>> Sparse.from_dense(jnp.array([0.0, 2.0])).masked(jnp.array([True, False])).unpack().tolist()
      [0.0, 0.0]
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


@dataclass_transform(frozen_default=True, eq_default=False)
def register_packed(*data_fields: str) -> Any:
    """Make a class a frozen dataclass and a pytree node whose children are `data_fields`; the other fields are static.

    Example:
      >>> @register_packed("values")
      ... class Twice(Packed):
      ...     values: Array
      >>> jax.tree.leaves(Twice(1.0))
      [1.0]
    """

    def decorate(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        meta = [field.name for field in dataclasses.fields(cls) if field.name not in data_fields]
        return jax.tree_util.register_dataclass(cls, data_fields=list(data_fields), meta_fields=meta)

    return decorate


def is_packed(leaf: Any) -> bool:
    """True for packed leaves of either kind.

    Example:
      >>> is_packed(jnp.ones(2))
      False
    """
    return isinstance(leaf, Packed)


def is_coded(leaf: Any) -> bool:
    """True for packed leaves that store one code an element.

    Example:
      >>> is_coded(jnp.ones(2))
      False
    """
    return isinstance(leaf, Coded)


def unpack_coded(tree: PyTree) -> PyTree:
    """Return `tree` with its coded leaves as dense arrays; factored leaves stay in factors.

    Example:
      >>> from lepton_jax.leaves import Sparse
      >>> unpack_coded({"a": Sparse.from_dense(jnp.array([0.0, 2.0]))})["a"].tolist()
      [0.0, 2.0]
    """
    return jax.tree.map(lambda leaf: leaf.unpack() if is_coded(leaf) else leaf, tree, is_leaf=is_coded)


def unpack(tree: PyTree) -> PyTree:
    """Return `tree` with every packed leaf as a dense array, bit for bit what the training view gave.

    Example:
      >>> from lepton_jax.leaves import LowRank
      >>> unpack({"a": LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)), (2, 2)), "b": 1})["a"].shape
      (2, 2)
    """
    return jax.tree.map(lambda leaf: leaf.unpack() if is_packed(leaf) else leaf, tree, is_leaf=is_packed)
