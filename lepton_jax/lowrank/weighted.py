"""Singular value decompositions in the norm that counts: of a layer's outputs, or of the loss."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.lowrank.method import Method
from lepton_jax.lowrank.svd import Svd


@checked
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WeightedSvd(Svd):
    """The factors of rank r with the least ``||root (W - u v)||``, for a given root.

    The leading right singular vectors V of ``root W`` give ``u v = W V V^T``: nothing is inverted, so that a root without an
    inverse does no harm, and at the highest rank W is reproduced whatever the root. Every component has the same norm in u
    and v.

    Args:
      root: (*stack, k, rows), or (*stack, rows) for a diagonal one.
      columns: whether the root stands at the columns instead: ``||(W - u v) root^T||``.

    Example:
      >>> weight = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> WeightedSvd(root=jnp.array([3.0, 1.0])).factorize(weight, 1).unpack().round(4).tolist()  # the larger is lost
      [[1.0, 0.0], [0.0, 0.0]]

    Source: Srebro, Jaakkola 2003, "Weighted low-rank approximations", section 2, for weights by rows.
    """

    root: Array
    columns: bool = False

    def placed(self, axes: WeightAxes) -> Method:
        return self  # the root was found where the weight is used

    def matrices(self, weight: Array) -> tuple[Array, ...]:
        matrix = self._turned(self.matrix(weight))
        return (_times(self.root.astype(matrix.dtype), matrix),)

    def cut(self, matrix: Array, rank: int) -> tuple[Array, Array]:
        u, v = _cut(self._turned(matrix), self.root.astype(matrix.dtype), rank)
        return (self._turned(v), self._turned(u)) if self.columns else (u, v)

    def _turned(self, matrix: Array) -> Array:
        return jnp.swapaxes(matrix, -1, -2) if self.columns else matrix


@partial(jax.jit, static_argnames="rank")
def _cut(matrix: Array, root: Array, rank: int) -> tuple[Array, Array]:
    # Within the row space of W, so that at the highest rank none of it is lost to a root that is nearly singular.
    if matrix.shape[-2] < matrix.shape[-1]:
        span, triangle = jnp.linalg.qr(jnp.swapaxes(matrix, -1, -2))
        inner = jnp.linalg.svd(_times(root, jnp.swapaxes(triangle, -1, -2)), full_matrices=False)[2]
        basis = jnp.matmul(inner, jnp.swapaxes(span, -1, -2), precision="highest")[..., :rank, :]
    else:
        basis = jnp.linalg.svd(_times(root, matrix), full_matrices=False)[2][..., :rank, :]
    u = jnp.matmul(matrix, jnp.swapaxes(basis, -1, -2), precision="highest")
    norm = jnp.sqrt(jnp.linalg.norm(u, axis=-2, keepdims=True))
    return u / jnp.where(norm > 0, norm, 1), basis * jnp.swapaxes(norm, -1, -2)


def _times(root: Array, matrix: Array) -> Array:
    """``root @ matrix``, the root whole or diagonal."""
    return root[..., :, None] * matrix if root.ndim < matrix.ndim else jnp.matmul(root, matrix, precision="highest")
