"""Whether pruning is even: a layer that loses almost all while others keep much is where accuracy is lost."""

import warnings
from collections.abc import Mapping

import jax

from lepton_jax.core.errors import is_traced
from lepton_jax.core.typing import Array, Path
from lepton_jax.pruning.words import as_int, true_count

STARVED, RICH = 0.05, 0.3
"""Fractions kept: below the first a leaf is starved, if others keep more than the second."""


class UnevenWarning(UserWarning):
    """Some leaves keep almost nothing while others keep much."""


def warn_if_uneven(name: str, masks: Mapping[Path, Array]) -> None:
    """Warn once if some leaves of two axes or more keep less than 5 % while others keep more than 30 %.

    Args:
      name: of what pruned.
      masks: by path; of traced ones nothing is said.

    Example:
      >>> import jax.numpy as jnp
      >>> warn_if_uneven("prune", {"a": jnp.eye(20, 30) > 0, "b": jnp.eye(4) > 0})
    """
    if any(is_traced(mask) for mask in masks.values()):  # of several sparsities at once
        return
    counts = {path: as_int(count) for path, count in jax.device_get(_counts(dict(masks))).items()}
    kept = {path: counts[path] / mask.size for path, mask in masks.items() if mask.size and mask.ndim > 1}
    starved = [path for path, share in kept.items() if share < STARVED]
    rich = [path for path, share in kept.items() if share > RICH]
    if starved and rich:
        listed = ", ".join(f"{path} ({counts[path]} of {masks[path].size})" for path in starved)
        warnings.warn(
            f"{name}: {listed} keep less than {STARVED:.0%}, while {', '.join(rich)} keep more than {RICH:.0%}: that often "
            "costs accuracy. To spread it by the layers' shapes, give a sparsity with allocation=lepton_jax.pruning.erk (and "
            "scope='layer').",
            UnevenWarning,
            stacklevel=4,
        )


@jax.jit
def _counts(masks: dict[Path, Array]) -> dict[Path, Array]:
    return {path: true_count(mask) for path, mask in masks.items()}
