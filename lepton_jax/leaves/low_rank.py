"""A matrix as the product of two thin ones."""

from __future__ import annotations

import dataclasses
import math
from string import ascii_letters
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.packed import Composite, is_packed, register_packed, unpack
from lepton_jax.core.typing import Array, Path
from lepton_jax.leaves.form import Native, part_of
from lepton_jax.leaves.network import Network


@register_packed("u", "v")
class LowRank(Composite):
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

    node = 3

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return jnp.result_type(self.u.dtype, self.v.dtype)

    @property
    def rank(self) -> int:
        return self.u.shape[-1]

    @property
    def stored_as(self) -> str:
        inner = {part.stored_as if is_packed(part) else str(part.dtype) for part in (self.u, self.v)}
        return f"rank {self.rank}, {' and '.join(sorted(inner))}"

    def unpack(self) -> Array:
        return jnp.matmul(unpack(self.u), unpack(self.v)).reshape(self.shape)

    def dense(self) -> Array:
        u, v = (part.dense() if is_packed(part) else part for part in (self.u, self.v))
        return dataclasses.replace(self, u=u, v=v).unpack()

    def check(self, shape: tuple[int, ...]) -> None:
        u, v = self.u.shape, self.v.shape
        fits = len(u) == len(v) > 1 and u[-1] == v[-2] and u[:-2] == v[:-2]
        if not fits or math.prod((*u[:-1], v[-1])) != math.prod(shape):
            raise ValueError(f"factors of shapes {u} and {v} make no tensor of shape {shape}")

    def native(self, path: Path) -> Network | None:
        *stack, rows, rank = self.u.shape
        shape = self.shape[len(stack) :]
        cuts = [cut for cut in range(1, len(shape)) if math.prod(shape[:cut]) == rows]
        if list(self.shape[: len(stack)]) != stack or not cuts:
            return None
        cut, letters = cuts[-1], ascii_letters[: len(shape)]
        u = _shaped(part_of(self.u, path), (*stack, *shape[:cut], rank))
        v = _shaped(part_of(self.v, path), (*stack, rank, *shape[cut:]))
        labels = (f"{letters[:cut]}R", f"R{letters[cut:]}")
        return Network((u, v), labels, tuple(letters), "LowRank", str(self.dtype), path)


def _shaped(part: Any, shape: tuple[int, ...]) -> Any:
    if tuple(part.shape) == shape:
        return part
    return (part.dense() if isinstance(part, Native) else part).reshape(shape)
