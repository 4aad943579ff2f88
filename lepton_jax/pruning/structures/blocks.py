"""Rectangular blocks."""

import dataclasses

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.pruning.structures.base import Blockwise, Shape
from lepton_jax.pruning.units import full_block


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks(Blockwise):
    """Every block of weights is a unit; its score is the mean of its weights' scores.

    A sparsity counts blocks: of B, ``B - round(sparsity * B)`` are kept. See `lepton_jax.pruning.masks.block`.

    Args:
      shape: sizes along the last axes of a leaf; along leading axes that it does not name every index has blocks of its own. It
        need not divide the leaf: the blocks at the end of an axis are then smaller.

    Raises:
      ValueError: for no sizes or one below 1; by `check`, for a leaf of fewer axes than a block.

    Example:
      >>> import jax.numpy as jnp
      >>> Blocks(shape=(1, 2)).reduce(jnp.array([[1.0, 3.0, 7.0]])).tolist()
      [[2.0, 7.0]]

    Source: Narang et al. 2017, "Block-sparse recurrent neural networks", with the mean in place of the maximum.
    """

    shape: Shape

    def __post_init__(self) -> None:
        if not self.shape:
            raise ValueError("Blocks: shape must have a size for one axis or more; got (). For single weights: Unstructured().")
        for size in self.shape:
            check_whole("Blocks: each size of shape", size, 1)

    def block(self, shape: Shape) -> Shape:
        return full_block(self.shape, shape)
