"""Whole slices: channels along any axis, filters."""

import dataclasses

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.pruning.structures.base import Blockwise, Shape, Structure
from lepton_jax.pruning.units import slice_block


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Channels(Blockwise):
    """Every slice along an axis is a unit; its score is the mean of its weights' scores.

    Under `Magnitude` that is the order of the L1 norms. A sparsity counts slices. The weights are masked; for cutting them,
    with all that depends on them, see `lepton_jax.pruning.channels`.

    Args:
      axis: -1 is the outputs of a Flax kernel, -2 its inputs. Of several axes, every combination of their indices is a slice:
        (-2, -1) are the two-dimensional kernels of a convolution.

    Raises:
      ValueError: for no axes; by `check`, for a leaf that lacks an axis or has it twice.

    Example:
      >>> import jax.numpy as jnp
      >>> Channels(axis=0).expand(jnp.array([[True], [False]]), (2, 2)).tolist()
      [[True, True], [False, False]]

    Source: Li et al. 2017, "Pruning filters for efficient convnets", section 3.1.
    """

    axis: int | tuple[int, ...]

    def __post_init__(self) -> None:
        if self.axis == ():
            raise ValueError("Channels: axis must name one axis or more; got ().")

    def block(self, shape: Shape) -> Shape:
        return slice_block(self.axis, shape)


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters(Blockwise):
    """Every output channel of a kernel is a unit: the slices along the last axis, where Flax has the outputs.

    Where the selector knows the outputs, it is they that are sliced; see `lepton_jax.graph.weights`.

    Raises:
      ValueError: by `check`, for a leaf of fewer than two axes, which has no filters.

    Example:
      >>> import jax.numpy as jnp
      >>> Filters().reduce(jnp.array([[1.0, 5.0], [3.0, 7.0]])).tolist()
      [[2.0, 6.0]]

    Source: Li et al. 2017, "Pruning filters for efficient convnets", section 3.1.
    """

    def at(self, axes: WeightAxes | None) -> Structure:
        return self if axes is None else Channels(axis=axes.channels)

    def block(self, shape: Shape) -> Shape:
        check_whole("the number of axes", len(shape), 2)
        return slice_block(-1, shape)
