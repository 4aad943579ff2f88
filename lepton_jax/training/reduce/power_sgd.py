"""Sums of gradients in low rank."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.training.reduce.base import Compressed, Leaves


@checked
@dataclass(frozen=True)
class PowerSgd(Compressed):
    """The mean of gradients in rank r, by one step of power iteration that goes on from the last step's.

    Of a gradient as a matrix ``M`` (rows, columns), summed over devices, with ``Q`` (columns, r) of the step before::

        P = orthonormal(sum_i M_i Q),  Q = sum_i M_i^T P,  sum = P Q^T

    P and Q are sent, ``r (rows + columns)`` numbers in place of ``rows * columns``. An array of more axes is the matrix of its
    last axis. What has fewer than two axes, or would not be smaller, is summed whole.

    Args:
      rank: r, at least 1.
      dtype: of the leaves that are summed whole.
      axis: of the devices' mesh.

    Raises:
      ValueError: for a rank below 1.

    Example:
      >>> reduce, grads = PowerSgd(1), {"w": jnp.outer(jnp.arange(4.0), jnp.ones(5))}
      >>> mean, _ = jax.vmap(reduce.reduce, axis_name="data")(
      ...     jax.tree.map(lambda g: jnp.stack([g, 3 * g]), grads), jax.vmap(lambda _: reduce.init(grads, 1))(jnp.arange(2))
      ... )
      >>> bool(jnp.allclose(mean["w"][0], 2 * grads["w"], rtol=1e-5))
      True

    Source: Vogels, Karimireddy, Jaggi 2019, "PowerSGD", algorithms 1 and 2, without their momentum; a device keeps what the
    projection on P leaves of its own share.
    """

    rank: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("PowerSgd: rank", self.rank, 1)

    def takes(self, leaf: Any) -> bool:
        """Whether factors are smaller."""
        rows, columns = _sides(leaf)
        return leaf.ndim >= 2 and self.rank * (rows + columns) < rows * columns

    def begin(self, leaves: Leaves) -> Leaves:
        """Draw Q, the same on every device."""
        keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))
        return {path: jax.random.normal(key, (_sides(leaf)[1], self.rank)) for key, (path, leaf) in zip(keys, leaves.items())}

    def exchange(self, shares: Leaves, shared: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        """Send P, then Q: one sum each for all leaves."""
        matrices = {path: share.reshape(_sides(share)) for path, share in shares.items()}
        left = jax.lax.psum({path: matrix @ shared[path] for path, matrix in matrices.items()}, self.axis)
        left = {path: jnp.linalg.qr(factor)[0] for path, factor in left.items()}
        own = {path: matrix.T @ left[path] for path, matrix in matrices.items()}
        right = jax.lax.psum(own, self.axis)

        def product(path: str, factors: Leaves) -> Array:
            return (left[path] @ factors[path].T).reshape(shares[path].shape)

        sums = {path: product(path, right) for path in shares}
        return sums, {path: share - product(path, own) for path, share in shares.items()}, right


def _sides(leaf: Any) -> tuple[int, int]:
    return math.prod(leaf.shape[:-1]), leaf.shape[-1] if leaf.ndim else 1
