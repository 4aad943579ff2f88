"""Classes of inputs of two kinds, each of them missing and noisy once."""

import dataclasses

import numpy as np

from experiments.common.objectives.classes import Classes, outputs_of
from lepton_jax.data import Split
from lepton_jax.data.av_digits import PIXELS
from lepton_jax.training import ModelApply, TrainState


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
