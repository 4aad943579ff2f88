"""Low-rank factorization by the singular value decomposition."""

import math

import jax.numpy as jnp

from lepton_jax import packed, paths
from lepton_jax.errors import check_whole, collect
from lepton_jax.packed import LowRank
from lepton_jax.transform import Transform, hold
from lepton_jax.typing import Array, PyTree, Select


def factorize(weight: Array, rank: int) -> LowRank:
    """Return the best approximation of a given rank: ``W = U S V^T``, ``u = U_r sqrt(S_r)``, ``v = sqrt(S_r) V_r^T``.

    The squared error is the sum of the squared singular values left out (Eckart and Young 1936).

    Args:
      weight: two axes or more; all but the last are read as rows.
      rank: 1 to the smaller side.

    Example:
      >>> factors = factorize(jnp.outer(jnp.arange(3.0), jnp.ones(2)), 1)
      >>> factors.u.shape, factors.v.shape, factors.unpack().round(4).tolist()
      ((3, 1), (1, 2), [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    """
    left, values, right = jnp.linalg.svd(weight.astype(jnp.float32).reshape(-1, weight.shape[-1]), full_matrices=False)
    root = jnp.sqrt(values[:rank])
    u, v = left[:, :rank] * root[None, :], root[:, None] * right[:rank]
    return LowRank(u.astype(weight.dtype), v.astype(weight.dtype), weight.shape)


def low_rank(rank: int, *, select: Select = paths.matrices) -> Transform:
    """Exchange each selected matrix for two thin trainable ones: ``view = u @ v``.

    The factors are leaves of their own (``Dense_0/kernel/u``): a later transform of a chain may prune or quantize them.

    Args:
      rank: inner size, 1 to the smaller side of every selected matrix; a convolution's kernel is read as the matrix of
        (height, width, in) by out.
      select: which leaves; by default those with two axes or more.

    Raises:
      ValueError: for a rank that is no whole number or outside that range (all paths together), or a selector that matches
        nothing.

    Example:
      >>> transform = low_rank(1)
      >>> params, state = transform.init({"kernel": jnp.ones((4, 3))})
      >>> paths.flatten(params)["kernel/u"].shape, transform.view(params, state)["kernel"].shape
      ((4, 1), (4, 3))

    Source: Denil et al. 2013, "Predicting parameters in deep learning"; factors by truncated SVD.
    """
    check_whole("low_rank: rank", rank, 1)

    def init(params: PyTree) -> tuple[PyTree, tuple[()]]:
        weights = paths.select(params, select)
        with collect(f"low_rank: cannot factorize with rank {rank}") as problems:
            for path, weight in weights.items():
                side = min(math.prod(weight.shape[:-1]), weight.shape[-1]) if weight.ndim >= 2 else 0
                if not 1 <= rank <= side:
                    problems.append(f"{path}: shape {weight.shape}; the rank must be 1 to {side}: choose less, or deselect it.")
        return paths.replace(params, {path: factorize(weight, rank) for path, weight in weights.items()}), ()

    def view(params: PyTree, state: tuple[()]) -> PyTree:
        return packed.unpack(params)

    def factors(params: PyTree, state: tuple[()]) -> PyTree:
        return params

    return Transform(init, view, hold, pack=factors, view_leaves=factors)
