"""How a mask hides weights: in a leaf, in a tree, and where it lies."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jax.experimental.shard_alike import shard_alike

from lepton_jax.core import paths
from lepton_jax.core.packed import is_coded
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.transform import Transform, hold
from lepton_jax.core.transform.base import Init, Update
from lepton_jax.core.typing import Array, Path, PyTree, Step

Masks = Mapping[Path, Array]
"""By path; boolean, True where the weight is kept, of the weight's shape."""
Gradient = Literal["masked", "straight_through"]
"""What a hidden weight gets: nothing, or the gradient of the zero that stands for it."""


def apply_mask(leaf: Any, mask: Array) -> Any:
    """Return an array or coded leaf with exact zeros where `mask` is False, whatever was there (NaN too).

    Example:
      >>> apply_mask(jnp.array([1.0, jnp.nan]), jnp.array([True, False])).tolist()
      [1.0, 0.0]
    """
    return leaf.masked(mask) if is_coded(leaf) else jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def masked(tree: PyTree, masks: Masks) -> PyTree:
    """Return `tree` with exact zeros where a mask is False; arrays or coded leaves. Paths that the tree lacks are passed over.

    Example:
      >>> masked({"a": jnp.array([1.0, jnp.nan]), "b": 1.0}, {"a": jnp.array([True, False])})
      {'a': Array([1., 0.], dtype=float32), 'b': 1.0}
    """
    leaves = paths.flatten(tree, is_coded)
    return paths.replace(tree, {p: apply_mask(leaves[p], m) for p, m in masks.items() if p in leaves}, is_coded)


def masked_straight_through(tree: PyTree, masks: Masks) -> PyTree:
    """Return what `masked` returns; a hidden weight gets the gradient of the zero that stands for it.

    Example:
      >>> import jax
      >>> show = lambda w: masked_straight_through({"a": w}, {"a": jnp.array([True, False])})["a"]
      >>> jax.grad(lambda w: jnp.sum((show(w) - 1.0) ** 2))(jnp.array([3.0, 7.0])).tolist()
      [4.0, -2.0]
    """
    leaves = paths.flatten(tree)
    seen = {p: straight_through(leaves[p], apply_mask(leaves[p], m)) for p, m in masks.items() if p in leaves}
    return paths.replace(tree, seen)


def through_masks(
    init: Init, update: Update | None = None, *, gradient: Gradient = "masked", lives_on: bool = False
) -> Transform:
    """Return the transform whose state has ``masks``, and whose view hides what they do not keep.

    Args:
      init: of the transform.
      update: of the transform; None: as once it is frozen.
      gradient: "straight_through": what is hidden gets the gradient of the zero that stands for it.
      lives_on: whether masters of hidden weights live on once the masks are frozen; else they are kept at zero.

    Example:
      >>> from lepton_jax.pruning.sparse_training import FixedMasksState
      >>> transform = through_masks(lambda params: (params, FixedMasksState({"w": jnp.array([True, False])})))
      >>> params, state = transform.init({"w": jnp.array([1.0, 2.0])})
      >>> transform.view(params, state)["w"].tolist(), transform.update(params, state, params, 0)[0]["w"].tolist()
      ([1.0, 0.0], [1.0, 0.0])
    """
    shown = masked if gradient == "masked" else masked_straight_through

    def view(params: PyTree, state: Any) -> PyTree:
        return shown(params, state.masks)

    def pack(params: PyTree, state: Any) -> PyTree:
        return masked(params, state.masks)

    def keep_zero(params: PyTree, state: Any, grads: PyTree, step: Step) -> tuple[PyTree, Any]:
        del grads, step
        return masked(params, state.masks), state

    frozen = hold if lives_on else keep_zero
    return Transform(init, view, update or frozen, pack, frozen_update=frozen)


def laid_out_as(mask: Array, weight: Array) -> Array:
    """Return `mask`, spread over the devices as `weight` is, where nothing that it was made from says so.

    Example:
      >>> laid_out_as(jnp.array([True, False]), jnp.ones(2)).tolist()
      [True, False]
    """
    return shard_alike(mask, weight)[0]
