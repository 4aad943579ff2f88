"""The loss on the labels, whose run of the model gives the terms what they look at."""

from collections.abc import Callable
from typing import Any

from lepton_jax.core.typing import Array, ModelApply, PyTree
from lepton_jax.distillation.taps import Outputs
from lepton_jax.training.step import LossFn, Metrics

Labelled = Callable[[ModelApply], LossFn]
"""Makes the loss on the labels of a model: `classification_loss`, with its settings by `functools.partial`."""


def on_labels(
    labelled: Labelled, run: Callable[..., Any], params: PyTree, model_state: PyTree, batch: Any, key: Array
) -> tuple[Array, Outputs, PyTree, Metrics]:
    """Return a model's loss on the labels, its outputs, its new state and its metrics; the model is run once.

    Args:
      labelled: makes the loss on the labels of a model.
      run: the model with its taps, from `tapped`.
      params: its parameters.
      model_state: its other collections.
      batch: with `labels`.
      key: random key.
    """
    seen: list[Outputs] = []

    def watched(params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None) -> tuple[Array, PyTree]:
        (logits, model_state), features = run(params, model_state, inputs, train=train, key=key)
        seen.append(Outputs(logits, features))
        return logits, model_state

    loss, (model_state, metrics) = labelled(watched)(params, model_state, batch, key)
    return loss, seen[-1], model_state, metrics
