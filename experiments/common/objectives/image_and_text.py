"""Classes, and images and texts that find each other."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from experiments.common.objectives.classes import Classes, Divergence, Judge, outputs_of, regression_loss
from lepton_jax.core.typing import Array
from lepton_jax.data import Split
from lepton_jax.training import ModelApply, TrainState
from lepton_jax.training.classification import cross_entropy
from lepton_jax.training.step import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAndText(Classes):
    """Classes, and vectors of images and texts that are near where they belong together.

    Outputs are logits, then the image's vector, then the text's, both of length 1. The loss is the cross entropy of the
    classes, and of which text of the batch is an image's, and the other way round.
    """

    divergence: ClassVar[Divergence] = "error"
    classes: int
    """How many logits."""
    sharpness: float = 10.0
    """What cosines are multiplied by."""

    def loss(self, apply: ModelApply, l2: float) -> LossFn:
        def loss_of(outputs: Array, batch: Any) -> Array:
            logits, images, texts = self._apart(outputs)
            near, own = self.sharpness * images @ texts.T, jnp.arange(len(images))
            pairs = (jnp.mean(cross_entropy(near, own)) + jnp.mean(cross_entropy(near.T, own))) / 2
            return jnp.mean(cross_entropy(logits, batch.labels)) + pairs

        return regression_loss(apply, l2, loss_of)

    def judge(self, apply: ModelApply, split: Split) -> Judge:
        def figures(run: TrainState) -> dict[str, float]:
            outputs = outputs_of(apply, run, split.images)
            return {"error": float(np.mean(outputs[:, : self.classes].argmax(-1) != split.labels))}

        return figures

    def more(self, apply: ModelApply, run: TrainState, split: Split) -> dict[str, float]:
        _, images, texts = self._apart(outputs_of(apply, run, split.images))
        return {"recall_at_1": float(np.mean((images @ texts.T).argmax(-1) == np.arange(len(images))))}

    def distance(self, student: Array, teacher: Array) -> Array:
        soft = super().distance(student[:, : self.classes], teacher[:, : self.classes])
        return soft + self.sharpness * jnp.mean(jnp.sum((student - teacher)[:, self.classes :] ** 2, axis=-1))

    def _apart(self, outputs: Any) -> tuple[Any, Any, Any]:
        width = (outputs.shape[1] - self.classes) // 2
        return outputs[:, : self.classes], outputs[:, self.classes : self.classes + width], outputs[:, self.classes + width :]
