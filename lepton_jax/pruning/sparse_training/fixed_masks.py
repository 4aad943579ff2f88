"""Fixed masks: train what given masks keep."""

from typing import NamedTuple

import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.hide import Gradient, Masks, check_masks, laid_out_as, through_masks


class FixedMasksState(NamedTuple):
    """State of `fixed_masks`.

    Attributes:
      masks: by path; boolean, True where the weight is kept, of the weight's shape.
    """

    masks: dict[Path, Array]


@checked
@named
def fixed_masks(masks: Masks, *, gradient: Gradient = "masked") -> Transform:
    """Show the weights through given masks, for the whole run: ``view = where(mask, w, 0)``.

    What lottery tickets, pruning at initialisation and the sanity ablations train under. The masks are in the state, so that a
    step compiled once serves any masks of the same shapes, and stacked states train under `jax.vmap`.

    Args:
      masks: by path; boolean, True where the weight is kept, of the weight's shape.
      gradient: "masked": a pruned weight gets no gradient and its master is set to zero. "straight_through": it gets the
        gradient of the zero that stands for it, and its master lives on.

    Raises:
      ValueError: for an unknown option; at `init`, for masks that do not fit the parameters (all paths together).

    Example:
      >>> transform = fixed_masks({"kernel": jnp.array([[True, False]])})
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, jnp.nan]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[1.0, 0.0]]

    Source: Frankle and Carbin 2019, "The lottery ticket hypothesis", section 1: ``f(x; m * theta)``.
    """
    with collect("fixed_masks") as problems:
        if gradient not in ("masked", "straight_through"):
            problems.append(f"gradient must be 'masked' or 'straight_through'; got {gradient!r}")

    def init(params: PyTree) -> tuple[PyTree, FixedMasksState]:
        check_masks("fixed_masks", masks, params)
        leaves = paths.flatten(params)
        # Copies: states are donated, and the masks given here belong to the caller.
        own = {path: laid_out_as(jnp.array(mask, copy=True), leaves[path]) for path, mask in masks.items()}
        return params, FixedMasksState(own)

    return through_masks(init, gradient=gradient, lives_on=gradient == "straight_through")
