"""How masks hide weights: in a leaf, in a tree, in a transform; which masks a state holds, and whether they fit."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.packed import is_coded
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.transform import Transform, hold
from lepton_jax.core.transform.base import Init, Update
from lepton_jax.core.typing import Array, Path, PyTree, Select, Step
from lepton_jax.pruning.words import as_float, is_wide, true_count

try:
    from jax.experimental.shard_alike import shard_alike
except ImportError:  # jax 0.11 has none, and the compiler chooses
    shard_alike = None  # type: ignore[assignment]
from lepton_jax.pruning.bit_masks import from_bits

Masks = Mapping[Path, Array]
"""By path; boolean, True where the weight is kept, of the weight's shape."""
Gradient = Literal["masked", "straight_through"]
"""What a hidden weight gets: nothing, or the gradient of the zero that stands for it."""


@checked
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
    return mask if shard_alike is None else shard_alike(mask, weight)[0]


@checked
def masks_of(tstate: Any) -> dict[Path, Array]:
    """Gather the masks that a transform's state holds, however transforms are nested and chained.

    A state holds masks if it is a NamedTuple with a field ``masks``, a dict by path. Where several mask the same leaf, a weight
    is kept only if all of them keep it.

    Args:
      tstate: the state of any transform.

    Returns:
      ``{path: boolean mask}``; empty for a state without masks.

    Example:
      >>> from lepton_jax import chain, fake_quant, prune
      >>> params, tstate = chain(prune(0.5), fake_quant(bits=4)).init({"kernel": jnp.array([[1.0, 2.0]])})
      >>> masks_of(tstate)["kernel"].tolist()
      [[False, True]]
    """

    def holds_masks(node: Any) -> bool:
        return "masks" in getattr(node, "_fields", ())

    found: dict[Path, Array] = {}
    for state in filter(holds_masks, jax.tree.leaves(tstate, is_leaf=holds_masks)):
        for path, mask in from_bits(state.masks).items():
            found[path] = found[path] & mask if path in found else mask
    return found


@checked
def nonzero_masks(seen: PyTree, select: Select = paths.matrices) -> dict[Path, Array]:
    """Return the masks of what is not zero: what a trained view shows, handed to a later phase as `fixed_masks`.

    Args:
      seen: parameters as a transform shows them.
      select: which leaves.

    Example:
      >>> nonzero_masks({"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.zeros(2)})
      {'kernel': Array([[False,  True]], dtype=bool)}
    """
    return {path: leaf != 0 for path, leaf in paths.select(seen, select).items()}


@checked
def sparsity_of(masks: Masks) -> Array:
    """Return the fraction of weights that the masks hide, of all that they cover.

    Example:
      >>> sparsity_of({"a": jnp.array([True, False]), "b": jnp.array([False, False])})
      Array(0.75, dtype=float32)
    """
    total = sum(mask.size for mask in masks.values())
    if is_wide(total):
        kept = sum((as_float(true_count(mask)) for mask in masks.values()), jnp.float32(0))
    else:
        kept = sum((jnp.sum(mask, dtype=jnp.int32) for mask in masks.values()), jnp.int32(0))
    return 1 - kept / jnp.float32(total)


def check_masks(heading: str, masks: Masks, params: PyTree) -> None:
    """Raise unless every mask is boolean and has the path and shape of a floating leaf.

    Example:
      >>> check_masks("fixed_masks", {"a": jnp.array([True])}, {"b": jnp.ones(1)})
      Traceback (most recent call last):
      ...
      ValueError: fixed_masks: masks must fit the parameters:
        a: no such floating leaf; there are: b
    """
    leaves = {path: leaf for path, leaf in paths.flatten(params).items() if paths.is_floating(leaf)}
    with collect(f"{heading}: masks must fit the parameters") as problems:
        if not masks:
            problems.append("no masks were given; for no masks at all, use identity()")
        for path, mask in masks.items():
            if path not in leaves:
                problems.append(f"{path}: no such floating leaf; there are: {', '.join(leaves) or 'none'}")
            elif mask.dtype != jnp.bool_:
                problems.append(f"{path}: a mask must be boolean, True where the weight is kept; got {mask.dtype}")
            elif mask.shape != leaves[path].shape:
                problems.append(f"{path}: the mask's shape is {mask.shape}, the weight's {leaves[path].shape}")


def take_slopes(heading: str, wanted: Masks, params: PyTree, grads: PyTree) -> tuple[dict[Path, Array], dict[Path, Array]]:
    """Return the masked leaves of the parameters and of the gradients, by path; raise with all that are missing.

    Example:
      >>> take_slopes("rigl", {"a": jnp.array([True])}, {"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0})
      ({'a': 1.0}, {'a': 3.0})
    """
    leaves, slopes = paths.flatten(params), paths.flatten(grads)
    with collect(f"{heading}: update takes the parameters that it was initialised with, and their gradients") as problems:
        for path in wanted:
            if path not in leaves:
                problems.append(f"{path}: a later transform put its own parameters in its place; train in a phase of its own")
            elif path not in slopes:
                problems.append(f"{path}: no gradient given")
    return {path: leaves[path] for path in wanted}, {path: slopes[path] for path in wanted}
