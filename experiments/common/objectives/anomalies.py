"""Series to be reconstructed: what is reconstructed badly is an anomaly."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from experiments.common.objectives.classes import Classes, Divergence, Judge, outputs_of, regression_loss
from lepton_jax.core.typing import Array
from lepton_jax.data import Split
from lepton_jax.training import ModelApply, TrainState
from lepton_jax.training.step import LossFn


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
