"""The networks that are quantized after training: one that others trained, or one that is trained here."""

import dataclasses
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from flax import linen as nn

from experiments.common import members, resnet20
from experiments.common.config import Adam, Digits, Tfds
from experiments.common.training_settings import Training
from lepton_jax.core.typing import PyTree
from lepton_jax.data import Split
from lepton_jax.graph import fold_batch_norm
from lepton_jax.graph.trace import Apply
from lepton_jax.training import stacked


class Network(NamedTuple):
    """A trained network with its batch norms folded, and images for it."""

    apply: Apply
    """``(variables, images) -> logits``."""
    variables: PyTree
    calibration: Split
    """Training images, in an order of the seed's own."""
    held_out: Split
    """Others, to choose by, in an order of the seed's own."""
    test: Split


class Source(Protocol):
    """Where a network comes from."""

    @property
    def title(self) -> str:
        """What it is."""

    @property
    def images(self) -> str:
        """Which images it is tested on."""

    def load(self, seed: int, calibration: int, max_steps: int | None, run_dir: Path) -> Network:
        """Return the network of a seed, with so many images to calibrate on; training stops after `max_steps`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A ResNet-20 that others trained on CIFAR-10: the same for every seed."""

    folder: Path
    """Holds `weights/resnet20_cifar10.npz` and `cifar10_subset/`."""

    title = "a ResNet-20 that others trained"
    images = "lossless CIFAR-10 test images"

    def load(self, seed: int, calibration: int, max_steps: int | None, run_dir: Path) -> Network:
        """Read weights and images; those to choose by are training images that are not calibrated on."""
        train, test = resnet20.lossless_splits(self.folder)
        order = np.random.default_rng(seed).permutation(len(train))
        some, others = train.take(order[:calibration]), train.take(order[calibration:])
        folded = fold_batch_norm(resnet20.MODEL.apply, resnet20.load_variables(self.folder), some.images)
        return Network(*folded, some, others, test)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A network that is trained here, another for every seed; those to choose by are validation images."""

    data: Digits | Tfds
    """Its images."""
    model: nn.Module
    """The network."""
    epochs: int
    """Passes over the training images."""
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Its rate falls over the epochs."""

    @property
    def title(self) -> str:
        """What it is."""
        return f"a {type(self.model).__name__} after {self.epochs} epochs"

    @property
    def images(self) -> str:
        """Which images it is tested on."""
        return f"test images of {self.data.name if isinstance(self.data, Tfds) else 'digits'}"

    def load(self, seed: int, calibration: int, max_steps: int | None, run_dir: Path) -> Network:
        """Train the seed's network."""
        dataset, name = self.data.load(), f"float, seed {seed}"
        settings = Training(
            name=name, data=self.data, model=self.model, epochs=self.epochs, max_steps=max_steps, scan=False
        )  # scan: not for convolutions
        args = (settings, dataset, self.optimizer, [seed])
        state = members.trained(*args, epochs=self.epochs, name=name, run_dir=run_dir)
        run, rng = stacked.member(state, 0), np.random.default_rng(seed)
        some = dataset.train.take(rng.permutation(len(dataset.train))[:calibration])
        held_out = dataset.validation.take(rng.permutation(len(dataset.validation)))
        folded = fold_batch_norm(self.model.apply, {"params": run.params, **run.model_state}, some.images)
        return Network(*folded, some, held_out, dataset.test)
