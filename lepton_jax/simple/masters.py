"""Training a model in the form it has: packed leaves by trainable arrays of their own, pruned weights at zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax import paths
from lepton_jax.packed import CodebookArray, Sparse, is_coded, unpack
from lepton_jax.quantization import quantize
from lepton_jax.quantization.numerics import QArray
from lepton_jax.straight_through import straight_through
from lepton_jax.transform import Transform, hold
from lepton_jax.typing import Array, Path, PyTree


def trained_in_place(params: PyTree, pruned: Collection[Path]) -> Transform:
    """Make the transform that trains a tree of dense and packed leaves and gives back one of the same form.

    A dense leaf is its own master, as is a factor of a low-rank leaf; a quantized leaf's master is its dense array, seen
    through the rounding, whose gradient goes straight through; of a codebook the entries are trained, of a sparse leaf the
    values. Pruned leaves show zeros where they have zeros now, and get no gradient there.

    Args:
      params: leaves may be packed.
      pruned: paths whose zeros are to stay.

    Returns:
      a transform whose `init` takes `params`; its parameters are ``{path: array}``.

    Raises:
      ValueError: if no leaf is floating.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> params = {"w": quantize(jnp.array([1.0, -0.5, 0.0]), Uniform(bits=2))}
      >>> transform = trained_in_place(params, ())
      >>> masters, state = transform.init(params)
      >>> transform.pack({"w": 2 * masters["w"]}, state)["w"].unpack().tolist()
      [2.0, 0.0, 0.0]
    """
    if not any(paths.is_floating(leaf) for leaf in paths.flatten(params, is_coded).values()):
        raise ValueError("distill_model: the student has no floating leaf to train.")

    def init(params: PyTree) -> tuple[dict[Path, Array], tuple[PyTree, dict[Path, Array]]]:
        leaves = {p: leaf for p, leaf in paths.flatten(params, is_coded).items() if paths.is_floating(leaf)}
        masks = {p: unpack(leaf) != 0 for p, leaf in leaves.items() if p in pruned and not _keeps_zeros(leaf)}
        return {p: _master(leaf) for p, leaf in leaves.items()}, (params, masks)

    def shown(masters: dict[Path, Array], state: tuple[PyTree, dict[Path, Array]]) -> dict[Path, Array]:
        masks = state[1]
        return {p: jnp.where(masks[p], w, jnp.zeros((), w.dtype)) if p in masks else w for p, w in masters.items()}

    def view(masters: dict[Path, Array], state: tuple[PyTree, dict[Path, Array]]) -> PyTree:
        leaves = paths.flatten(state[0], is_coded)
        seen = {p: _seen(leaves[p], w) for p, w in shown(masters, state).items()}
        return unpack(paths.replace(state[0], seen, is_coded))

    def pack(masters: dict[Path, Array], state: tuple[PyTree, dict[Path, Array]]) -> PyTree:
        leaves = paths.flatten(state[0], is_coded)
        return paths.replace(state[0], {p: _packed(leaves[p], w) for p, w in shown(masters, state).items()}, is_coded)

    return Transform(init, view, hold, pack)


def _keeps_zeros(leaf: Any) -> bool:
    return isinstance(leaf, (CodebookArray, Sparse))


def _master(leaf: Any) -> Array:
    if isinstance(leaf, CodebookArray):
        return leaf.codebook
    if isinstance(leaf, Sparse):
        return leaf.values
    return leaf.unpack() if is_coded(leaf) else jnp.asarray(leaf)


def _packed(leaf: Any, master: Array) -> Any:
    if isinstance(leaf, CodebookArray):
        return dataclasses.replace(leaf, codebook=master)
    if isinstance(leaf, Sparse):
        return dataclasses.replace(leaf, values=master)
    return quantize(master, leaf.format) if isinstance(leaf, QArray) else master


def _seen(leaf: Any, master: Array) -> Array:
    if isinstance(leaf, QArray):
        return straight_through(master, jax.lax.stop_gradient(quantize(master, leaf.format).unpack()))
    return unpack(_packed(leaf, master))
