"""Labelled images in memory: what every source returns and every batch is cut from."""

from dataclasses import dataclass

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Hold labelled images; images are float32 and normally in [0, 1], converted once when a set is loaded.

    Args:
      images: float32 ``[N, H, W, C]``.
      labels: int32 ``[N]``.

    Raises:
      ValueError: if ranks, lengths or dtypes are others.

    Example:
      >>> len(Split(images=np.zeros((3, 8, 8, 1), np.float32), labels=np.zeros(3, np.int32)))
      3
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        with collect("a split needs float32 images [N, H, W, C] and int32 labels [N]") as problems:
            if self.images.ndim != 4:
                problems.append(f"images: shape {self.images.shape}. A missing channel axis is added by images[..., None]")
            if self.labels.ndim != 1:
                problems.append(f"labels: shape {self.labels.shape}. One-hot labels become classes by labels.argmax(-1)")
            if self.images.shape[:1] != self.labels.shape[:1]:
                problems.append(f"{self.images.shape[:1]} images but {self.labels.shape[:1]} labels; give one label an image")
            if self.images.dtype != np.float32:
                problems.append(f"images: dtype {self.images.dtype}. `from_arrays` converts uint8 and other floats")
            if self.labels.dtype != np.int32:
                problems.append(f"labels: dtype {self.labels.dtype}. `from_arrays` converts other integers")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {'x'.join(map(str, self.images.shape[1:]))})"

    def take(self, indices: np.ndarray) -> "Split":
        """Return the images and labels at `indices`, in that order."""
        return Split(images=self.images[indices], labels=self.labels[indices])


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Hold the three splits of one set; `test` is for the final figure alone, choices are made on `validation`.

    Args:
      name: for tables and file names.
      num_classes: labels are in ``[0, num_classes)``.
      train: what is trained on.
      validation: carved out of the set's own training part; may be empty.
      test: never used for choices.

    Raises:
      ValueError: if a label is out of range.

    Example:
      >>> split = Split(images=np.zeros((2, 8, 8, 1), np.float32), labels=np.array([0, 1], np.int32))
      >>> dataset = Dataset(name="mine", num_classes=2, train=split, validation=split, test=split)
      >>> len(dataset.train), dataset
      (2, Dataset('mine', 2 classes, images of 8x8x1: 2 train, 2 validation, 2 test))
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for where in ("train", "validation", "test"):
            check_labels(getattr(self, where).labels, self.num_classes, where=f"{self.name}/{where}")

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.train.images.shape[1:]))
        parts = ", ".join(f"{len(getattr(self, part))} {part}" for part in ("train", "validation", "test"))
        return f"Dataset({self.name!r}, {self.num_classes} classes, images of {shape}: {parts})"


@checked
def check_labels(labels: np.ndarray, num_classes: int, *, where: str = "labels") -> None:
    """Raise unless every label is in ``[0, num_classes)``.

    Args:
      labels: integers ``[N]``.
      num_classes: how many classes there are.
      where: the name of the labels in the message.

    Raises:
      ValueError: with the labels that are out of range and the place of the first.

    Example:
      >>> check_labels(np.array([0, 9, 10]), 10, where="mine/train")
      Traceback (most recent call last):
      ...
      ValueError: mine/train: labels must be in [0, 10); got 10, first at index 2. Count classes from 0, or raise num_classes.
    """
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        values = np.unique(labels[bad])
        shown = ", ".join(str(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")
        raise ValueError(
            f"{where}: labels must be in [0, {num_classes}); got {shown}, first at index {int(bad.argmax())}. "
            "Count classes from 0, or raise num_classes."
        )


@checked
def active_features(images: np.ndarray) -> np.ndarray:
    """Find the inputs that are ever nonzero.

    A weight of an input that is zero in every training image gets no gradient: it stays at its initial value and survives
    pruning by magnitude, so it has to be masked from the start.

    Args:
      images: ``[N, H, W, C]``, the training images (of the split that is trained on).

    Returns:
      bool ``[H, W, C]``, True where some image is nonzero.

    Example:
      >>> active_features(np.array([[[[0.0], [1.0]]], [[[0.0], [0.0]]]]))[..., 0]
      array([[False,  True]])
    """
    return np.asarray((images != 0).any(axis=0))
