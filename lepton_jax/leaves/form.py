"""The native forms of packed leaves: what stands for a weight inside a graph, and how operations run on it.

They live beside their leaves, below the graph: a form sees an `Operation`, not an equation. `lepton_jax.native` walks the
graph, asks the forms, and unpacks where none has a way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.packed import is_packed, unpack
from lepton_jax.core.typing import Array, Path

MOVES = frozenset({"transpose", "reshape", "squeeze", "broadcast_in_dim", "slice"})
"""Operations that only move elements."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One operation of a graph.

    Args:
      primitive: its name.
      params: its parameters.
      shape: of its result.
      bind: does it on arrays.
      run: does it on native forms too; None if there is no way.
    """

    primitive: str
    params: Mapping[str, Any]
    shape: tuple[int, ...]
    bind: Callable[[Sequence[Any]], Any]
    run: Callable[[Sequence[Any]], Any]


class Native:
    """A packed leaf inside a graph. Its shape follows from its arrays, so that a slice of it, as a scan takes it, is one too.

    An operation that a form has no way to do returns None: then it is unpacked there.
    """

    path: Path
    kind: str
    """The name of the leaf's type."""

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

    def taken(self, whole: Any) -> Native:
        """One of the layers, given the form that was taken apart, of which all may share a part."""
        return self

    def opened(self) -> Any:
        """What meets a dot or a convolution: codes unpacked; an array, if there is no better way."""
        return self

    def operand(self) -> Array | None:
        """The array, if it is cheap enough to be the other operand of a packed weight."""
        return None

    def run(self, operation: Operation, values: Sequence[Any]) -> Any:
        """Return the result, an array or a form, of an operation on values of which this is one."""
        params = operation.params
        match operation.primitive:
            case "dot_general":
                return self.dot(values[0], values[1], params)
            case "conv_general_dilated":
                return self.conv(values[0], values[1], params)
            case "gather":
                return self.gather(values[1], params) if values[0] is self and not isinstance(values[1], Native) else None
            case "copy" | "copy_p":
                return self
            case "pvary":  # the same on every device, so its parts are
                return jax.tree.map(lambda part: operation.bind([part]), self)
            case "convert_element_type":
                return self.cast(params["new_dtype"])
        return self.moved(operation) if operation.primitive in MOVES else None

    def dot(self, lhs: Any, rhs: Any, params: Mapping[str, Any]) -> Any:
        """A `dot_general` of which this is one side."""
        return None

    def conv(self, x: Any, kernel: Any, params: Mapping[str, Any]) -> Any:
        """A `conv_general_dilated` of which this is one side."""
        return None

    def moved(self, operation: Operation) -> Any:
        """The same after an operation that moves elements; see `MOVES`."""
        return None

    def cast(self, dtype: Any) -> Self | None:
        """The same in another floating dtype."""
        floating = hasattr(self, "dtype") and jnp.issubdtype(dtype, jnp.floating)
        return cast(Self, replace(self, dtype=np.dtype(dtype).name)) if floating else None  # type: ignore[type-var]

    def rows(self, index: Array) -> Array | None:
        """Some indices (flat, in range) of the first axis, as a dense array."""
        return None

    def gather(self, indices: Array, params: Mapping[str, Any]) -> Array | None:
        """Whole rows, as an embedding looks them up: one index each, their axis left out."""
        numbers, shape = params["dimension_numbers"], self.shape
        whole = tuple(params["slice_sizes"]) == (1, *shape[1:]) and numbers.start_index_map == (0,)
        if not whole or numbers.collapsed_slice_dims != (0,) or numbers.operand_batching_dims:
            return None
        index = indices[..., 0]
        out = self.rows(jnp.clip(index, 0, shape[0] - 1).reshape(-1))
        if out is None:
            return None
        out = out.reshape(*index.shape, *shape[1:])
        out = jnp.moveaxis(out, range(index.ndim), [axis for axis in range(out.ndim) if axis not in numbers.offset_dims])
        if params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
            return out
        inside = jnp.expand_dims((index >= 0) & (index < shape[0]), numbers.offset_dims)
        return jnp.where(inside, out, jnp.nan if params["fill_value"] is None else params["fill_value"])


def part_of(leaf: Any, path: Path) -> Any:
    """Return a part of a leaf in its native form; as an array, if it has none or is one."""
    form = leaf.native(path) if is_packed(leaf) else leaf
    return unpack(leaf) if form is None else form


def array_of(value: Any) -> Array | None:
    """The other operand of a packed weight as an array; None if it is a packed weight itself."""
    return value.operand() if isinstance(value, Native) else value
