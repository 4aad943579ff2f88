"""A table's layers as its choices pack them, each made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.artifact import TensorSizes
from lepton_jax.core import paths
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.channels import Plan
from lepton_jax.tuning.groups import places
from lepton_jax.tuning.layer import Layer, Made, made_of
from lepton_jax.tuning.options import Choice

_ROOM = 256_000_000
"""Bytes that all choices of all layers may take to be kept while a table is made."""
_Kept = tuple[np.ndarray, ...]
"""The indices that stay, axis by axis; () for all."""


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
        self._made: dict[tuple[Path, Choice, bytes], Made] = {}
        self._cuts: dict[tuple[Path, bytes], Array] = {}
        self._room = _ROOM
        self._sizes = TensorSizes()

    def packed(self, choices: Mapping[Path, Choice], channels: Plan | None = None) -> PyTree:
        """Return the variables as settled choices pack what a plan leaves of them."""
        kept = places(channels)
        found: dict[Path, Any] = {path: self._cut(path, held) for path, held in kept.items()}
        found |= {path: self.of(path, choice, kept.get(path, ())).packed for path, choice in choices.items()}
        return paths.replace(self._variables, found)

    def view(self, path: Path, choice: Choice) -> Array:
        """Return a layer as the model sees it under a settled choice."""
        return self.of(path, choice).view

    def seen(self, choices: Mapping[Path, Choice], channels: Plan | None = None) -> PyTree:
        """Return the variables as the model sees them, in their own shapes: what a plan removes is zero."""
        kept = places(channels)
        found = {path: self._cut(path, held) for path, held in kept.items()}
        found |= {path: self.of(path, choice, kept.get(path, ())).view for path, choice in choices.items()}
        return paths.replace(self._variables, {p: self._spread(p, x, kept[p]) if p in kept else x for p, x in found.items()})

    def bytes(self, choices: Mapping[Path, Choice], channels: Plan | None = None) -> int:
        """Return what all tensors take in a file."""
        return self._sizes(self.packed(choices, channels))

    def of(self, path: Path, choice: Choice, kept: _Kept = ()) -> Made:
        """Return what a settled choice makes of a layer, or of what is left of it."""
        key = (path, choice, _name(kept))
        if key not in self._made:
            [self._made[key]] = made_of(self._cut(path, kept), self._layers[path].axes, (choice,))
        return self._made[key]

    def all_of(self, path: Path, choices: Sequence[Choice]) -> list[Made]:
        """Return what every settled choice makes of a layer; kept while there is room."""
        found = made_of(self._leaves[path], self._layers[path].axes, tuple(choices))
        self._room -= sum(leaf.nbytes for leaf in jax.tree.leaves(found))
        if self._room >= 0:
            self._made |= {(path, choice, b""): made for choice, made in zip(choices, found)}
        return found

    def _cut(self, path: Path, kept: _Kept) -> Array:
        """What is left of a leaf, the same object each time; by numpy, which compiles nothing."""
        if not kept:
            return self._leaves[path]
        key = (path, _name(kept))
        if key not in self._cuts:
            self._cuts[key] = jnp.asarray(np.asarray(self._leaves[path])[np.ix_(*kept)])
        return self._cuts[key]

    def _spread(self, path: Path, left: Array, kept: _Kept) -> Array:
        whole = np.zeros(self._leaves[path].shape, np.asarray(left).dtype)
        whole[np.ix_(*kept)] = left
        return jnp.asarray(whole)


def _name(kept: _Kept) -> bytes:
    return b"|".join(held.tobytes() for held in kept)
