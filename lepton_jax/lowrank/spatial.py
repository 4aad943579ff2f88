"""A convolution as one along each spatial axis."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from lepton_jax.core.typing import Array
from lepton_jax.leaves.networks import Separable
from lepton_jax.lowrank.method import Method, Rank, as_ranks, working
from lepton_jax.lowrank.svd import halves


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialSvd(Method):
    """A kernel (height, width, in, out) as k x 1 to r channels and 1 x k to the outputs, by one decomposition.

    The matrix of (height, in) by (width, out) is cut at rank r: the best pair of such convolutions in the norm of the kernel.

    Example:
      >>> leaf = SpatialSvd().factorize(jnp.ones((3, 5, 2, 4)), 1)
      >>> leaf.first.shape, leaf.second.shape, bool(jnp.allclose(leaf.unpack(), 1))
      ((3, 2, 1), (5, 1, 4), True)

    Source: Jaderberg, Vedaldi, Zisserman 2014, "Speeding up convolutional neural networks with low rank expansions", scheme 2;
    in closed form as Tai et al. 2016, "Convolutional neural networks with low-rank regularization", theorem 1.
    """

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        axes = len(self.layer(shape))
        return None if axes == 4 else f"has {axes} axes; a kernel (height, width, in, out) has 4"

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows (height, in) and columns (width, out) of the matrix."""
        height, width, into, out = self.layer(shape)
        return height * into, width * out

    def max_rank(self, shape: tuple[int, ...]) -> int:
        return min(self.sides(shape))

    def parameters(self, shape: tuple[int, ...], rank: Rank) -> int:
        return self.layers(shape) * sum(self.sides(shape)) * as_ranks(self, rank, 1)[0]

    def matrices(self, weight: Array) -> tuple[Array, ...]:
        matrix = jnp.moveaxis(working(weight), -2, -3)
        return (matrix.reshape(*weight.shape[: self.stacked], *self.sides(weight.shape)),)

    def factorize(self, weight: Array, rank: Rank) -> Separable:
        height, width, into, out = self.layer(weight.shape)
        u, v = halves(self.matrices(weight)[0], as_ranks(self, rank, 1)[0])
        stack, r = u.shape[:-2], u.shape[-1]
        first = u.reshape(*stack, height, into, r)
        second = jnp.swapaxes(v.reshape(*stack, r, width, out), -2, -3)
        return Separable(first.astype(weight.dtype), second.astype(weight.dtype), tuple(weight.shape))
