"""Second moments that Adafactor keeps as means over rows and over columns, for weights that have lost channels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax.core.paths import path_str
from lepton_jax.core.typing import Array, Path, PyTree

Shape = tuple[int, ...]
Factors = tuple[Any, Any, Any]
"""(v_row, v_col, v) of one weight: either the first two, or the last, the others being of shape (1,)."""


def factored_axes(shape: Shape, smallest: int) -> tuple[int, int] | None:
    """The axes (d1, d0), of which v_row is a mean over d0 and v_col one over d1; None if the moments are kept whole.

    As optax has it: the two longest axes, if both have `smallest` indices or more.

    Example:
      >>> factored_axes((3, 3, 128, 256), 128), factored_axes((64, 256), 128)
      ((2, 3), None)
    """
    order = np.argsort(shape)
    return (int(order[-2]), int(order[-1])) if len(shape) > 1 and shape[order[-2]] >= smallest else None


def factored_shapes(shape: Shape, smallest: int) -> tuple[Shape, Shape, Shape]:
    """The shapes of v_row, v_col and v of a weight.

    Example:
      >>> factored_shapes((4, 6), 2)
      ((4,), (6,), (1,))
    """
    axes = factored_axes(shape, smallest)
    if axes is None:
        return (1,), (1,), shape
    d1, d0 = axes
    return shape[:d0] + shape[d0 + 1 :], shape[:d1] + shape[d1 + 1 :], (1,)


def shrink_factors(factors: Factors, shape: Shape, smallest: int, cut: Callable[[Array], Array]) -> Factors:
    """Return the factors of a weight that has lost indices, such that the estimate of every moment left is what it was.

    The estimate is ``v_row v_col / mean(v_row)``. The means over what is left are taken of it: where the removed weights were
    masked, so that their gradients were 0, they are the means of what Adafactor would have kept of the smaller weight; the
    means of the squares themselves cannot be had, since only sums over all were kept.

    Args:
      factors: (v_row, v_col, v).
      shape: of the weight before.
      smallest: the optimiser's `min_dim_size_to_factor`.
      cut: cuts an array of the weight's shape.
    """
    row, col, whole = factors
    axes = factored_axes(shape, smallest)
    if axes is not None:
        d1, d0 = axes
        wide = [jnp.expand_dims(jnp.asarray(row, jnp.float32), d0), jnp.expand_dims(jnp.asarray(col, jnp.float32), d1)]
        mean = jnp.mean(wide[0], axis=d1, keepdims=True)
        # Before the first step all are 0.
        whole = jnp.where(mean > 0, wide[0] / jnp.where(mean > 0, mean, 1) * wide[1], 0)
    left = cut(whole)
    axes = factored_axes(left.shape, smallest)
    if axes is None:
        empty = jnp.zeros((1,), row.dtype)
        return empty, empty, left.astype(row.dtype)
    d1, d0 = axes
    return jnp.mean(left, axis=d0).astype(row.dtype), jnp.mean(left, axis=d1).astype(row.dtype), jnp.zeros((1,), row.dtype)


def shrink_state(
    state: optax.FactoredState,
    place: Path,
    variable: Callable[[Path], tuple[Path, Shape, Shape] | None],
    cut: Callable[[Path, Any], Any],
    smallest: int,
    problems: list[str],
) -> optax.FactoredState:
    """Return a state of `optax.scale_by_factored_rms` for the smaller weights.

    Args:
      state: for the original ones.
      place: its path.
      variable: the variable that a leaf's path speaks of, with its shapes before and after; None if there is none.
      cut: cuts a leaf of a variable's shape.
      smallest: the optimiser's `min_dim_size_to_factor`.
      problems: what does not fit is added here.
    """

    def one(key_path: Any, *factors: Any) -> Factors:
        path = path_str(key_path)
        found = variable(f"{place}/{path}" if place else path)
        if found is None:
            return factors  # type: ignore[return-value]
        name, before, after = found
        shapes = tuple(tuple(leaf.shape) for leaf in factors)
        wanted = factored_shapes(before, smallest)
        if shapes != wanted:
            problems.append(
                f"{place}/{path}: the factors (v_row, v_col, v) of {name} must have the shapes {wanted} "
                f"with min_dim_size_to_factor={smallest}; got {shapes}. Pass the one that the optimiser was made with"
            )
            return factors  # type: ignore[return-value]
        if before == after:
            return factors  # type: ignore[return-value]

        def shrunk(*factors: Any) -> Factors:
            return shrink_factors(factors, before, smallest, lambda leaf: cut(name, leaf))  # type: ignore[arg-type]

        struct = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in factors)
        return jax.eval_shape(shrunk, *factors) if struct else shrunk(*factors)

    done: PyTree = jax.tree_util.tree_map_with_path(one, state.v_row, state.v_col, state.v)
    rows, cols, wholes = jax.tree.transpose(jax.tree.structure(state.v_row), jax.tree.structure((0, 0, 0)), done)
    return state._replace(v_row=rows, v_col=cols, v=wholes)
