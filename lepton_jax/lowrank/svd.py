"""Low-rank factorization by the singular value decomposition."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.packed import Packed
from lepton_jax.core.typing import Array
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank.method import Method, Rank, Refused, working


class TwoFactors(Method):
    """Base of the methods that cut the singular values of one matrix."""

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the matrix that a leaf, or each of a stack, is read as."""
        raise TypeError(f"{type(self).__name__} does not say which matrix it reads")

    def matrix(self, weight: Array) -> Array:
        """The leaf as (*stack, rows, columns), in the precision in which it is decomposed."""
        return working(weight).reshape(*weight.shape[: self.stacked], *self.sides(weight.shape))

    def max_rank(self, shape: tuple[int, ...]) -> int:
        return min(self.sides(shape))

    def parameters(self, shape: tuple[int, ...], rank: Rank) -> int:
        return self.layers(shape) * sum(self.sides(shape)) * self.inner(shape, rank)[0]

    def matrices(self, weight: Array) -> tuple[Array, ...]:
        return (self.matrix(weight),)

    def factorize(self, weight: Array, rank: Rank) -> Any:
        u, v = self.cut(self.matrix(weight), self.inner(weight.shape, rank)[0])
        return self.leaf(u.astype(weight.dtype), v.astype(weight.dtype), tuple(weight.shape))

    def cut(self, matrix: Array, rank: int) -> tuple[Array, Array]:
        """Return the two factors of a matrix, or of each of a stack."""
        return halves(matrix, rank)

    def leaf(self, u: Array, v: Array, shape: tuple[int, ...]) -> Packed:
        """Return the leaf that the factors make."""
        return LowRank(u, v, shape)


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Svd(TwoFactors):
    """The best approximation of a given rank: ``W = U S V^T``, ``u = U_r sqrt(S_r)``, ``v = sqrt(S_r) V_r^T``.

    The squared error is the sum of the squared singular values left out (Eckart and Young 1936). A convolution's kernel
    (height, width, in, out) becomes one to r channels and a 1 x 1 convolution to all of them: the channel-wise scheme.

    Args:
      stacked: leading axes that stack weights; each is decomposed by itself, all at once.
      rows: how many axes after those are read as rows; None: all but the last. For the kernels (in, heads, head size) of
        queries, keys and values, 1 keeps what the heads have in common.

    Example:
      >>> factors = Svd().factorize(jnp.outer(jnp.arange(3.0), jnp.ones(2)), 1)
      >>> factors.u.shape, factors.v.shape, abs(factors.unpack()).round(4).tolist()
      ((3, 1), (1, 2), [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])

    Source: Denil et al. 2013, "Predicting parameters in deep learning"; for convolutions Zhang et al. 2016, "Accelerating very
    deep convolutional networks for classification and detection", section 3.1, without the non-linearity.
    """

    rows: int | None = None

    def placed(self, axes: WeightAxes) -> Method:
        found = super().placed(axes)
        rest = [axis for axis in range(axes.ndim) if axis not in axes.stacked]
        # In neither order of the two sides are the axes of one of them together, or there are groups: no one matrix.
        sides = [side for side in (axes.summed, axes.outputs) if side and list(side) == rest[: len(side)]]
        if not isinstance(found, Svd) or axes.groups or axes.grouped or not sides or len(sides[0]) == len(rest):
            return found if not isinstance(found, Svd) else Refused(reason=f"is no one matrix of inputs and outputs ({axes})")
        return dataclasses.replace(found, rows=self.rows or len(sides[0]))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows is not None:
            check_whole(f"{type(self).__name__}: rows", self.rows, 1)

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        least = 2 if self.rows is None else self.rows + 1
        axes = len(self.layer(shape))
        return None if axes >= least else f"has {axes} axes after {self.stacked} stacked ones; at least {least} are needed"

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the matrix that a leaf, or each of a stack, is read as."""
        layer = self.layer(shape)
        cut = len(layer) - 1 if self.rows is None else self.rows
        return math.prod(layer[:cut]), math.prod(layer[cut:])


@partial(jax.jit, static_argnames="rank")
def halves(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return ``U_r sqrt(S_r)`` and ``sqrt(S_r) V_r^T`` of a matrix, or of each of a stack.

    A pair of singular vectors may be negated; of both, that is taken whose ``sum u**3 + sum v**3`` is not negative: so factors
    that are rounded later do not depend on how a stack, or a transposed matrix, happens to be decomposed.

    Example:
      >>> [half.shape for half in halves(jnp.ones((3, 2)), 1)]
      [(3, 1), (1, 2)]
    """
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    left, right, root = left[..., :rank], right[..., :rank, :], jnp.sqrt(values[..., :rank])
    sign = jnp.where(jnp.sum(left**3, -2) + jnp.sum(right**3, -1) < 0, -1, 1).astype(root.dtype)
    return left * (sign * root)[..., None, :], (sign * root)[..., :, None] * right


@checked
def factorize(weight: Array, rank: int) -> LowRank:
    """Return the best approximation of a given rank, all axes but the last read as rows; see `Svd`.

    Args:
      weight: two axes or more.
      rank: 1 to the smaller side.

    Example:
      >>> factorize(jnp.outer(jnp.arange(1.0, 4.0), jnp.ones(2)), 1).unpack().round(4).tolist()
      [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    """
    return Svd().factorize(weight, rank)
