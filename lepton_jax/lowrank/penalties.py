"""Penalties that make weights easy to factorize, or keep factors well conditioned."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.leaves.low_rank import LowRank

Penalty = Callable[[PyTree], Array]
"""parameters -> a number to add to the loss."""


def _is_factored(leaf: Any) -> bool:
    return isinstance(leaf, LowRank)


@checked
def nuclear_norm(params: PyTree, select: Select = paths.matrices) -> Array:
    """Return the sum of all singular values of the selected weights; its gradient makes small ones vanish.

    Of a dense weight the nuclear norm itself, all axes but the last read as rows (gradient ``U V'``). Of factors
    ``(|u|^2 + |v|^2) / 2``, which is never less than that of their product, and equal to it for the best u and v.

    Args:
      params: arrays and `LowRank` leaves.
      select: which; a `LowRank` counts as a leaf.

    Returns:
      float32 scalar.

    Raises:
      ValueError: for a selector that matches nothing.

    Example:
      >>> dense, factors = jnp.diag(jnp.array([3.0, 4.0])), LowRank(jnp.eye(2), jnp.eye(2), (2, 2))
      >>> float(nuclear_norm({"a": dense})), float(nuclear_norm({"a": factors}))
      (7.0, 2.0)

    Source: Fazel 2002, for the norm; Srebro, Rennie, Jaakkola 2005, "Maximum-margin matrix factorization", lemma 1, for
    factors.
    """
    return _total(params, select, _nuclear)


def _nuclear(leaf: Any) -> Array:
    if isinstance(leaf, LowRank):
        return (jnp.sum(leaf.u.astype(jnp.float32) ** 2) + jnp.sum(leaf.v.astype(jnp.float32) ** 2)) / 2
    return jnp.sum(jnp.linalg.svd(leaf.astype(jnp.float32).reshape(-1, leaf.shape[-1]), compute_uv=False))


@checked
def orthogonality(params: PyTree, select: Select = paths.matrices) -> Array:
    """Return how far the columns of u, and the rows of v, are from orthogonal, whatever their lengths.

    ``sum (|U' U - I|^2 + |V V' - I|^2) / r^2`` over the factored leaves, U and V with columns and rows of length 1. Where it is
    zero, the lengths of columns are the singular values of the product, so that those dropped last matter least.

    Args:
      params: with `LowRank` leaves.
      select: which of them.

    Returns:
      float32 scalar.

    Raises:
      ValueError: for a selector that matches nothing.

    Example:
      >>> crossed = LowRank(jnp.ones((2, 2)), jnp.eye(2), (2, 2))
      >>> round(float(orthogonality({"a": crossed})), 4), float(orthogonality({"a": LowRank(jnp.eye(2), jnp.eye(2), (2, 2))}))
      (0.5, 0.0)

    Source: Yang et al. 2020, "Learning low-rank deep neural networks via singular vector orthogonality regularization and
    singular value sparsification", equation 3; there the lengths are parameters of their own.
    """
    return _total(params, select, _crossed)


def _crossed(leaf: Any) -> Array:
    if not isinstance(leaf, LowRank):
        return jnp.float32(0)
    u, v = leaf.u.astype(jnp.float32), jnp.swapaxes(leaf.v, -1, -2).astype(jnp.float32)
    return (jnp.sum(_overlaps(u) ** 2) + jnp.sum(_overlaps(v) ** 2)) / leaf.rank**2


def _overlaps(columns: Array) -> Array:
    """Products of different columns of length 1; zero columns are orthogonal to all."""
    squares = jnp.sum(columns**2, axis=-2, keepdims=True)
    unit = columns * jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)
    gram = jnp.matmul(jnp.swapaxes(unit, -1, -2), unit)
    return jnp.where(jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=bool), gram.shape), 0, gram)


def _total(params: PyTree, select: Select, penalty: Callable[[Any], Array]) -> Array:
    leaves: dict[Path, Any] = paths.select(params, select, _is_factored)
    return sum((penalty(leaf) for leaf in leaves.values()), jnp.float32(0))


@checked
def penalized(penalty: Penalty, weight: float) -> optax.GradientTransformation:
    """Add the gradient of a penalty on the masters, as optax adds weight decay: ``g + weight * d penalty / d params``.

    For training steps whose loss sees the view alone, such as `lepton_jax.training.make_train_step`, where factors are not
    seen. Put it before the optimiser: ``optax.chain(penalized(orthogonality, 1e-2), optax.adam(1e-3))``.

    Args:
      penalty: ``params -> number``; of settings, by `functools.partial`.
      weight: 0 or more.

    Raises:
      ValueError: for a negative weight.

    Example:
      >>> tx = penalized(nuclear_norm, 0.5)
      >>> params = {"a": LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)), (2, 2))}
      >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> updates["a"].u.tolist()
      [[0.5], [0.5]]
    """
    if not weight >= 0:
        raise ValueError(f"penalized: weight must be 0 or more; got {weight}.")

    def add(updates: PyTree, params: PyTree) -> PyTree:
        slopes = jax.grad(penalty)(params)
        return jax.tree.map(lambda g, s: g + weight * s.astype(g.dtype), updates, slopes)

    return optax.stateless(add)
