"""What a network is trained for, and by which figure it is judged: classes by default."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import identity
from lepton_jax.core import paths
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Split, eval_batches
from lepton_jax.distillation import soft_targets
from lepton_jax.graph.lowering import fast_lowering
from lepton_jax.training import ModelApply, TrainState, classification_loss, make_evaluate
from lepton_jax.training.step import LossFn, Metrics

Divergence = Literal["kl", "error"]
Judge = Callable[[TrainState], dict[str, float]]
_EVAL_BATCH = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """Cross entropy; the fraction of right answers. Base of the other objectives.

    In the common form of results an ``error`` is one minus the figure; the figure stands beside it under its own name.
    """

    metric: ClassVar[str] = "accuracy"
    """The name of the figure of merit, a fraction."""
    divergence: ClassVar[Divergence] = "kl"
    """How far a compressed network's outputs are from the dense one's."""

    def figure(self, error: float) -> float:
        """Return the figure of an error."""
        return 1 - error

    def loss(self, apply: ModelApply, l2: float) -> LossFn:
        """Return the loss of training."""
        return classification_loss(apply, l2=l2)

    def judge(self, apply: ModelApply, split: Split) -> Judge:
        """Return what measures ``{"error": ...}`` of a state, whose parameters are as seen."""
        return make_evaluate(apply, identity(), eval_batches(split, min(_EVAL_BATCH, len(split))))

    def more(self, apply: ModelApply, run: TrainState, split: Split) -> dict[str, float]:
        """Return other figures of a state on the test split, by name: fractions."""
        del apply, run, split
        return {}

    def distance(self, student: Array, teacher: Array) -> Array:
        """Return how far a student's outputs are from its teacher's."""
        return jnp.mean(soft_targets(student, teacher, 2.0))

    def taught(self, apply: ModelApply, l2: float, teacher: Callable[[Any], Array]) -> LossFn:
        """Return the mean of the loss of training and of `distance` to a teacher's outputs."""
        plain = self.loss(apply, l2)

        def loss_fn(params: PyTree, model_state: PyTree, batch: Any, key: Array) -> tuple[Array, tuple[PyTree, Metrics]]:
            loss, rest = plain(params, model_state, batch, key)
            # The same call with the same key as in the loss: compiled, it is one.
            outputs, _ = apply(params, model_state, batch.images, train=True, key=key)
            return (loss + self.distance(outputs, jax.lax.stop_gradient(teacher(batch.images)))) / 2, rest

        return loss_fn


def outputs_of(apply: ModelApply, run: TrainState, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Return a network's outputs in evaluation, a batch at a time."""
    split = Split(images=images, labels=np.zeros(len(images), np.int32))
    given: Iterable[Any] = eval_batches(split, min(batch, len(split)))
    parts = [np.asarray(answered(apply, run.params, run.model_state, some.images)) for some in given]
    return np.concatenate(parts)[: len(images)]


@functools.partial(jax.jit, static_argnums=0)
def answered(apply: ModelApply, params: PyTree, model_state: PyTree, inputs: Any) -> Array:
    """Return what a network says of inputs in evaluation, compiled."""
    run = fast_lowering(apply)
    return run(params, model_state, inputs, train=False, key=None)[0]


def regression_loss(apply: ModelApply, l2: float, loss_of: Callable[[Array, Any], Array]) -> LossFn:
    """Return the mean of a loss of outputs and batch, with half the weighted sum of squares of the matrices."""

    def loss_fn(params: PyTree, model_state: PyTree, batch: Any, key: Array) -> tuple[Array, tuple[PyTree, Metrics]]:
        outputs, model_state = apply(params, model_state, batch.images, train=True, key=key)
        loss = loss_of(outputs, batch)
        if l2:
            loss += l2 / 2 * sum(jnp.sum(jnp.square(leaf)) for leaf in paths.select(params, paths.matrices).values())
        return loss, (model_state, {})

    return loss_fn
