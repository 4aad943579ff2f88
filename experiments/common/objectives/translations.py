"""Translation: cross entropy of every token, and BLEU of what a beam search finds."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from experiments.common.objectives.classes import Classes, Judge, answered, regression_loss
from lepton_jax.core.extras import import_extra
from lepton_jax.core.typing import Array
from lepton_jax.data import Split, tatoeba_pieces
from lepton_jax.models import Source
from lepton_jax.models.tokens import PADDING
from lepton_jax.training import ModelApply, TrainState
from lepton_jax.training.classification import cross_entropy
from lepton_jax.training.step import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translations(Classes):
    """Sentences of a `lepton_jax.models.Translator` on the pairs of `lepton_jax.data.load_tatoeba`.

    The loss is the cross entropy of the tokens of the translation, smoothed. The figure is BLEU by `sacrebleu` (13a, cased)
    against the one translation of the set, over 100.
    """

    metric: ClassVar[str] = "bleu"
    folder: Path
    """Of the set."""
    tokens: int
    """How many pieces there are."""
    smoothing: float = 0.1
    """Of the labels."""
    batch: int = 128
    """Sentences that are translated at once, of much the same length."""

    def figure(self, error: float) -> float:
        return 100 * (1 - error)

    def loss(self, apply: ModelApply, l2: float) -> LossFn:
        def loss_of(outputs: Array, batch: Any) -> Array:
            wanted = _sides(batch.images)[:, 1].astype(jnp.int32)
            there = wanted != PADDING
            losses = cross_entropy(outputs.reshape(-1, outputs.shape[-1]), wanted.reshape(-1), label_smoothing=self.smoothing)
            return jnp.sum(losses * there.reshape(-1)) / jnp.maximum(jnp.sum(there), 1)

        return regression_loss(apply, l2, loss_of)

    def judge(self, apply: ModelApply, split: Split) -> Judge:
        source, target = np.moveaxis(np.asarray(_sides(split.images)), 1, 0).astype(np.int32)
        pieces = tatoeba_pieces(self.folder, tokens=self.tokens)
        wanted = [pieces.decode(row.tolist()) for row in target]

        def figures(run: TrainState) -> dict[str, float]:
            def translate(some: np.ndarray) -> Array:
                return answered(apply, run.params, run.model_state, Source(jnp.asarray(some)))

            made = [pieces.decode(row.tolist()) for row in in_batches(translate, source, self.batch)]
            return {"error": 1 - bleu(made, wanted) / 100}

        return figures

    def distance(self, student: Array, teacher: Array) -> Array:
        return super().distance(*(one.reshape(-1, one.shape[-1]) for one in (student, teacher)))


def _sides(images: Any) -> Any:
    """``[N, 2, T]``: the sentences, and their translations."""
    return images.reshape(images.shape[0], 2, -1)


def in_batches(translate: Callable[[np.ndarray], Any], source: np.ndarray, batch: int) -> list[np.ndarray]:
    """Return translations in the order of the sentences, which are taken in the order of their lengths.

    Widths are made multiples of 8, and the last batch is filled up, so that few programs are compiled.
    """
    lengths = np.sum(source != PADDING, axis=1)
    order, made = np.argsort(lengths, kind="stable"), [np.zeros(0, np.int32)] * len(source)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        width = min(-(-int(lengths[some].max()) // 8) * 8, source.shape[1])
        rows = np.asarray(translate(source[np.resize(some, batch), :width]))
        for place, row in zip(some, rows):
            made[place] = row
    return made


def bleu(made: list[str], wanted: list[str]) -> float:
    """Return BLEU of translations against one reference each, in points.

    Example:
      >>> bleu(["Es ist ein kleines Haus."], ["Es ist ein kleines Haus."])
      100.0

    Source: M. Post, A call for clarity in reporting BLEU scores, 2018; the tokens are 13a's, case counts.
    """
    return round(float(import_extra("sacrebleu", "experiments").corpus_bleu(made, [wanted]).score), 6)
