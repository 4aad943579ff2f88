"""Products to be ranked: what a customer buys next."""

import dataclasses
from typing import ClassVar

import numpy as np

from experiments.common.objectives.classes import Classes, Judge, outputs_of
from lepton_jax.data import Split
from lepton_jax.training import ModelApply, TrainState


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
