"""Another criterion, upside down."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.criteria.base import Criterion
from lepton_jax.pruning.criteria.magnitude import Magnitude


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inverted(Criterion):
    """Score by another criterion with the sign turned, ``-s``: a sanity ablation that keeps what it would remove.

    A criterion that is no better than its inverse says nothing about weights.

    Args:
      criterion: gives the scores.

    Example:
      >>> import jax.numpy as jnp
      >>> w = {"a": jnp.array([3.0, -4.0])}
      >>> Inverted().score_all(w, {"a": ()}, w)["a"].tolist()
      [-3.0, -4.0]

    Source: Frankle, Dziugaite, Roy, Carbin 2021, "Pruning neural networks at initialization: Why are we missing the mark?",
    section 5 ("inverting").
    """

    criterion: Criterion = Magnitude()  # noqa: RUF009

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        return self.criterion.init_all(weights, params)

    def accumulate(self, state: Any, weight: Array, grad: Array) -> Any:
        return self.criterion.accumulate(state, weight, grad)

    def score_all(self, weights: Mapping[Path, Array], states: Mapping[Path, Any], params: PyTree) -> dict[Path, Array]:
        return {path: -scores for path, scores in self.criterion.score_all(weights, states, params).items()}
