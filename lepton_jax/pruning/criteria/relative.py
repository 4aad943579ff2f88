"""A weight's share of its row and of its column."""

import dataclasses

import jax.numpy as jnp

from lepton_jax.core.typing import Array
from lepton_jax.pruning.criteria.base import Criterion, wide


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relative(Criterion):
    """Score by ``|w_ij| / sum_k |w_kj| + |w_ij| / sum_k |w_ik|``: what is large among its neighbours stays, in weak rows too.

    Rows are all axes but the last; a leaf of one axis is one row.

    Example:
      >>> Relative().scores(jnp.array([[1.0, 1.0], [0.0, 2.0]]), ()).round(2).tolist()
      [[1.5, 0.8...], [0.0, 1.6...]]

    Source: Zhang et al. 2024, "Plug-and-play: an efficient post-training pruning method for large language models", equation 3,
    without the activations.
    """

    def scores(self, weight: Array, state: object) -> Array:
        sizes = jnp.abs(wide(weight)).reshape(-1, weight.shape[-1] if weight.ndim else 1)
        rows, columns = jnp.sum(sizes, axis=1, keepdims=True), jnp.sum(sizes, axis=0, keepdims=True)
        shares = [sizes / jnp.where(total > 0, total, 1.0) for total in (rows, columns)]
        return (shares[0] + shares[1]).reshape(weight.shape)
