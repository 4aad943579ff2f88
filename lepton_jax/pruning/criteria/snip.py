"""SNIP: connection sensitivity at initialisation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.criteria.base import Gathered, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Snip(Gathered):
    """Score a weight by how much the loss at initialisation depends on its being there: ``|w dL/dw|``.

    It is the derivative of the loss to a factor ``c = 1`` in front of the weight. Computed once, in `init_all`; several rounds:
    `lepton_jax.pruning.iterative_masks`.

    Args:
      loss: ``loss(params) -> scalar`` over the whole tree that is pruned, on one or more batches.

    Example:
      >>> params = {"w": jnp.array([2.0, -1.0])}
      >>> criterion = Snip(loss=lambda p: (p["w"] * jnp.array([1.0, 3.0])).sum())
      >>> criterion.score_all(params, criterion.init_all(params, params), params)["w"].tolist()
      [2.0, 3.0]

    Source: Lee, Ajanthan, Torr 2019, "SNIP: Single-shot network pruning based on connection sensitivity", equation 6.
    Deviation: the scores are not divided by their sum, which no ranking sees.
    """

    loss: Callable[[PyTree], Array] = dataclasses.field(repr=False)

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        slopes = jax.jit(jax.grad(lambda leaves: self.loss(paths.replace(params, leaves))))(dict(weights))
        return {path: jnp.abs(wide(weight) * wide(slopes[path])) for path, weight in weights.items()}
