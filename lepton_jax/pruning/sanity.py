"""Sanity ablations: is it the mask's positions, the weights' values, or only the sparsity of each layer?

A method that finds good masks before training should do worse after each of these (and by the `Inverted` criterion).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path, PyTree

Initializer = Callable[[Array, tuple[int, ...], Any], Array]
"""``(key, shape, dtype) -> array``, as in `jax.nn.initializers`."""


def shuffle_masks(key: Array, masks: Mapping[Path, Array]) -> dict[Path, Array]:
    """Permute every leaf's mask at random: its sparsity stays, its positions do not.

    Args:
      key: a typed random key.
      masks: by path; boolean.

    Returns:
      masks of the same shapes and counts.

    Example:
      >>> shuffled = shuffle_masks(jax.random.key(0), {"w": jnp.arange(6).reshape(2, 3) < 2})
      >>> shuffled["w"].shape, int(shuffled["w"].sum())
      ((2, 3), 2)

    Source: Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the mark?", section 5.
    """
    keys = jax.random.split(key, max(len(masks), 1))
    return {
        path: jax.random.permutation(one, mask.reshape(-1)).reshape(mask.shape)
        for one, (path, mask) in zip(keys, sorted(masks.items()))
    }


def reinitialize(key: Array, params: PyTree, masks: Mapping[Path, Array], init: Initializer) -> PyTree:
    """Draw the masked leaves' weights anew, under the same masks; other leaves stay.

    Args:
      key: a typed random key.
      params: the parameters that the masks were found for.
      masks: by path.
      init: draws a weight, as in `jax.nn.initializers`; give the one the model was initialised with.

    Returns:
      a tree like `params`, zero where a mask is False.

    Raises:
      ValueError: for masks of leaves that are not there.

    Example:
      >>> params, masks = {"w": jnp.zeros((1, 2)), "b": jnp.ones(2)}, {"w": jnp.array([[True, False]])}
      >>> drawn = reinitialize(jax.random.key(0), params, masks, jax.nn.initializers.constant(5.0))
      >>> drawn["w"].tolist(), drawn["b"].tolist()
      ([[5.0, 0.0]], [1.0, 1.0])

    Source: Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the mark?", section 5.
    """
    leaves = paths.flatten(params)
    with collect("reinitialize: masks must fit the parameters") as problems:
        for path, mask in masks.items():
            if path not in leaves or leaves[path].shape != mask.shape:
                problems.append(f"{path}: there is no leaf of that path and of shape {mask.shape}")
    keys = jax.random.split(key, max(len(masks), 1))
    drawn = {
        path: jnp.where(mask, init(one, mask.shape, leaves[path].dtype), jnp.zeros((), leaves[path].dtype))
        for one, (path, mask) in zip(keys, sorted(masks.items()))
    }
    return paths.replace(params, drawn)
