"""Examples from files of arrays, in batches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lepton_jax.interchange.npz import read_npy

_BATCH = 64


def batches_of(files: Sequence[Path], option: str) -> list[tuple[np.ndarray, ...]]:
    """Return batches of at most 64 examples, each a tuple with one array for every file.

    Args:
      files: .npy files, one for each input of a model.
      option: of the command line that named them, for the error.

    Raises:
      ValueError: if they have not all as many examples, or none.
    """
    arrays = [read_npy(path) for path in files]
    if not arrays:
        return []
    lengths = sorted({array.shape[0] if array.shape else 0 for array in arrays})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"{option} needs examples of one number for every input; got {lengths}.")
    return [tuple(array[start : start + _BATCH] for array in arrays) for start in range(0, lengths[0], _BATCH)]
