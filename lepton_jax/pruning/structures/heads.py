"""Attention heads."""

import dataclasses

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.pruning.structures.base import Blockwise, Shape
from lepton_jax.pruning.units import normal_axis, slice_block


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads(Blockwise):
    """Every attention head's slice of a kernel is a unit; its score is the mean of its weights' scores.

    Each leaf chooses for itself, so that query and output kernels of one layer may lose different heads. For whole heads, cut
    from all kernels at once, see `lepton_jax.pruning.channels`.

    Args:
      axis: where the heads lie. Flax attention has them on an axis of their own: -2 of query, key and value kernels
        (features, heads, head_dim), -3 of the output kernel (heads, head_dim, features).
      width: consecutive entries along the axis that make a head: 1 where the heads have their own axis, head_dim for a kernel
        (features, heads * head_dim).

    Raises:
      ValueError: for a width below 1; by `check`, for a leaf that lacks the axis, or an axis that the width does not divide.

    Example:
      >>> import jax.numpy as jnp
      >>> Heads(axis=-1, width=2).reduce(jnp.array([[1.0, 3.0, 5.0, 7.0]])).tolist()
      [[2.0, 6.0]]

    Source: Michel et al. 2019, "Are sixteen heads really better than one?", for heads as the unit.
    """

    axis: int
    width: int = 1

    def __post_init__(self) -> None:
        check_whole("Heads: width", self.width, 1)

    def block(self, shape: Shape) -> Shape:
        size = shape[normal_axis(self.axis, shape)]
        if size % self.width:
            raise ValueError(
                f"heads of width {self.width} must divide axis {self.axis}; shape {shape} has {size} entries there."
            )
        return slice_block(self.axis, shape, self.width)
