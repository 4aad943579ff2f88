"""Lossless parts of CIFAR-10 kept as PNG sheets of 1,000 images, and per-channel standardisation."""

import io
import os
from pathlib import Path

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.extras import import_extra
from lepton_jax.data.dataset import Dataset, Split
from lepton_jax.data.split import from_arrays

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Channel means of ImageNet in [0, 1]; many published CIFAR-10 networks were trained with them as well."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel standard deviations of ImageNet in [0, 1]."""

_SHEET, _TRAIN_LABELS = 1000, 50_000


@checked
def load_cifar10_subset(folder: str | os.PathLike[str], *, validation: int = 0) -> Dataset:
    """Load the sheets of a folder: ``cifar10_batch_0.png`` ... are training images, ``cifar10_batch_50.png`` test images.

    A sheet has one row of 32 x 32 RGB pixels an image; sheet k of 0 to 49 holds train[1000 k : 1000 (k + 1)], and
    ``labels_51000.npy`` the 50,000 training labels, then the 1,000 test labels.

    Args:
      folder: where the sheets and the labels are.
      validation: how many training examples to set aside, stratified and always the same.

    Returns:
      Images float32 ``[N, 32, 32, 3]`` in [0, 1], ten classes.

    Raises:
      FileNotFoundError: if the folder lacks the labels, the test sheet, or every training sheet.

    Example:
      >>> load_cifar10_subset("nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    root = Path(folder)
    sheets = [k for k in range(_TRAIN_LABELS // _SHEET) if _sheet(root, k).exists()]
    required = [root / "labels_51000.npy", _sheet(root, 50), *([] if sheets else [_sheet(root, 0)])]
    absent = [path.name for path in required if not path.exists()]
    if absent:
        raise FileNotFoundError(f"{root} has no {', '.join(absent)}; give the folder that holds the CIFAR-10 sheets.")
    labels = np.load(required[0], allow_pickle=False)
    train = np.concatenate([_read(_sheet(root, k)) for k in sheets])
    train_labels = np.concatenate([labels[_SHEET * k : _SHEET * (k + 1)] for k in sheets])
    test = (_read(_sheet(root, 50)), labels[_TRAIN_LABELS:])
    return from_arrays((train, train_labels), test, num_classes=10, validation=validation, name="cifar10_subset")


@checked
def load_cifar10_jpeg(path: str | os.PathLike[str], count: int, *, seed: int = 0) -> Split:
    """Load some of the 50,000 training images out of a file in which they are JPEG-compressed, and so not quite themselves.

    Args:
      path: an npz of ``train_jpeg`` (the bytes of all images), ``train_offsets`` (where each begins, and the end) and
        ``train_label``.
      count: how many, drawn without replacement.
      seed: of the draw.

    Returns:
      Images float32 ``[count, 32, 32, 3]`` in [0, 1], labels int32.

    Raises:
      ValueError: if there are fewer.

    Example:
      >>> load_cifar10_jpeg("nowhere.npz", 1)
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...
    """
    image_files = import_extra("PIL.Image", "data")
    with np.load(path, allow_pickle=False) as file:
        stream, offsets, labels = (file[f"train_{name}"] for name in ("jpeg", "offsets", "label"))
    if not 0 < count <= len(labels):
        raise ValueError(f"count: {path} has {len(labels)} training images; got {count}.")
    chosen = np.random.default_rng([seed, 7]).permutation(len(labels))[:count]
    images = [image_files.open(io.BytesIO(stream[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB") for i in chosen]
    return Split(
        images=np.stack([np.asarray(image, np.float32) for image in images]) / 255, labels=labels[chosen].astype(np.int32)
    )


@checked
def standardize(
    images: np.ndarray, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> np.ndarray:
    """Return ``(images - mean) / std`` for each channel.

    Args:
      images: float32 ``[..., C]`` in [0, 1].
      mean: C numbers.
      std: C numbers.

    Returns:
      float32, the same shape.

    Example:
      >>> standardize(np.full((1, 1, 2), 0.5, np.float32), mean=(0.5, 0.25), std=(0.1, 0.25))
      array([[[0., 1.]]], dtype=float32)
    """
    if not images.shape[-1] == len(mean) == len(std):
        raise ValueError(f"one mean and one std a channel; got {len(mean)} and {len(std)} for {images.shape[-1]} channels.")
    return (images - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def _sheet(root: Path, k: int) -> Path:
    return root / f"cifar10_batch_{k}.png"


def _read(path: Path) -> np.ndarray:
    image_files = import_extra("PIL.Image", "data")
    with image_files.open(path) as image:
        return np.asarray(image.convert("RGB")).reshape(_SHEET, 32, 32, 3)
