"""Leaves as the weights that are stacked in them, each of which is pruned by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.typing import Array, Path, Select
from lepton_jax.core.weight_axes import StackedShape, WeightAxes, axes_of


class Stacks:
    """The weights of some leaves: one each, or, where the selector knows that a leaf stacks several, all of these.

    Args:
      select: which leaves; of `lepton_jax.graph.weights`, with their axes.
      weights: arrays or shapes, by path.

    Example:
      >>> stacks = Stacks("*", {"w": jnp.ones((3, 2))})
      >>> stacks.shapes, [part.shape for part in stacks.split("w", jnp.ones((3, 2)))]
      ({'w': (3, 2)}, [(3, 2)])
    """

    def __init__(self, select: Select, weights: Mapping[Path, Any]) -> None:
        self.axes = {path: axes_of(select, path, weight.shape) for path, weight in weights.items()}
        self.shapes: dict[Path, StackedShape] = {}
        for path, weight in weights.items():
            axes = self.axes[path]
            self.shapes[path] = StackedShape(weight.shape) if axes is None else axes.shape_of_one(weight.shape)

    def of_one(self, path: Path) -> WeightAxes | None:
        """The axes of one of a leaf's weights, if they are known."""
        axes = self.axes[path]
        return None if axes is None else axes.of_one

    def split(self, path: Path, leaf: Array) -> list[Array]:
        """Return the weights that are stacked in a leaf, or in an array of its shape."""
        axes = self.axes[path]
        if axes is None or not axes.stacked:
            return [leaf]
        first = jnp.moveaxis(leaf, axes.stacked, range(len(axes.stacked)))
        return list(first.reshape(-1, *self.shapes[path]))

    def join(self, path: Path, parts: Sequence[Array], shape: Sequence[int]) -> Array:
        """Undo `split`, for a leaf of a shape."""
        axes = self.axes[path]
        if axes is None or not axes.stacked:
            return parts[0]
        stack = [shape[axis] for axis in axes.stacked]
        return jnp.moveaxis(jnp.stack(parts).reshape(*stack, *self.shapes[path]), range(len(stack)), axes.stacked)

    def parts(self, leaves: Mapping[Path, Array]) -> dict[tuple[Path, int], Array]:
        """Return the weights of several leaves, by path and place in the stack."""
        return {(path, place): one for path, leaf in leaves.items() for place, one in enumerate(self.split(path, leaf))}

    def whole(self, parts: Mapping[tuple[Path, int], Array], leaves: Mapping[Path, Any]) -> dict[Path, Array]:
        """Undo `parts`, for leaves of these shapes."""
        each: dict[Path, list[Array]] = {path: [] for path in leaves}
        for path, place in sorted(parts):
            each[path].append(parts[path, place])
        return {path: self.join(path, each[path], leaf.shape) for path, leaf in leaves.items()}

    def alone(self, path: Path) -> tuple[int, ...] | None:
        """The axes of one of a leaf's weights within the leaf; None if it is one weight."""
        axes = self.axes[path]
        return None if axes is None or not axes.stacked else tuple(a for a in range(axes.ndim) if a not in axes.stacked)


def count(shape: Sequence[int]) -> int:
    """Return how many numbers a leaf has, of whose weights this is the shape of one.

    Example:
      >>> count((3, 2)), count(StackedShape((3, 2), times=4))
      (6, 24)
    """
    return math.prod(shape) * getattr(shape, "times", 1)


__all__ = ["Stacks", "count"]
