"""What the axes of a weight are: which of them are summed over, which come out, which only stack weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jax.core.typing import Path, Select


@dataclass(frozen=True, kw_only=True)
class WeightAxes:
    """The axes of a weight, counted from the front; each is in one of the tuples.

    Args:
      stacked: along which there is another weight at every index: layers of a scan, experts, members of a vmap.
      groups: along which every index has inputs and outputs of its own: the channels of a depthwise convolution.
      inputs: over which a product sums.
      outputs: which are the product's own.
      spatial: of a convolution's window; summed over, too.
      grouped: whether the outputs fall into groups, each with inputs of its own (a grouped convolution).

    Example:
      >>> kernel = WeightAxes(spatial=(0, 1), inputs=(2,), outputs=(3,))
      >>> kernel.summed, kernel.ndim, kernel.shape_of_one((3, 3, 16, 32))
      ((0, 1, 2), 4, (3, 3, 16, 32))
    """

    stacked: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    spatial: tuple[int, ...] = ()
    grouped: bool = False

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len((*self.stacked, *self.groups, *self.inputs, *self.outputs, *self.spatial))

    @property
    def summed(self) -> tuple[int, ...]:
        """The axes over which a product sums, in their order."""
        return tuple(sorted((*self.inputs, *self.spatial)))

    @property
    def channels(self) -> tuple[int, ...]:
        """The axes of everything that has outputs of its own: output channels, groups, stacked weights."""
        return tuple(sorted((*self.stacked, *self.groups, *self.outputs)))

    @property
    def leading(self) -> int | None:
        """How many leading axes are stacked; None if stacked axes stand elsewhere."""
        return len(self.stacked) if self.stacked == tuple(range(len(self.stacked))) else None

    @property
    def outputs_first(self) -> bool:
        """Whether the outputs stand before what is summed, as in (out, in)."""
        return bool(self.outputs and self.summed) and self.outputs[0] < self.summed[0]

    @property
    def of_factors(self) -> "WeightAxes | None":
        """The axes of both thin factors of the weight as a matrix; None if stacked axes are not first."""
        if self.leading is None:
            return None
        first, second = (self.leading,), (self.leading + 1,)
        inputs, outputs = (second, first) if self.outputs_first else (first, second)
        return WeightAxes(stacked=self.stacked, inputs=inputs, outputs=outputs)

    @property
    def of_one(self) -> "WeightAxes":
        """The axes of one of the stacked weights."""
        places = {axis: place for place, axis in enumerate(a for a in range(self.ndim) if a not in self.stacked)}
        names = ("groups", "inputs", "outputs", "spatial")
        moved: dict[str, Any] = {name: tuple(places[axis] for axis in getattr(self, name)) for name in names}
        return WeightAxes(**moved, grouped=self.grouped)

    def shape_of_one(self, shape: Sequence[int]) -> "StackedShape":
        """Return the shape of one of the stacked weights, and how often it is there."""
        rest = [size for axis, size in enumerate(shape) if axis not in self.stacked]
        return StackedShape(rest, math.prod(shape[axis] for axis in self.stacked))

    def __str__(self) -> str:
        names = ("stacked", "groups", "inputs", "outputs", "spatial")
        found = [f"{name} {', '.join(map(str, getattr(self, name)))}" for name in names if getattr(self, name)]
        return "; ".join(found) + (" (grouped)" if self.grouped else "")


class StackedShape(tuple[int, ...]):
    """The shape of one of several weights that are stacked in a leaf, and how many they are.

    Example:
      >>> shape = StackedShape((4, 3), times=12)
      >>> shape, shape.times
      ((4, 3), 12)
    """

    times: int

    def __new__(cls, shape: Sequence[int], times: int = 1) -> "StackedShape":
        new = super().__new__(cls, shape)
        new.times = times
        return new


def axes_of(select: Select, path: Path, shape: Sequence[int]) -> WeightAxes | None:
    """Return the axes of a leaf, if the selector knows them: `lepton_jax.graph.weights` does, patterns don't.

    Args:
      select: which leaves, see `lepton_jax.core.paths`.
      path: of the leaf.
      shape: the leaf's; axes of another number are not its own.

    Example:
      >>> axes_of("*/kernel", "Dense_0/kernel", (3, 2)) is None
      True
    """
    known: Any = getattr(select, "axes", None)
    axes = known(path) if callable(known) else None
    return axes if axes is not None and axes.ndim == len(shape) else None


__all__ = ["StackedShape", "WeightAxes", "axes_of"]
