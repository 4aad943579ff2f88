"""Masks over a tree: which a state holds, and whether they fit."""

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.pruning.masking import Masks


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
        for path, mask in state.masks.items():
            found[path] = found[path] & mask if path in found else mask
    return found


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


def sparsity_of(masks: Masks) -> Array:
    """Return the fraction of weights that the masks hide, of all that they cover.

    Example:
      >>> sparsity_of({"a": jnp.array([True, False]), "b": jnp.array([False, False])})
      Array(0.75, dtype=float32)
    """
    total = sum(mask.size for mask in masks.values())
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
