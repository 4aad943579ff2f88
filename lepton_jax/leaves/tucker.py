"""A kernel by a smaller one between fewer channels."""

from __future__ import annotations

from typing import Any

from lepton_jax.core.packed import register_packed
from lepton_jax.leaves.factors import SPACE, Factors, kernel_axes


@register_packed("first", "core", "last")
class Tucker(Factors):
    """A kernel by a smaller one between fewer channels: ``W[.., c, n] = sum_{a, b} first[c, a] core[.., a, b] last[b, n]``.

    Args:
      first: shape (..., in, a).
      core: shape (..., *space, a, b).
      last: shape (..., b, out).
      shape: the dense leaf's: (..., *space, in, out).

    Example:
      >>> import jax.numpy as jnp
      >>> Tucker(jnp.ones((4, 2)), jnp.ones((3, 3, 2, 1)), jnp.ones((1, 5)), (3, 3, 4, 5)).unpack().shape
      (3, 3, 4, 5)

    Source: Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power mobile
    applications", eq. 3.
    """

    first: Any
    core: Any
    last: Any
    shape: tuple[int, ...]

    node = 6

    @property
    def labels(self) -> tuple[str, ...]:
        return ("ca", f"{SPACE[: self._space]}ab", "bn")

    @property
    def axes(self) -> tuple[str, ...]:
        return kernel_axes(self._space + 2)

    @property
    def _space(self) -> int:
        return len(self.core.shape) - len(self.first.shape)

    def check(self, shape: tuple[int, ...]) -> None:
        # The rank of a kernel follows from its parts' axes; there are letters for three in space.
        if not 0 <= self._space <= len(SPACE):
            raise ValueError(f"parts of shapes {self.first.shape}, {self.core.shape} make no Tucker of shape {shape}")
        super().check(shape)
