"""A kernel of two spatial axes as one along each."""

from __future__ import annotations

from typing import Any

from lepton_jax.core.packed import register_packed
from lepton_jax.leaves.factors import Factors, kernel_axes


@register_packed("first", "second")
class Separable(Factors):
    """A kernel of two spatial axes as one along each: ``W[x, y, c, n] = sum_r first[x, c, r] second[y, r, n]``.

    Args:
      first: shape (..., height, in, r): the k x 1 convolution.
      second: shape (..., width, r, out): the 1 x k convolution.
      shape: the dense leaf's: (..., height, width, in, out).

    Example:
      >>> import jax.numpy as jnp
      >>> Separable(jnp.ones((3, 2, 1)), jnp.ones((5, 1, 4)), (3, 5, 2, 4)).unpack().shape
      (3, 5, 2, 4)

    Source: Jaderberg, Vedaldi, Zisserman 2014, "Speeding up convolutional neural networks with low rank expansions", scheme 2.
    """

    first: Any
    second: Any
    shape: tuple[int, ...]

    node = 5

    @property
    def labels(self) -> tuple[str, ...]:
        return ("xcr", "yrn")

    @property
    def axes(self) -> tuple[str, ...]:
        return kernel_axes(4)
