"""A matrix of many modes as a chain of cores."""

from __future__ import annotations

from string import ascii_letters
from typing import Any

from lepton_jax.core.packed import register_packed
from lepton_jax.leaves.factors import Factors, chain_labels


@register_packed("cores")
class TensorTrainMatrix(Factors):
    """A matrix of many modes as a chain: ``W[(i1, i2, ..), (j1, j2, ..)] = sum g1[i1, j1, r1] g2[r1, i2, j2, r2] ...``.

    Rows and columns are numbers of several digits i and j, the first the slowest.

    Args:
      cores: shapes (..., i1, j1, r1), (..., r1, i2, j2, r2), ..., (..., r, i, j); two at least.
      shape: the dense leaf's: (..., i1 i2 .., j1 j2 ..).

    Example:
      >>> import jax.numpy as jnp
      >>> TensorTrainMatrix((jnp.ones((2, 3, 1)), jnp.ones((1, 4, 5))), (8, 15)).unpack().shape
      (8, 15)

    Source: Novikov et al. 2015, "Tensorizing neural networks", eq. 3.
    """

    cores: tuple[Any, ...]
    shape: tuple[int, ...]

    node = 9
    several = (2, 13)

    @property
    def labels(self) -> tuple[str, ...]:
        rows, columns = self.axes
        return chain_labels(tuple(f"{i}{j}" for i, j in zip(rows, columns)))

    @property
    def axes(self) -> tuple[str, ...]:
        count = len(self.cores)
        return (ascii_letters[:count], ascii_letters[count : 2 * count])
