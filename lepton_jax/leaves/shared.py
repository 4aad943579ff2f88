"""One weight for all of a stack."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.packed import Composite, register_packed, unpack
from lepton_jax.core.typing import Array, Path
from lepton_jax.leaves.form import Native, part_of


@register_packed("one")
class Shared(Composite):
    """A stack whose layers are all the same weight: ``W[l, ...] = one[...]``.

    Args:
      one: the weight, an array or a packed leaf.
      shape: the dense leaf's: (layers, *the weight's).

    Example:
      >>> Shared(jnp.array([1.0, 2.0]), (3, 2)).unpack().tolist()
      [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]

    Source: Lan et al. 2020, "ALBERT: a lite BERT for self-supervised learning of language representations", section 3.1.
    """

    one: Any
    shape: tuple[int, ...]

    node = 11

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.one.dtype

    def unpack(self) -> Array:
        return jnp.broadcast_to(unpack(self.one), self.shape)

    def check(self, shape: tuple[int, ...]) -> None:
        if tuple(self.one.shape) != tuple(shape[1:]) or not shape:
            raise ValueError(f"a weight of shape {tuple(self.one.shape)} makes no stack of shape {shape}")

    def native(self, path: Path) -> Stack:
        return Stack(part_of(self.one, path), self.shape[0], path)


@register_packed("one")
class Stack(Native):
    """One weight, `count` times; a scan's step gets the weight itself, which stays outside of the loop."""

    one: Any
    count: int
    path: Path

    kind = "Shared"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.one.shape)

    def dense(self) -> Array:
        one = self.one.dense() if isinstance(self.one, Native) else self.one
        return jnp.broadcast_to(one, self.shape)

    def layers(self, length: int) -> Stack:
        return dataclasses.replace(self, one=jnp.zeros((length, 0)))

    def taken(self, whole: Stack) -> Any:
        return whole.one
