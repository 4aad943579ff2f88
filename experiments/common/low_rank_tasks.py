"""What is factorized in the study of low rank: a ResNet-20 that others trained, and a character transformer."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import char_lm, resnet20, unfinished
from experiments.common.char_lm import CharLM
from lepton_jax.core import typing
from lepton_jax.core.errors import collect
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.graph.moments import Moments, second_moments
from lepton_jax.lowrank import dense_macs, squared_gradients
from lepton_jax.training import (
    FitSettings,
    LossFn,
    TrainState,
    classification_loss,
    create,
    cross_entropy,
    linen_apply,
    make_train_step,
)

Figures = dict[str, float]
"""``figure``, as drawn (percent of images, or perplexity), and ``loss``, in nats."""
Tuning = tuple[LossFn, optax.GradientTransformation, Callable[[int], Any], FitSettings]
"""The loss, the optimiser, the batches by step, how many steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet20:
    """Published weights on CIFAR-10; figures on 1,000 lossless test images."""

    calibration: int = 500
    """Training images for second moments and Fisher information."""
    tuning: Literal["lossless", "jpeg"] = "lossless"
    """Images to tune on: the 4,000 lossless ones, or some of the 50,000 that were JPEG-compressed."""
    tuning_images: int = 4000
    batch_size: int = 100
    learning_rate: float = 0.01
    """Of one epoch of SGD with momentum, half a cosine."""

    def load(self, data: Path, run_dir: Path, seed: int) -> "Resnet":
        """Return the task; the same network for all seeds."""
        del run_dir
        return Resnet(self, data, seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Characters:
    """A transformer on tinyshakespeare, trained here; figures on the last 5 % of the text."""

    model: CharLM = dataclasses.field(default_factory=CharLM)
    calibration: int = 64
    """Windows of training text for second moments and Fisher information."""
    tuning_steps: int = 490
    """About one epoch of the training text."""
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        with collect("Characters") as problems:
            if self.calibration < 1 or self.tuning_steps < 1:
                problems.append(f"calibration and tuning_steps: at least 1; got {self.calibration} and {self.tuning_steps}")

    def load(self, data: Path, run_dir: Path, seed: int) -> "Text":
        """Return the task, its model trained from this seed or read from the run's folder."""
        return Text(self, data, run_dir, seed)


class Task(ABC):
    """A trained model, its data, and how it is tuned.

    Attributes:
      params: dense.
      model_state: the model's other collections.
      select: the weights that may be factorized.
      batches: of calibration inputs.
      seed: of the tuning.
    """

    params: PyTree
    model_state: PyTree
    select = "*/kernel"
    batches: list[Any]
    seed: int

    @cached_property
    def macs(self) -> dict[typing.Path, float]:
        """Multiply-accumulates of one example (image or window), by leaf."""
        return dense_macs(self.apply, self.params, self.batches[0][:1])

    @cached_property
    def moments(self) -> dict[typing.Path, Moments]:
        """Second moments of the inputs of every layer that may be factorized."""
        return dict(second_moments(self.apply, self.params, self.batches, self.select))

    @cached_property
    def fisher(self) -> dict[typing.Path, Array]:
        """Squared gradients of the loss."""
        return squared_gradients(self.loss, self.params, self.small_batches(), self.select)

    @abstractmethod
    def apply(self, params: PyTree, x: Array) -> Any:
        """Return the logits, in evaluation mode."""

    @abstractmethod
    def loss(self, params: PyTree, *batch: Array) -> Array:
        """Return the mean loss of a batch."""

    @abstractmethod
    def small_batches(self) -> Iterator[Any]:
        """Batches for Fisher information: small, to be near that of single examples."""

    @abstractmethod
    def evaluate(self, params: PyTree, model_state: PyTree) -> Figures:
        """Return figure and loss of dense parameters on test data."""

    @abstractmethod
    def tuning(self, max_steps: int | None) -> Tuning:
        """Return how it is tuned."""

    def tune(self, params: PyTree, transform: Transform, max_steps: int | None, name: str, run_dir: Path) -> TrainState:
        """Train factored parameters; an interrupted training goes on from its checkpoint in the run's folder."""
        loss, tx, batch_at, settings = self.tuning(max_steps)
        step = make_train_step(loss, tx, transform)
        state = create(params, self.model_state, tx, transform, jax.random.key(self.seed))
        return unfinished.train(state, step, batch_at, settings, name=name, seeds=[self.seed], run_dir=run_dir)


class Resnet(Task):
    """ResNet-20 on CIFAR-10."""

    def __init__(self, settings: ResNet20, data: Path, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.train, self.test = resnet20.lossless_splits(data)
        jpeg = settings.tuning == "jpeg"
        self.images = resnet20.jpeg_split(data, settings.tuning_images, seed) if jpeg else self.train
        variables = resnet20.load_variables(data)
        self.params, self.model_state = variables["params"], {"batch_stats": variables["batch_stats"]}
        self.batches = [self.train.images[i : i + 100] for i in range(0, settings.calibration, 100)]
        self._totals = jax.jit(self._sums)

    def apply(self, params: PyTree, x: Array) -> Any:
        return resnet20.MODEL.apply({"params": params, **self.model_state}, x)

    def loss(self, params: PyTree, *batch: Array) -> Array:
        images, labels = batch
        return jnp.mean(cross_entropy(self.apply(params, images), labels))

    def small_batches(self) -> Iterator[Any]:
        for i in range(0, self.settings.calibration, 5):
            yield self.train.images[i : i + 5], self.train.labels[i : i + 5]

    def _sums(self, params: PyTree, model_state: PyTree, images: Array, labels: Array) -> tuple[Array, Array]:
        logits: Any = resnet20.MODEL.apply({"params": params, **model_state}, images)
        return jnp.sum(logits.argmax(-1) != labels), jnp.sum(cross_entropy(logits, labels))

    def evaluate(self, params: PyTree, model_state: PyTree) -> Figures:
        parts = [
            self._totals(params, model_state, self.test.images[i : i + 250], self.test.labels[i : i + 250])
            for i in range(0, len(self.test), 250)
        ]
        wrong, loss = (sum(float(part[k]) for part in parts) / len(self.test) for k in (0, 1))
        return {"figure": 100 * wrong, "loss": loss}

    def tuning(self, max_steps: int | None) -> Tuning:
        settings = self.settings
        steps = min(settings.tuning_images, len(self.images)) // settings.batch_size
        steps = steps if max_steps is None else min(steps, max_steps)
        loss = classification_loss(linen_apply(resnet20.MODEL))
        batch_at = resnet20.tuning_batches(self.images, steps=steps, batch_size=settings.batch_size, seed=self.seed)
        return loss, resnet20.momentum(settings.learning_rate, steps), batch_at, FitSettings.by_epochs(1, steps)


class Text(Task):
    """A character transformer."""

    def __init__(self, settings: Characters, data: Path, run_dir: Path, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.text = char_lm.load_text(data / "tinyshakespeare" / "input.txt")
        self.model = settings.model.model(len(self.text.characters))
        self.params = char_lm.train(seed, settings.model, self.text, run_dir / "char_lm")["params"]
        self.model_state = {}
        several = dataclasses.replace(settings.model, batch_size=settings.calibration)
        self.windows = next(char_lm.batches(self.text.train, several, 12345))
        self.batches = [self.windows[i : i + 16, :-1] for i in range(0, len(self.windows), 16)]

    def apply(self, params: PyTree, x: Array) -> Any:
        return self.model.apply({"params": params}, x)

    def loss(self, params: PyTree, *batch: Array) -> Array:
        return char_lm.next_token_loss(self.model.apply)(params, {}, batch[0], jax.random.key(0))[0]

    def small_batches(self) -> Iterator[Any]:
        for window in self.windows:
            yield window[None]

    def evaluate(self, params: PyTree, model_state: PyTree) -> Figures:
        length = self.settings.model.length
        loss = char_lm.cross_entropy_of(self.model.apply, {"params": params}, self.text.test, length)
        return {"figure": float(np.exp(loss)), "loss": loss}

    def tuning(self, max_steps: int | None) -> Tuning:
        settings = self.settings
        steps = settings.tuning_steps if max_steps is None else min(settings.tuning_steps, max_steps)
        batch_at = char_lm.batches_by_step(self.text.train, settings.model, 1000 + self.seed)
        tx = settings.model.optimizer(steps, settings.learning_rate)
        return char_lm.next_token_loss(self.model.apply), tx, batch_at, char_lm.settings(steps)
