"""Short names of structures: ``prune(0.5, structure="2:4")``."""

from collections.abc import Mapping
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.presets import preset
from lepton_jax.pruning.structures.base import Structure
from lepton_jax.pruning.structures.channels import Filters
from lepton_jax.pruning.structures.n_of_m import NofM
from lepton_jax.pruning.structures.unstructured import Unstructured

PRESETS: Mapping[str, Structure] = {
    **{f"{n}:{m}": NofM(n=n, m=m) for n, m in ((1, 2), (1, 4), (2, 4), (2, 8), (4, 8))},
    "filters": Filters(),
    "unstructured": Unstructured(),
}
"""``2:4`` keeps two of every four inputs."""


@checked
def named_structure(name: str, given: Any) -> Structure:
    """Return the structure that a short name stands for, or the structure itself.

    Args:
      name: of the setting, for the error.
      given: a short name, or a structure.

    Raises:
      ValueError: for a name that there is not; lists those that there are.
      TypeError: for what is neither.

    Example:
      >>> named_structure("prune: structure", "2:4")
      NofM(n=2, m=4, axis=-2, pad=False)
    """
    found = preset(name, given, PRESETS)
    if not isinstance(found, Structure):
        raise TypeError(f"{name} must be a structure, e.g. NofM(n=2, m=4) or '2:4'; got {given!r}.")
    return found
