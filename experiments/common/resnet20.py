"""What studies share of a ResNet-20 that others trained on CIFAR-10: model, weights, images, tuning, accuracy."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Batch, Split, load_cifar10_jpeg, load_cifar10_subset, standardize
from lepton_jax.interchange import load_torch_resnet
from lepton_jax.models import ResNetCifar
from lepton_jax.training import batch_source

MODEL = ResNetCifar(depth=20, shortcut="pad")
FOLDER = Path(os.environ.get("TFDS_DATA_DIR", "data/tfds")).parent
"""Where `weights/`, `cifar10_subset/` and `cifar10_jpeg/` are looked for by default."""
_EVAL_BATCH, _PIXELS, _SHIFT = 250, 32, 4


def load_variables(data: Path, model: ResNetCifar = MODEL) -> PyTree:
    """Return the published parameters and batch statistics, as arrays of JAX.

    Args:
      data: a folder with `weights/resnet20_cifar10.npz`.
      model: whose weights these are.
    """
    return jax.tree.map(jnp.asarray, load_torch_resnet(data / "weights" / "resnet20_cifar10.npz", model))


def lossless_splits(data: Path) -> tuple[Split, Split]:
    """Return the 4,000 training and 1,000 test images of `cifar10_subset`, standardised as the network was trained."""
    subset = load_cifar10_subset(data / "cifar10_subset")
    train, test = (Split(images=standardize(split.images), labels=split.labels) for split in (subset.train, subset.test))
    return train, test


def jpeg_split(data: Path, count: int, seed: int) -> Split:
    """Return some training images of the JPEG-compressed CIFAR-10, standardised, drawn without replacement."""
    split = load_cifar10_jpeg(data / "cifar10_jpeg" / "cifar10_jpeg.npz", count, seed=seed)
    return Split(images=standardize(split.images), labels=split.labels)


def augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip half of the images and shift each by up to 4 pixels.

    Example:
      >>> augmented(np.ones((2, 32, 32, 3), np.float32), np.random.default_rng(0)).shape
      (2, 32, 32, 3)
    """
    images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images, images[:, :, ::-1])
    padded = np.pad(images, ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)))
    starts = rng.integers(0, 2 * _SHIFT + 1, (len(images), 2))
    return np.stack([image[r : r + _PIXELS, c : c + _PIXELS] for image, (r, c) in zip(padded, starts)])


def momentum(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Return the optimiser of all tuning: SGD with Nesterov momentum 0.9, half a cosine, decay 5e-4."""
    rate = optax.cosine_decay_schedule(learning_rate, steps)
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9, nesterov=True))


def batches(split: Split, *, steps: int, batch_size: int, seed: int, start: int = 0) -> Iterator[Batch]:
    """Yield augmented batches from a step on, each epoch in an order of its own.

    Args:
      split: standardised images.
      steps: of an epoch, at most what the images suffice for.
      batch_size: images a step.
      seed: of order, flips and shifts.
      start: the first step whose batch is given.
    """
    for epoch in count(start // steps):
        rng = np.random.default_rng([seed, epoch])
        orders = rng.permutation(len(split))[: steps * batch_size].reshape(steps, batch_size)
        for number, chosen in enumerate(orders, epoch * steps):
            images = augmented(split.images[chosen], rng)  # those before the first are drawn too, so that the rest are the same
            if number >= start:
                yield Batch(images, split.labels[chosen], np.ones(batch_size, bool))


def tuning_batches(split: Split, *, steps: int, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """Return `batches` by step."""
    return batch_source(lambda start: batches(split, steps=steps, batch_size=batch_size, seed=seed, start=start))


def count_right(apply: Callable[[PyTree, Array], Array], variables: PyTree, split: Split, batch_size: int = _EVAL_BATCH) -> int:
    """Return how many images are classified rightly; compiled once for the same function and shapes.

    Example:
      >>> split = Split(images=np.eye(3, dtype=np.float32)[:, None, None], labels=np.array([0, 1, 1], np.int32))
      >>> count_right(lambda variables, images: images[:, 0, 0], {}, split)
      2
    """
    return sum(
        int(_right(apply, variables, split.images[i : i + batch_size], split.labels[i : i + batch_size]))
        for i in range(0, len(split), batch_size)
    )


@partial(jax.jit, static_argnums=0)
def _right(apply: Any, variables: PyTree, images: Array, labels: Array) -> Array:
    return jnp.sum(apply(variables, images).argmax(-1) == labels)
