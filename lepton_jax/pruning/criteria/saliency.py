"""First-order saliency."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.pruning.criteria.base import Gathered, check_decay, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Saliency(Gathered):
    """Score a weight by the change of the loss that its removal makes, to first order: ``|w g|``, gathered over steps.

    ``s <- decay * s + |w g|`` at every step, and the score is `s`. Before the first step all scores are zero: use a schedule
    that begins later, or masks are made by position.

    Args:
      decay: 1: the sum over all steps. Between 0 and 1: an exponential average (times the constant 1 / (1 - decay), which no
        ranking sees). 0: the latest step alone.

    Raises:
      ValueError: for a decay outside [0, 1].

    Example:
      >>> criterion, w = Saliency(decay=0.5), jnp.array([-2.0, 1.0])
      >>> state = criterion.accumulate(criterion.init(w), w, jnp.array([1.0, 2.0]))
      >>> criterion.scores(w, criterion.accumulate(state, w, jnp.array([0.0, -4.0]))).tolist()
      [1.0, 5.0]

    Source: Mozer, Smolensky 1989, "Skeletonization"; Molchanov, Tyree, Karras, Aila, Kautz 2017, "Pruning convolutional neural
    networks for resource efficient inference", the Taylor criterion, for single weights instead of feature maps.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        check_decay("Saliency", self.decay)

    def init(self, weight: Array) -> Any:
        return jnp.zeros_like(wide(weight))

    def accumulate(self, state: Any, weight: Array, grad: Array) -> Any:
        return self.decay * state + jnp.abs(wide(weight) * wide(grad))
