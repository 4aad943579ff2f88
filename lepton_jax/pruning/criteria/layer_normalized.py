"""Scores divided by their layer's norm."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.criteria.base import Criterion, wide
from lepton_jax.pruning.criteria.magnitude import Magnitude


def normalized(scores: Array) -> Array:
    """Return scores divided by their Euclidean norm; all-zero ones as they are.

    Example:
      >>> normalized(jnp.array([3.0, 4.0])).tolist(), normalized(jnp.zeros(1)).tolist()
      ([0.6000000238418579, 0.800000011920929], [0.0])
    """
    scores = wide(scores)
    largest = jnp.max(jnp.abs(scores), initial=0.0)
    small = scores / jnp.where(largest > 0, largest, 1.0)  # squares of large or tiny scores would leave the range of floats
    norm = jnp.sqrt(jnp.sum(small**2))
    return small / jnp.where(norm > 0, norm, 1.0)


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNormalized(Criterion):
    """Score by another criterion, divided by the Euclidean norm of its scores over the leaf: ``s / ||s||_2``.

    For ``prune(..., scope="global")``, so that leaves of different scale can be compared. Within a leaf the order stays.

    Args:
      criterion: gives the scores; by default ``|w|``.

    Example:
      >>> w = {"a": jnp.array([3.0, -4.0])}
      >>> LayerNormalized().score_all(w, {"a": ()}, w)["a"].round(3).tolist()
      [0.6..., 0.8...]

    Source: Molchanov, Tyree, Karras, Aila, Kautz 2017, "Pruning convolutional neural networks for resource efficient
    inference", the layer-wise normalisation of criteria in section 2.2, for single weights instead of feature maps.
    """

    criterion: Criterion = Magnitude()  # noqa: RUF009

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        return self.criterion.init_all(weights, params)

    def accumulate(self, state: Any, weight: Array, grad: Array) -> Any:
        return self.criterion.accumulate(state, weight, grad)

    def score_all(self, weights: Mapping[Path, Array], states: Mapping[Path, Any], params: PyTree) -> dict[Path, Array]:
        return {path: normalized(scores) for path, scores in self.criterion.score_all(weights, states, params).items()}

    def apart(self, weight: Array, scores: Array) -> Array:
        return normalized(self.criterion.apart(weight, scores))
