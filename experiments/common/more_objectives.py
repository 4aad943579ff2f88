"""Objectives beside classes: series to be reconstructed, products to be ranked, and inputs of two kinds."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from experiments.common.objectives import Classes, Divergence, Judge, outputs_of
from lepton_jax.core import paths
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Split
from lepton_jax.data.av_digits import PIXELS
from lepton_jax.training import ModelApply, TrainState
from lepton_jax.training.classification import cross_entropy
from lepton_jax.training.step import LossFn, Metrics


def regression_loss(apply: ModelApply, l2: float, loss_of: Callable[[Array, Any], Array]) -> LossFn:
    """Return the mean of a loss of outputs and batch, with half the weighted sum of squares of the matrices."""

    def loss_fn(params: PyTree, model_state: PyTree, batch: Any, key: Array) -> tuple[Array, tuple[PyTree, Metrics]]:
        outputs, model_state = apply(params, model_state, batch.images, train=True, key=key)
        loss = loss_of(outputs, batch)
        if l2:
            loss += l2 / 2 * sum(jnp.sum(jnp.square(leaf)) for leaf in paths.select(params, paths.matrices).values())
        return loss, (model_state, {})

    return loss_fn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anomalies(Classes):
    """Windows of series are reconstructed; points whose newest points are reconstructed badly are anomalies.

    The figure is the mean over series of the area under the curve of true against false alarms.
    """

    metric: ClassVar[str] = "auroc"
    divergence: ClassVar[Divergence] = "error"
    newest: int = 1
    """How many points' squared errors are added up."""

    def loss(self, apply: ModelApply, l2: float) -> LossFn:
        return regression_loss(apply, l2, lambda outputs, batch: jnp.mean((outputs - _points(batch.images)) ** 2))

    def judge(self, apply: ModelApply, split: Split) -> Judge:
        def figures(run: TrainState) -> dict[str, float]:
            outputs = outputs_of(apply, run, split.images, 4096)
            errors = (outputs - _points(split.images)) ** 2
            scores = errors[:, -self.newest :].sum(-1)
            return {"error": 1 - mean_auroc(scores, split.labels, split.images[:, -1, 0, 0])}

        return figures

    def distance(self, student: Array, teacher: Array) -> Array:
        return jnp.mean((student - teacher) ** 2)


def _points(images: Any) -> Any:
    return images[:, :-1, 0, 0]


def mean_auroc(scores: np.ndarray, labels: np.ndarray, series: np.ndarray) -> float:
    """Return the mean over series of the probability that an anomaly scores higher than another point, ties half.

    Series without one of both kinds do not count.

    Example:
      >>> mean_auroc(np.array([0.1, 0.9, 0.5, 0.5]), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
      0.75
    """
    areas = []
    for number in np.unique(series):
        ranks, wrong = rankdata(scores[series == number]), labels[series == number] == 1
        if wrong.any() and not wrong.all():
            count = int(wrong.sum())
            areas.append((ranks[wrong].sum() - count * (count + 1) / 2) / (count * (len(wrong) - count)))
    return float(np.mean(areas))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Products(Classes):
    """Products by cross entropy; the fraction of customers whose next product is among the ten best of those not yet bought."""

    metric: ClassVar[str] = "hit_rate_at_10"

    def judge(self, apply: ModelApply, split: Split) -> Judge:
        def figures(run: TrainState) -> dict[str, float]:
            return {"error": 1 - hit_rate(outputs_of(apply, run, split.images), split.images[:, :, 0, 0], split.labels)}

        return figures


def hit_rate(logits: np.ndarray, tokens: np.ndarray, labels: np.ndarray, best: int = 10) -> float:
    """Return how often the label is among the best products; those among the tokens, 1 + product, are left out.

    Example:
      >>> hit_rate(np.array([[3.0, 2.0, 1.0]]), np.array([[1, 0]]), np.array([1]), best=1)
      1.0
    """
    ranked = np.concatenate([np.zeros((len(logits), 1)), logits], axis=1)
    np.put_along_axis(ranked, tokens.astype(int), -np.inf, axis=1)
    own = logits[np.arange(len(labels)), labels]
    return float(np.mean(np.sum(ranked[:, 1:] > own[:, None], axis=1) < best))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAndSound(Classes):
    """Classes, of pictures with an image above a sound; besides, without either, and with either noisy."""

    noise: float = 1.0
    """Deviation of the noise on images, which are then cut off at -2 and 3, and on sounds."""

    def more(self, apply: ModelApply, run: TrainState, split: Split) -> dict[str, float]:
        rng = np.random.default_rng(0)
        drawn = self.noise * rng.standard_normal(split.images.shape, np.float32)
        found = {}
        for name, rows in (("image", slice(None, PIXELS)), ("sound", slice(PIXELS, None))):
            missing, noisy = split.images.copy(), split.images.copy()
            missing[:, rows] = 0
            noisy[:, rows] = noisy[:, rows] + drawn[:, rows]
            if name == "image":
                noisy[:, rows] = np.clip(noisy[:, rows], -2, 3)
            for word, images in (("without", missing), ("noisy", noisy)):
                right = outputs_of(apply, run, images).argmax(-1) == split.labels
                found[f"accuracy_{word}_{name}"] = float(right.mean())
        return found


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
