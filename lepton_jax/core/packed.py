"""Packed leaves: compressed parameters as typed pytree nodes in their place in the tree.

A kind of leaf is one class in one file of `lepton_jax.leaves`, which says all that is particular to it: everything else asks
the leaf. What most kinds do alike has a default here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, dataclass_transform

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.typing import Array, Path, PyTree


class Packed:
    """Base of all packed leaves, by way of `Coded` or `Composite` if they can be stored.

    A new kind says its `dtype` and `unpack`, and its `native` form, if it runs as it is.

    Example:
      >>> from lepton_jax.leaves import LowRank
      >>> leaf = LowRank(jnp.ones((3, 1)), jnp.ones((1, 2)), (3, 2))
      >>> isinstance(leaf, Packed), leaf.ndim, leaf.size, leaf.numbers()
      (True, 2, 6, 5)
    """

    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stored_as(self) -> str:
        """What it is, in a few words for tables."""
        return type(self).__name__

    def unpack(self) -> Array:
        """Return the dense array, bit for bit what the view gave."""
        raise TypeError(f"{type(self).__name__} does not say how it is unpacked")

    def dense(self) -> Array:
        """Return the same outside of jit, without compiling what only selects."""
        return self.unpack()

    def native(self, path: Path) -> Any:
        """Return the form in which it runs, see `lepton_jax.leaves.form.Native`; None if there is none.

        Args:
          path: where it is in the variables.
        """
        return None

    def numbers(self) -> int:
        """Return how many numbers are stored, zeros included: of codes one an element, of factors theirs."""
        return self.size

    def nonzeros(self) -> int:
        """Return how many of them are not zero."""
        return _nonzeros(self.unpack())


class Composite(Packed):
    """Base of packed leaves made of parts that are leaves of their own: factors, blocks, a weight and its correction.

    To be stored, a new kind says its `node`, and in `check` what its parts must be.

    Example:
      >>> from lepton_jax.leaves import LowRank
      >>> list(LowRank(jnp.ones((3, 1)), jnp.ones((1, 2)), (3, 2)).children())
      ['u', 'v']
    """

    made_of: ClassVar[tuple[str, ...]]
    """The fields of parts; see `register_packed`."""
    several: ClassVar[tuple[int, int] | None] = None
    """The fewest and the most parts, where one field has a tuple of them."""
    node: ClassVar[int | None] = None
    """The number of its kind in the tree of a file, above those of `artifact.structure`; never given anew."""

    def children(self) -> dict[str, Any]:
        """Return its parts by name: ``u`` and ``v``; ``cores/0``, ``cores/1`` and so on."""
        values = [getattr(self, name) for name in self.made_of]
        values = list(values[0]) if self.several else values
        return dict(zip(self.names(len(values)), values, strict=True))

    @classmethod
    def names(cls, count: int) -> Sequence[str]:
        """Return the names of so many parts."""
        return [f"{cls.made_of[0]}/{at}" for at in range(count)] if cls.several else cls.made_of

    @classmethod
    def may_have(cls, count: int) -> bool:
        """Whether there can be so many parts."""
        fewest, most = cls.several or (len(cls.made_of),) * 2
        return fewest <= count <= most

    @classmethod
    def of_children(cls, parts: Sequence[Any], shape: tuple[int, ...]) -> Self:
        """Return a leaf of these parts, arrays and leaves in the order of `children`.

        Raises:
          ValueError: if they make no tensor of this shape.
        """
        values = dict(zip(cls.made_of, [tuple(parts)] if cls.several else parts, strict=True))
        has_shape = any(field.name == "shape" for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        leaf = cls(**values, **({"shape": shape} if has_shape else {}))
        leaf.check(shape)
        return leaf

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` unless the parts make a tensor of this shape."""
        raise TypeError(f"{type(self).__name__} does not say what its parts must be")

    def numbers(self) -> int:
        return sum(part.numbers() if is_packed(part) else math.prod(part.shape) for part in self.children().values())

    def nonzeros(self) -> int:
        return sum(part.nonzeros() if is_packed(part) else _nonzeros(part) for part in self.children().values())


class Coded(Packed):
    """Base of packed leaves that store one code an element.

    ``output_dtype`` names the dtype of the dense array; a dataclass field of every subclass. A new kind says also how it is
    `masked`; to be stored, its `letters`, how it is written (`write`) and `read`, and its `figures`.

    Example:
      >>> from lepton_jax.leaves import Sparse
      >>> Sparse.from_dense(jnp.array([0.0, 2.0])).masked(jnp.array([True, False])).unpack().tolist()
      [0.0, 0.0]
    """

    output_dtype: str

    letters: ClassVar[Mapping[str, str]] = {}
    """Each letter that its texts in files begin with, and the name of what it stands for; never given anew."""
    keeps_zeros: ClassVar[bool] = False
    """Whether training `trained` cannot change which elements are zero."""

    @property
    def dtype(self) -> jnp.dtype:  # type: ignore[override]
        return jnp.dtype(self.output_dtype)

    @property
    def stored_as(self) -> str:
        return f"{type(self).__name__.lower()} {self.dtype}"

    def astype(self, dtype: Any) -> Self | Array:
        """Return the same codes, to be unpacked to another dtype; the dense array, if a wider one could undo the rounding."""
        if jnp.promote_types(self.dtype, dtype) != self.dtype:
            return self.unpack().astype(dtype)
        return dataclasses.replace(self, output_dtype=jnp.dtype(dtype).name)  # type: ignore[type-var]

    def masked(self, mask: Array) -> Self:
        """Return the leaf with the codes of zero where `mask` is False."""
        raise TypeError(f"{type(self).__name__} does not say how it is masked")

    def trained(self) -> Array:
        """Return the array that is trained in its place."""
        return self.unpack()

    def retrained(self, array: Array) -> Self | Array:
        """Return what `trained` array becomes: a leaf of the same kind, if it can be."""
        return array

    def write(self, writer: Any, hints: Any) -> tuple[str, tuple[int, ...]]:
        """Append its bytes to a `coding.streams.Writer`, given the `Hints` of earlier leaves.

        Returns:
          its letter, and the numbers that `read` needs beside shape and dtype.
        """
        raise ArtifactError(f"packed leaves of type {type(self).__name__} cannot be stored by this version; unpack them first")

    @classmethod
    def check_numbers(cls, letter: str, numbers: tuple[int, ...]) -> None:
        """Raise an `ArtifactError` unless `write` may have returned these."""
        if numbers:
            raise ArtifactError(f"{letter!r} has no numbers")

    @classmethod
    def read(cls, reader: Any, spec: Any, limit: int, hints: Any) -> Self:
        """Read what `write` wrote from a `coding.streams.Reader`.

        Args:
          reader: at the first byte.
          spec: letter, numbers, shape and dtype; see `leaves.stored.Spec`.
          limit: how many bytes an inner array may have.
          hints: of earlier leaves.

        Raises:
          ArtifactError: if it is no such leaf.
        """
        raise ArtifactError(f"packed leaves of type {cls.__name__} cannot be read")

    def figures(self) -> Any:
        """Return its sizes under other codings; see `leaves.figures.Figures`."""
        raise TypeError(f"{type(self).__name__} does not say how it is counted")


def _nonzeros(array: Array) -> int:
    return int(jnp.count_nonzero(array))


def kinds(base: type[Packed] = Packed) -> Iterator[type[Any]]:
    """Yield every kind of packed leaf that has been imported, those of `lepton_jax.leaves` always.

    Example:
      >>> import lepton_jax.leaves
      >>> "Sparse" in {kind.__name__ for kind in kinds(Coded)}
      True
    """
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@checked
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
        if issubclass(cls, Composite):
            cls.made_of = data_fields  # type: ignore[attr-defined]
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


def stored_as(leaf: Any) -> str:
    """Return what a leaf is, in a few words for tables: its number format, or the dtype of an array.

    Example:
      >>> stored_as(jnp.ones(2))
      'float32'
    """
    return leaf.stored_as if is_packed(leaf) else str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__


def is_coded(leaf: Any) -> bool:
    """True for packed leaves that store one code an element.

    Example:
      >>> is_coded(jnp.ones(2))
      False
    """
    return isinstance(leaf, Coded)


@checked
def unpack_coded(tree: PyTree) -> PyTree:
    """Return `tree` with its coded leaves as dense arrays; factored leaves stay in factors.

    Example:
      >>> from lepton_jax.leaves import Sparse
      >>> unpack_coded({"a": Sparse.from_dense(jnp.array([0.0, 2.0]))})["a"].tolist()
      [0.0, 2.0]
    """
    return jax.tree.map(lambda leaf: leaf.unpack() if is_coded(leaf) else leaf, tree, is_leaf=is_coded)


def dense(tree: PyTree) -> PyTree:
    """Return the same as `unpack`, outside of jit, and compile nothing for leaves whose values are only selected.

    Example:
      >>> from lepton_jax.leaves import Sparse
      >>> dense({"a": Sparse.from_dense(jnp.array([0.0, 2.0]))})["a"].tolist()
      [0.0, 2.0]
    """
    return jax.tree.map(lambda leaf: leaf.dense() if is_packed(leaf) else leaf, tree, is_leaf=is_packed)


@checked
def unpack(tree: PyTree) -> PyTree:
    """Return `tree` with every packed leaf as a dense array, bit for bit what the training view gave.

    Example:
      >>> from lepton_jax.leaves import LowRank
      >>> unpack({"a": LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)), (2, 2)), "b": 1})["a"].shape
      (2, 2)
    """
    return jax.tree.map(lambda leaf: leaf.unpack() if is_packed(leaf) else leaf, tree, is_leaf=is_packed)
