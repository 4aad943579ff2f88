"""A tensor as a sum of outer products."""

from __future__ import annotations

from typing import Any

from lepton_jax.core.packed import register_packed
from lepton_jax.leaves.factors import Factors, channels_first, kernel_axes


@register_packed("factors")
class CP(Factors):
    """A tensor as a sum of outer products: ``W[x, y, c, n] = sum_r f0[x, r] f1[y, r] f2[c, r] f3[n, r]``.

    A convolution with it is one to r channels, one along each spatial axis of each channel by itself, and one to the outputs.

    Args:
      factors: one for each axis of the tensor, shape (..., size, r).
      shape: the dense leaf's.

    Example:
      >>> import jax.numpy as jnp
      >>> CP((jnp.ones((3, 2)), jnp.ones((4, 2)), jnp.ones((5, 2))), (3, 4, 5)).unpack()[0, 0, 0]
      Array(2., dtype=float32)

    Source: Lebedev et al. 2015, "Speeding-up convolutional neural networks using fine-tuned CP-decomposition", eq. 2.
    """

    factors: tuple[Any, ...]
    shape: tuple[int, ...]

    node = 7
    several = (2, 5)

    @property
    def parts(self) -> tuple[Any, ...]:
        *space, into, out = self.factors
        return (into, *space, out)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f"{letter}r" for letter in channels_first(self.axes))

    @property
    def axes(self) -> tuple[str, ...]:
        return kernel_axes(len(self.factors))
