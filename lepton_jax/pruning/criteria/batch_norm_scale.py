"""The scales of batch normalisation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.criteria.base import Criterion, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNormScale(Criterion):
    """Score a kernel's channels by the size of the scale of the normalisation behind them: ``|gamma_c|``.

    All weights of a channel have the same score, so that a structure of channels keeps the order of the scales. The scales are
    read anew at every update of the masks.

    Args:
      scales: glob pattern over the selected leaves (one path, as a rule) -> path of the scale in the whole tree.
      axis: the kernels' axis of channels.

    Raises:
      ValueError: in `init_all` and `score_all`, with every pattern that matches no selected leaf, every selected leaf that none
        or several match, every scale that is missing or not one number a channel.

    Example:
      >>> params = {"Conv_0": {"kernel": jnp.ones((2, 3))}, "Norm_0": {"scale": jnp.array([0.5, -2.0, 0.0])}}
      >>> criterion = BatchNormScale(scales={"Conv_0/kernel": "Norm_0/scale"})
      >>> weights = {"Conv_0/kernel": params["Conv_0"]["kernel"]}
      >>> criterion.score_all(weights, {"Conv_0/kernel": ()}, params)["Conv_0/kernel"].tolist()
      [[0.5, 2.0, 0.0], [0.5, 2.0, 0.0]]

    Source: Liu, Li, Shen, Huang, Yan, Zhang 2017, "Learning efficient convolutional networks through network slimming",
    section 3. The L1 penalty on the scales that it trains with is the loss's business.
    """

    scales: Mapping[str, Path]
    axis: int = -1

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        self._scales(weights, params)
        return dict.fromkeys(weights, ())

    def score_all(self, weights: Mapping[Path, Array], states: Mapping[Path, Any], params: PyTree) -> dict[Path, Array]:
        del states
        found = {}
        for path, scale in self._scales(weights, params).items():
            shape = [1] * weights[path].ndim
            shape[self.axis] = scale.size
            found[path] = jnp.broadcast_to(jnp.abs(wide(scale)).reshape(shape), weights[path].shape)
        return found

    def _scales(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Array]:
        """Every selected leaf's scale."""
        leaves, found = paths.flatten(params), {}
        with collect("BatchNormScale: every selected leaf needs the scale of its channels") as problems:
            for pattern in self.scales:
                if not any(paths.matches(pattern, path, leaf, weights) for path, leaf in weights.items()):
                    problems.append(f"{pattern!r} matches none of the selected leaves, {', '.join(weights)}")
            for path, weight in weights.items():
                named = [scale for pattern, scale in self.scales.items() if paths.matches(pattern, path, weight, weights)]
                if len(named) != 1:
                    problems.append(f"{path}: one pattern must match it; got {len(named)} of {', '.join(self.scales)}")
                elif named[0] not in leaves:
                    problems.append(f"{path}: its scale {named[0]} is not in the tree, which has {', '.join(leaves)}")
                elif not -weight.ndim <= self.axis < weight.ndim:
                    problems.append(f"{path}: has no axis {self.axis}, its shape is {weight.shape}")
                elif leaves[named[0]].shape != (weight.shape[self.axis],):
                    problems.append(
                        f"{path}: its scale {named[0]} must have shape ({weight.shape[self.axis]},), one number for each "
                        f"index of axis {self.axis}; got {leaves[named[0]].shape}"
                    )
                else:
                    found[path] = leaves[named[0]]
        return found
