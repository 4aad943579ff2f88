"""X-ray images of chests, healthy or with pneumonia."""

import os

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import read_archive
from lepton_jax.data.dataset import Dataset, Split

_PARTS = ("train", "val", "test")


@checked
def load_pneumonia(path: str | os.PathLike[str]) -> Dataset:
    """Load PneumoniaMNIST, or another set of MedMNIST with two classes of grey images.

    Args:
      path: an npz archive of ``{train,val,test}_images`` uint8 ``[N, H, W]`` and ``{train,val,test}_labels`` (1: pneumonia).

    Returns:
      Images float32 ``[N, H, W, 1]`` in [0, 1], two classes.

    Raises:
      FileNotFoundError: if there is no such file, with where to get it.
      ValueError: if the archive lacks an array.

    Example:
      >>> load_pneumonia("nowhere.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: J. Yang et al., MedMNIST v2, 2023.
    """
    names = tuple(f"{part}_{what}" for part in _PARTS for what in ("images", "labels"))
    read = read_archive(path, names, "Get pneumoniamnist.npz of MedMNIST, and give its path.")
    train, validation, test = (
        Split(
            images=read[f"{part}_images"].astype(np.float32)[..., None] / np.float32(255),
            labels=read[f"{part}_labels"].reshape(-1).astype(np.int32),
        )
        for part in _PARTS
    )
    return Dataset(name="pneumonia", num_classes=2, train=train, validation=validation, test=test)
