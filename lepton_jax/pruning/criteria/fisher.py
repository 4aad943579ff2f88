"""Fisher information, or optimal brain damage with it."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.pruning.criteria.base import Criterion, check_decay, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher(Criterion):
    """Score a weight by the change of the loss that its removal makes, to second order at a minimum: ``h w**2 / 2``.

    `h`, the diagonal of the Hessian, is taken to be that of the Fisher information, the mean of ``g**2``, gathered over steps:
    ``h <- decay * h + g**2``. Before the first step all scores are zero: use a schedule that begins later.

    Args:
      decay: 1: the sum over all steps (the mean, times a number that no ranking sees). Between 0 and 1: an exponential
        average, times 1 / (1 - decay). 0: the latest step alone.

    Raises:
      ValueError: for a decay outside [0, 1].

    Example:
      >>> criterion, w = Fisher(), jnp.array([-2.0, 1.0])
      >>> criterion.scores(w, criterion.accumulate(criterion.init(w), w, jnp.array([1.0, 3.0]))).tolist()
      [2.0, 4.5]

    Source: LeCun, Denker, Solla 1990, "Optimal brain damage", its diagonal approximation; Theis, Korshunova, Tejani, Huszár
    2018, "Faster gaze prediction with dense networks and Fisher pruning", section 2. Deviation: the gradients squared are those
    of batches, as the training step has them, not of single examples; for these, accumulate one example at a time.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        check_decay("Fisher", self.decay)

    def init(self, weight: Array) -> Any:
        return jnp.zeros_like(wide(weight))

    def accumulate(self, state: Any, weight: Array, grad: Array) -> Any:
        del weight
        return self.decay * state + wide(grad) ** 2

    def scores(self, weight: Array, state: Any) -> Array:
        return (jnp.sqrt(state) * wide(weight)) ** 2 / 2  # in this order, no h is ever 0 times an overflow
