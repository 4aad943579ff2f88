"""The scale of the normalisation that follows a channel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.paths import matches
from lepton_jax.core.typing import Path, Select
from lepton_jax.pruning.channels.groups import Group, Place
from lepton_jax.pruning.channels.importance.base import Importance, places, value


@checked
@dataclass(frozen=True, kw_only=True)
class BatchNormScale(Importance):
    """Score a channel by the absolute scale of its batch normalisation.

    Args:
      select: which leaves are scales.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> group = Group(slices=(Slices(path="bn/scale", axis=0, indices=np.array([[0], [1]])),))
      >>> BatchNormScale().scores({"bn/scale": np.array([-2.0, 1.0])}, [group])
      {('bn/scale', 0): array([2., 1.])}

    Source: Liu, Li, Shen, Huang, Yan, Zhang 2017, "Learning efficient convolutional networks through network slimming".
    """

    select: Select = "*scale"

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        return {
            (path, axis): np.abs(value(variables, path))
            for path, axis in places(groups)
            if len(variables[path].shape) == 1 and matches(self.select, path, variables[path], variables)
        }
