"""Training a model in the form it has: packed leaves by trainable arrays of their own, pruned weights at zero."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.packed import is_coded, unpack
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.transform import Transform, hold
from lepton_jax.core.typing import Array, Path, PyTree


class _State(NamedTuple):
    tree: PyTree
    masks: dict[Path, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masters:
    """The trainable arrays of a tree of dense and packed leaves, which gives back a tree of the same form.

    A dense leaf is its own master, as is a factor of a low-rank leaf; a quantized leaf's master is its dense array, seen
    through the rounding, whose gradient goes straight through; of a codebook the entries are trained, of a sparse leaf the
    values. Pruned leaves show zeros where they have zeros now, and get no gradient there.

    Args:
      pruned: paths whose zeros are to stay.

    Example:
      >>> from lepton_jax.quantization import Uniform, quantize
      >>> params = {"w": quantize(jnp.array([1.0, -1.5, 0.0]), Uniform(bits=2))}
      >>> masters, state = Masters(pruned=frozenset()).init(params)
      >>> Masters(pruned=frozenset()).pack({"w": 2 * masters["w"]}, state)["w"].unpack().tolist()
      [2.0, -4.0, 0.0]
    """

    pruned: frozenset[Path]

    @property
    def transform(self) -> Transform:
        """The transform to train under; its parameters are ``{path: array}``."""
        return Transform(self.init, self.view, hold, self.pack)

    def init(self, params: PyTree) -> tuple[dict[Path, Array], _State]:
        """Return the masters, and the tree with the masks of its pruned leaves.

        Raises:
          ValueError: if no leaf is floating.
        """
        leaves = {p: leaf for p, leaf in paths.flatten(params, is_coded).items() if paths.is_floating(leaf)}
        if not leaves:
            raise ValueError("distill_model: the student has no floating leaf to train.")
        masks = {p: unpack(leaf) != 0 for p, leaf in leaves.items() if p in self.pruned and not _keeps_zeros(leaf)}
        return {p: _master(leaf) for p, leaf in leaves.items()}, _State(params, masks)

    def view(self, masters: dict[Path, Array], state: _State) -> PyTree:
        """Return the dense tree, as the model sees it."""
        leaves = paths.flatten(state.tree, is_coded)
        seen = {p: _seen(leaves[p], w) for p, w in _shown(masters, state).items()}
        return unpack(paths.replace(state.tree, seen, is_coded))

    def pack(self, masters: dict[Path, Array], state: _State) -> PyTree:
        """Return the tree in the form it had."""
        leaves = paths.flatten(state.tree, is_coded)
        return paths.replace(state.tree, {p: _packed(leaves[p], w) for p, w in _shown(masters, state).items()}, is_coded)


def _shown(masters: dict[Path, Array], state: _State) -> dict[Path, Array]:
    masks = state.masks
    return {p: jnp.where(masks[p], w, jnp.zeros((), w.dtype)) if p in masks else w for p, w in masters.items()}


def _keeps_zeros(leaf: Any) -> bool:
    return is_coded(leaf) and leaf.keeps_zeros


def _master(leaf: Any) -> Array:
    return leaf.trained() if is_coded(leaf) else jnp.asarray(leaf)


def _packed(leaf: Any, master: Array) -> Any:
    return leaf.retrained(master) if is_coded(leaf) else master


def _seen(leaf: Any, master: Array) -> Array:
    seen = unpack(_packed(leaf, master))
    exact = not is_coded(leaf) or leaf.keeps_zeros  # what is shown is a function of the master that has a derivative
    return seen if exact else straight_through(master, jax.lax.stop_gradient(seen))
