"""Redundancy: how far a filter is from the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.paths import matches, matrices
from lepton_jax.core.typing import Path, Select
from lepton_jax.pruning.channels.groups import Group, Place
from lepton_jax.pruning.channels.importance.base import Importance, places, value


@checked
@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Importance):
    """Score a filter by the sum of its distances to the others of its layer: what is near their median can be replaced.

    ``score_i = sum_j ||w_i - w_j||``. Filters are the slices along the last axis of a kernel (its outputs); a group that
    has none of these is scored along the axes that it has.

    Args:
      select: which leaves are kernels.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> group = Group(slices=(Slices(path="kernel", axis=1, indices=np.array([[0], [1], [2]])),))
      >>> GeometricMedian().scores({"kernel": np.array([[0.0, 1.0, 5.0]])}, [group])
      {('kernel', 1): array([6., 5., 9.])}

    Source: He, Liu, Wang, Hu, Yang 2019, "Filter pruning via geometric median" (FPGM), equation 8.
    """

    select: Select = matrices

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        found: dict[Place, np.ndarray] = {}
        for group in groups:
            kernels = [p for p in places([group]) if matches(self.select, p[0], variables[p[0]], variables)]
            outputs = [(path, axis) for path, axis in kernels if axis == len(variables[path].shape) - 1]
            for path, axis in outputs or kernels:
                if (path, axis) not in found:
                    found[path, axis] = _distances(np.moveaxis(value(variables, path), axis, 0))
        # An axis scored for one group's sake says nothing about another's that has outputs of its own.
        return found


def _distances(filters: np.ndarray) -> np.ndarray:
    flat = filters.reshape(len(filters), -1)
    # A row at a time: the differences of all pairs at once would be as many as the weights times the filters.
    return np.array([np.sqrt(((flat - row) ** 2).sum(axis=1)).sum() for row in flat])
