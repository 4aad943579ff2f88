"""A convolution as one along each spatial axis."""

import dataclasses

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.leaves.separable import Separable
from lepton_jax.lowrank.method import working
from lepton_jax.lowrank.svd import TwoFactors


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialSvd(TwoFactors):
    """A kernel (height, width, in, out) as k x 1 to r channels and 1 x k to the outputs, by one decomposition.

    The matrix of (height, in) by (width, out) is cut at rank r: the best pair of such convolutions in the norm of the kernel.

    Example:
      >>> leaf = SpatialSvd().factorize(jnp.ones((3, 5, 2, 4)), 1)
      >>> leaf.first.shape, leaf.second.shape, bool(jnp.allclose(leaf.unpack(), 1))
      ((3, 2, 1), (5, 1, 4), True)

    Source: Jaderberg, Vedaldi, Zisserman 2014, "Speeding up convolutional neural networks with low rank expansions", scheme 2;
    in closed form as Tai et al. 2016, "Convolutional neural networks with low-rank regularization", theorem 1.
    """

    axes = range(4, 5)
    takes = "a kernel (height, width, in, out) has 4"

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows (height, in) and columns (width, out) of the matrix."""
        height, width, into, out = self.layer(shape)
        return height * into, width * out

    def matrix(self, weight: Array) -> Array:
        matrix = jnp.moveaxis(working(weight), -2, -3)
        return matrix.reshape(*weight.shape[: self.stacked], *self.sides(weight.shape))

    def leaf(self, u: Array, v: Array, shape: tuple[int, ...]) -> Separable:
        height, width, into, out = self.layer(shape)
        stack, r = u.shape[:-2], u.shape[-1]
        second = jnp.swapaxes(v.reshape(*stack, r, width, out), -2, -3)
        return Separable(u.reshape(*stack, height, into, r), second, shape)
