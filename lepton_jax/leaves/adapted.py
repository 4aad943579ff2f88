"""A weight and its correction, kept apart."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.packed import Composite, register_packed, unpack
from lepton_jax.core.typing import Array, Path
from lepton_jax.leaves.form import Native, Operation, part_of
from lepton_jax.leaves.low_rank import LowRank

_LINEAR = {
    "broadcast_in_dim": (0,),
    "conv_general_dilated": (0, 1),
    "dot_general": (0, 1),
    "gather": (0,),
    "reshape": (0,),
    "squeeze": (0,),
    "transpose": (0,),
}
"""The operands in which an operation is linear, one at a time."""


@register_packed("base", "correction")
class Adapted(Composite):
    """A weight and a correction of low rank: ``W = base + correction``, added in float32 at least, in the base's dtype.

    What LoRA and QLoRA train, what LoftQ begins with, and what makes up for the error of quantization.

    Args:
      base: an array, or a coded leaf such as `QArray`.
      correction: a `LowRank` of the same shape.

    Example:
      >>> from lepton_jax.leaves.low_rank import LowRank
      >>> leaf = Adapted(jnp.ones((3, 2)), LowRank(jnp.ones((3, 1)), jnp.full((1, 2), 2.0), (3, 2)))
      >>> leaf.unpack().tolist(), leaf.rank
      ([[3.0, 3.0], [3.0, 3.0], [3.0, 3.0]], 1)
    """

    base: Any
    correction: Any

    node = 10

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.base.shape)

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.base.dtype

    @property
    def rank(self) -> int:
        """Of the correction."""
        return self.correction.rank

    def unpack(self) -> Array:
        return _sum(self)

    def check(self, shape: tuple[int, ...]) -> None:
        if not isinstance(self.correction, LowRank) or self.shape != shape or self.correction.shape != shape:
            raise ValueError(f"a weight and a correction make no tensor of shape {shape}")

    def native(self, path: Path) -> Total:
        return Total((part_of(self.base, path), part_of(self.correction, path)), str(self.dtype), path)


@jax.jit  # compiled whole wherever it runs: a product and a sum then round together, under jit and outside alike
def _sum(leaf: Adapted) -> Array:
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    return (unpack(leaf.base).astype(wide) + unpack(leaf.correction).astype(wide)).astype(leaf.dtype)


@register_packed("parts")
class Total(Native):
    """A sum of weights of one shape, each an array or a native form: linear operations run on each, and are added up."""

    parts: tuple[Any, ...]
    dtype: str
    path: Path

    kind = "Adapted"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[0].shape)

    def dense(self) -> Array:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        arrays = [part.dense() if isinstance(part, Native) else part for part in self.parts]
        return functools.reduce(jnp.add, [array.astype(wide) for array in arrays]).astype(self.dtype)

    def layers(self, length: int) -> Total | None:
        taken = [part.layers(length) if isinstance(part, Native) else part for part in self.parts]
        whole = all(part is not None and part.shape[:1] == (length,) for part in taken)
        return Total(tuple(taken), self.dtype, self.path) if whole else None

    def taken(self, whole: Total) -> Total:
        parts = [part.taken(of) if isinstance(part, Native) else part for part, of in zip(self.parts, whole.parts)]
        return Total(tuple(parts), self.dtype, self.path)

    def run(self, operation: Operation, values: Sequence[Any]) -> Any:
        [place, *more] = [place for place, value in enumerate(values) if isinstance(value, Total)]
        if more or place not in _LINEAR.get(operation.primitive, ()):
            return None
        outs = [operation.run([*values[:place], part, *values[place + 1 :]]) for part in self.parts]
        if any(out is None for out in outs):
            return None
        if any(isinstance(out, Native) for out in outs):
            return Total(tuple(outs), self.dtype, self.path)
        return functools.reduce(jnp.add, outs)
