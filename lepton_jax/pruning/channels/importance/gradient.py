"""Importance from gradients: first-order Taylor, and the diagonal of the Fisher information or the Hessian."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.pruning.channels.groups import Group, Place
from lepton_jax.pruning.channels.importance.base import Importance, along, by_variable, places, value


@checked
@dataclass(frozen=True, kw_only=True)
class Taylor(Importance):
    """Score a slice by the change of the loss that its removal makes, to first order: ``sum |w * dL/dw|``.

    Args:
      gradients: of the loss, a tree with the paths of the variables (or of ``variables['params']``).
      joint: take ``|sum w * dL/dw|`` instead, the change when the slice goes as one.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> group = Group(slices=(Slices(path="kernel", axis=1, indices=np.array([[0], [1]])),))
      >>> kernel, gradient = np.array([[3.0, 1.0], [4.0, 0.0]]), np.array([[1.0, 2.0], [-1.0, 5.0]])
      >>> Taylor(gradients={"kernel": gradient}).scores({"kernel": kernel}, [group])
      {('kernel', 1): array([7., 2.])}

    Source: Molchanov, Mallya, Tyree, Frosio, Kautz 2019, "Importance estimation for neural network pruning", equation 8
    (`joint`, there squared).
    """

    gradients: PyTree
    joint: bool = False

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        gradients = by_variable(self.gradients, variables)
        found = {}
        for path, axis in places(groups):
            if path in gradients:
                change = value(variables, path) * value(gradients, path)
                found[path, axis] = np.abs(along(change, axis)) if self.joint else along(np.abs(change), axis)
        return found


@checked
@dataclass(frozen=True, kw_only=True)
class Fisher(Importance):
    """Score a slice by the change of the loss to second order at a minimum: ``sum h * w**2 / 2``.

    Args:
      curvature: `h`, the diagonal of the Hessian, or of the Fisher information (the mean of squared gradients of single
        examples), a tree with the paths of the variables.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> group = Group(slices=(Slices(path="kernel", axis=1, indices=np.array([[0], [1]])),))
      >>> kernel = np.array([[3.0, 1.0], [4.0, 0.0]])
      >>> Fisher(curvature={"kernel": np.ones((2, 2))}).scores({"kernel": kernel}, [group])
      {('kernel', 1): array([12.5,  0.5])}

    Source: LeCun, Denker, Solla 1990, "Optimal brain damage", equation 3, summed over the slice.
    """

    curvature: PyTree

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        curvature = by_variable(self.curvature, variables)
        return {
            (path, axis): along(value(curvature, path) * value(variables, path) ** 2, axis) / 2
            for path, axis in places(groups)
            if path in curvature
        }
