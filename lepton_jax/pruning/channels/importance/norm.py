"""Norms of slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.paths import matches, matrices
from lepton_jax.core.typing import Path, Select
from lepton_jax.pruning.channels.groups import Group, Place
from lepton_jax.pruning.channels.importance.base import Importance, along, places, value


@checked
@dataclass(frozen=True, kw_only=True)
class Norm(Importance):
    """Score a slice by its norm: ``sum |w|``, or ``sqrt(sum w**2)``.

    With all kernels of a group, on both sides of a channel, that is the magnitude of the whole group.

    Args:
      order: 1 or 2.
      select: which leaves count; by default kernels and embeddings.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> group = Group(slices=(Slices(path="kernel", axis=1, indices=np.array([[0], [1]])),))
      >>> Norm(order=2).scores({"kernel": np.array([[3.0, 1.0], [4.0, 0.0]])}, [group])
      {('kernel', 1): array([5., 1.])}

    Source: Li, Kadav, Durdanovic, Samet, Graf 2017, "Pruning filters for efficient ConvNets" (L1, of filters alone); Fang, Ma,
    Song, Mi, Wang 2023, "DepGraph" (over the group).
    """

    order: Literal[1, 2] = 1
    select: Select = matrices

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"Norm: order must be 1 or 2; got {self.order!r}.")

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        found = {}
        for path, axis in places(groups):
            if matches(self.select, path, variables[path], variables):
                weight = np.abs(value(variables, path))
                found[path, axis] = along(weight, axis) if self.order == 1 else np.sqrt(along(weight**2, axis))
        return found
