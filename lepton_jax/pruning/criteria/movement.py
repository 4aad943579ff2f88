"""Movement."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.pruning.criteria.base import Gathered, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Movement(Gathered):
    """Score a weight by how far it moved away from zero: ``-sum_t w_t g_t``.

    Under gradient descent a weight grows in size where ``w g < 0``. Meant for fine-tuning a pretrained model, with
    ``prune(..., gradient="straight_through")``, so that pruned weights go on collecting. Before the first step all scores are
    zero: use a schedule that begins later.

    Example:
      >>> criterion, w = Movement(), jnp.array([-2.0, 1.0])
      >>> criterion.scores(w, criterion.accumulate(criterion.init(w), w, jnp.array([1.0, 3.0]))).tolist()
      [2.0, -3.0]

    Source: Sanh, Wolf, Rush 2020, "Movement pruning: Adaptive sparsity by fine-tuning", equation 5 and section 4 (the hard
    version). Deviations: the constant learning rate in front of the sum is left out, no ranking sees it; and the gradient is
    multiplied by the weight after the step, where the paper has the weight before it.
    """

    def init(self, weight: Array) -> Any:
        return jnp.zeros_like(wide(weight))

    def accumulate(self, state: Any, weight: Array, grad: Array) -> Any:
        return state - wide(weight) * wide(grad)
