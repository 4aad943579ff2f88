"""Any criterion for single weights, summed over a slice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.paths import matches, matrices
from lepton_jax.core.typing import Path, PyTree, Select
from lepton_jax.pruning.channels.groups import Group, Place
from lepton_jax.pruning.channels.importance.base import Importance, along, by_variable, places
from lepton_jax.pruning.criteria import Criterion


@checked
@dataclass(frozen=True, kw_only=True)
class Elements(Importance):
    """Score a slice by the sum of its weights' scores under a criterion of `lepton_jax.pruning.criteria`.

    Args:
      criterion: scores single weights.
      gradients: trees of gradients, which a criterion that needs them gathers one after the other.
      select: which leaves count; by default kernels and embeddings.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> from lepton_jax.pruning.criteria import Magnitude
      >>> group = Group(slices=(Slices(path="kernel", axis=1, indices=np.array([[0], [1]])),))
      >>> Elements(criterion=Magnitude()).scores({"kernel": jnp.array([[3.0, 1.0], [-4.0, 0.0]])}, [group])
      {('kernel', 1): array([7., 1.])}
    """

    criterion: Criterion
    gradients: tuple[PyTree, ...] = ()
    select: Select = matrices

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        trees = [by_variable(tree, variables) for tree in self.gradients]
        found: dict[Place, np.ndarray] = {}
        for path, axis in places(groups):
            if matches(self.select, path, variables[path], variables):
                weight = jnp.asarray(variables[path])
                state = self.criterion.init(weight)
                for tree in trees:
                    state = self.criterion.accumulate(state, weight, tree[path])
                elements = np.asarray(self.criterion.scores(weight, state)).astype(np.float64)
                found[path, axis] = along(elements, axis)
        return found
