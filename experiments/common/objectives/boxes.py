"""Detection: focal and GIoU losses, and the average precision at an overlap of one half."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.objectives.classes import Classes, Divergence, Judge, outputs_of, regression_loss
from lepton_jax.core.typing import Array
from lepton_jax.data import Split
from lepton_jax.data.bccd import boxes_of
from lepton_jax.training import ModelApply, TrainState
from lepton_jax.training.step import LossFn

STRIDE = 8
"""Pixels from a cell to the next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes(Classes):
    """Boxes of a `lepton_jax.models.Detector` on the images of `lepton_jax.data.load_bccd`.

    A cell is to say a box's class where its centre is within `radius` strides of the box's, the smallest box first.
    """

    metric: ClassVar[str] = "ap50"
    divergence: ClassVar[Divergence] = "error"
    classes: int
    """How many."""
    radius: float = 1.0
    """Of the cells that say a box, in strides."""
    least: float = 0.05
    """Boxes of less probability are not looked at."""
    overlap: float = 0.5
    """Of two boxes of one class that overlap more, the better is kept."""

    def loss(self, apply: ModelApply, l2: float) -> LossFn:
        def loss_of(outputs: Array, batch: Any) -> Array:
            return jnp.mean(jax.vmap(self._one)(outputs, _rows(batch.images)))

        return regression_loss(apply, l2, loss_of)

    def _one(self, outputs: Array, rows: Array) -> Array:
        """The loss of one image: focal, and one minus GIoU of the cells that say a box."""
        logits, found = outputs[..., : self.classes], decoded(outputs[..., self.classes :])
        centres = _centres(*outputs.shape[:2])[:, :, None]
        boxes = rows[None, None, :, 1:]
        middles = (boxes[..., :2] + boxes[..., 2:]) / 2
        near = jnp.all(jnp.abs(centres - middles) <= self.radius * STRIDE, axis=-1) & (rows[:, 0] > 0)[None, None]
        areas = jnp.where(near, jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1), jnp.inf)
        chosen, said = jnp.argmin(areas, axis=-1), jnp.any(near, axis=-1)
        wanted = jax.nn.one_hot(jnp.where(said, rows[chosen, 0] - 1, -1).astype(jnp.int32), self.classes)
        right = jnp.where(wanted > 0, jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits))
        weights = jnp.where(wanted > 0, 0.25, 0.75) * (1 - right) ** 2
        logs = jnp.where(wanted > 0, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))
        count = jnp.maximum(jnp.sum(said), 1)
        sides = jnp.where(said, 1 - giou(found, rows[chosen, 1:]), 0)
        return (jnp.sum(-weights * logs) + jnp.sum(sides)) / count

    def judge(self, apply: ModelApply, split: Split) -> Judge:
        rows = boxes_of(split.images)

        def figures(run: TrainState) -> dict[str, float]:
            outputs = outputs_of(apply, run, split.images, 16)
            return {"error": 1 - average_precision([self.found(one) for one in outputs], rows, self.classes)}

        return figures

    def found(self, outputs: np.ndarray) -> np.ndarray:
        """Return the boxes ``[M, 6]`` of one image, best first: class, probability, xmin, ymin, xmax, ymax."""
        scores = 1 / (1 + np.exp(-outputs[..., : self.classes].reshape(-1, self.classes)))
        boxes, kept = np.asarray(decoded(outputs[..., self.classes :])).reshape(-1, 4), []
        for label in range(self.classes):
            order = np.argsort(-scores[:, label], kind="stable")[:300]
            order = order[scores[order, label] >= self.least]
            while len(order):
                best, order = order[0], order[1:]
                kept.append([label, scores[best, label], *boxes[best]])
                order = order[overlaps(boxes[best], boxes[order]) <= self.overlap]
        return np.array(sorted(kept, key=lambda row: -row[1]), float).reshape(-1, 6)

    def distance(self, student: Array, teacher: Array) -> Array:
        return jnp.mean(jnp.sum((student - teacher) ** 2, axis=-1))


def _rows(images: Array) -> Array:
    room = 3 * images.shape[2] // 5
    return images[:, -1].reshape(images.shape[0], -1)[:, : 5 * room].reshape(-1, room, 5)


def _centres(height: int, width: int) -> Array:
    across, down = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
    return STRIDE * (jnp.stack([across, down], axis=-1) + 0.5)


def decoded(sides: Any) -> Array:
    """Return boxes ``[H, W, 4]`` in pixels of the logarithms of the distances to their sides."""
    centres, far = _centres(*sides.shape[:2]), STRIDE * jnp.exp(jnp.clip(sides, -6, 6))
    return jnp.concatenate([centres - far[..., :2], centres + far[..., 2:]], axis=-1)


def giou(one: Array, other: Array) -> Array:
    """Return the generalised overlap of boxes ``[..., 4]``: intersection over union, less the hull's empty share.

    Example:
      >>> giou(jnp.array([0.0, 0, 2, 2]), jnp.array([2.0, 0, 4, 2])).tolist()
      0.0

    Source: H. Rezatofighi et al., Generalized intersection over union, 2019.
    """
    inner = jnp.prod(
        jnp.maximum(jnp.minimum(one[..., 2:], other[..., 2:]) - jnp.maximum(one[..., :2], other[..., :2]), 0), axis=-1
    )
    union = sum(jnp.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (one, other)) - inner
    hull = jnp.prod(jnp.maximum(one[..., 2:], other[..., 2:]) - jnp.minimum(one[..., :2], other[..., :2]), axis=-1)
    return inner / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of a box with others ``[N, 4]``.

    Example:
      >>> overlaps(np.array([0.0, 0, 2, 2]), np.array([[0.0, 0, 2, 1], [5, 5, 6, 6]])).tolist()
      [0.5, 0.0]
    """
    inner = np.prod(np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0), axis=1)
    return inner / (np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - inner)


def average_precision(found: list[np.ndarray], rows: np.ndarray, classes: int, least: float = 0.5) -> float:
    """Return the mean over classes of the area under precision by recall, precision made falling.

    Args:
      found: boxes of each image, as `Boxes.found` returns them.
      rows: the true ones ``[N, room, 5]``, as `lepton_jax.data.bccd.boxes_of` returns them.
      classes: how many; those without a true box do not count.
      least: a true box is found by the first, of those with more probability first, that overlaps it so much.

    Example:
      >>> average_precision([np.array([[0, 0.9, 0, 0, 2, 2]])], np.array([[[1, 0, 0, 2, 2], [1, 5, 5, 6, 6]]]), 1)
      0.5
    """
    areas = []
    for label in range(classes):
        truths = [row[row[:, 0] == label + 1, 1:] for row in rows]
        total = sum(map(len, truths))
        if not total:
            continue
        mine = sorted(
            ((box[1], number, box[2:]) for number, some in enumerate(found) for box in some if box[0] == label),
            key=lambda one: -one[0],
        )
        taken = [np.zeros(len(truth), bool) for truth in truths]
        hits = np.zeros(len(mine))
        for place, (_, number, box) in enumerate(mine):
            shares = overlaps(box, truths[number]) if len(truths[number]) else np.zeros(0)
            if shares.size and shares.max() >= least and not taken[number][shares.argmax()]:
                taken[number][shares.argmax()] = hits[place] = 1
        right = np.cumsum(hits)
        precision = np.maximum.accumulate((right / np.arange(1, len(mine) + 1))[::-1])[::-1]
        areas.append(float(np.sum(precision * hits) / total))
    return float(np.mean(areas)) if areas else 0.0
