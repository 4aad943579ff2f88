"""A table's layers as its choices pack them, each made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from lepton_jax.artifact import TensorSizes
from lepton_jax.core import paths
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.tuning.layer import Layer, Made, made_of
from lepton_jax.tuning.options import Choice

_ROOM = 256_000_000
"""Bytes that all choices of all layers may take to be kept while a table is made."""


class Packing:
    """Packs variables by one recipe after another; a layer's choice that is met again is neither packed nor coded again.

    Args:
      layers: by path.
      variables: of the model, as arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.core.weight_axes import WeightAxes
      >>> layers = {"w": Layer(shape=(2, 1), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=2.0)}
      >>> packing = Packing(layers, {"w": jnp.array([[1.0], [-1.5]])})
      >>> packing.packed({"w": Choice(bits=2)})["w"].qvalue.tolist(), packing.view("w", Choice(bits=2)).tolist()
      ([[1], [-2]], [[1.0], [-2.0]])
    """

    def __init__(self, layers: Mapping[Path, Layer], variables: PyTree) -> None:
        self._layers, self._variables = layers, variables
        self._leaves = paths.flatten(variables)
        self._made: dict[tuple[Path, Choice], Made] = {}
        self._room = _ROOM
        self._sizes = TensorSizes()

    def packed(self, choices: Mapping[Path, Choice]) -> PyTree:
        """Return the variables as settled choices pack them."""
        return paths.replace(self._variables, {path: self.of(path, choice).packed for path, choice in choices.items()})

    def view(self, path: Path, choice: Choice) -> Array:
        """Return a layer as the model sees it under a settled choice."""
        return self.of(path, choice).view

    def seen(self, choices: Mapping[Path, Choice]) -> PyTree:
        """Return the variables as the model sees them under settled choices."""
        return paths.replace(self._variables, {path: self.view(path, choice) for path, choice in choices.items()})

    def bytes(self, choices: Mapping[Path, Choice]) -> int:
        """Return what all tensors take in a file."""
        return self._sizes(self.packed(choices))

    def of(self, path: Path, choice: Choice) -> Made:
        """Return what a settled choice makes of a layer."""
        if (path, choice) not in self._made:
            [self._made[path, choice]] = made_of(self._leaves[path], self._layers[path].axes, (choice,))
        return self._made[path, choice]

    def all_of(self, path: Path, choices: Sequence[Choice]) -> list[Made]:
        """Return what every settled choice makes of a layer; kept while there is room."""
        found = made_of(self._leaves[path], self._layers[path].axes, tuple(choices))
        self._room -= sum(leaf.nbytes for leaf in jax.tree.leaves(found))
        if self._room >= 0:
            self._made |= {(path, choice): made for choice, made in zip(choices, found)}
        return found
