"""A kernel as a chain of cores, one for each axis."""

from __future__ import annotations

from typing import Any

from lepton_jax.core.packed import register_packed
from lepton_jax.leaves.factors import Factors, chain_labels, channels_first, kernel_axes


@register_packed("cores")
class TensorTrain(Factors):
    """A kernel as a chain: ``W[x, y, c, n] = sum g0[c, r0] g1[r0, x, r1] g2[r1, y, r2] g3[r2, n]``.

    Args:
      cores: of the input channels, shape (..., in, r); of each spatial axis, (..., r, size, r'); of the outputs, (..., r, out).
      shape: the dense leaf's: (..., *space, in, out).

    Example:
      >>> import jax.numpy as jnp
      >>> cores = (jnp.ones((4, 2)), jnp.ones((2, 3, 3)), jnp.ones((3, 5)))
      >>> TensorTrain(cores, (3, 4, 5)).unpack().shape
      (3, 4, 5)

    Source: Oseledets 2011, "Tensor-train decomposition", eq. 1.2; of kernels Garipov et al. 2016, "Ultimate tensorization",
    section 4, with an axis for each core.
    """

    cores: tuple[Any, ...]
    shape: tuple[int, ...]

    node = 8
    several = (2, 5)

    @property
    def labels(self) -> tuple[str, ...]:
        return chain_labels(channels_first(self.axes))

    @property
    def axes(self) -> tuple[str, ...]:
        return kernel_axes(len(self.cores))
