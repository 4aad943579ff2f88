"""Pairs of a written and a spoken digit, one above the other in one picture."""

import itertools
import os

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import read_archive
from lepton_jax.data.dataset import Dataset, Split
from lepton_jax.data.fsdd import log_mel

PIXELS = 28
"""Rows of the image."""
FRAMES = 48
"""Rows of the sound, below the image."""
BANDS = 32
"""Columns: of the sound; four beyond the image are zero."""


@checked
def load_av_digits(path: str | os.PathLike[str], sounds: str | os.PathLike[str]) -> Dataset:
    """Load images of digits with clips of a voice that says them.

    Args:
      path: an npz archive: ``image`` uint8 ``[N, 28, 28]``, ``clip`` (its number among the sounds), ``label``, ``split`` (0
        train, 1 validation, 2 test).
      sounds: an npz archive: ``samples`` int16, clip i being ``samples[offsets[i]:offsets[i + 1]]``, and ``sample_rate``.

    Returns:
      Pictures float32 ``[N, 76, 32, 1]``, ten classes: the image in rows 0 to 27, in [0, 1], with four columns of zeros at its
      right; the sound's `log_mel` in rows 28 to 75, shifted and scaled by the training clips' mean and deviation.

    Raises:
      FileNotFoundError: if a file is missing, with where to get it.
      ValueError: if an archive lacks an array.

    Example:
      >>> load_av_digits("nowhere.npz", "fsdd.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: the images are those of Y. LeCun et al., MNIST, 1998, the clips of Z. Jackson et al., Free Spoken Digit Dataset,
    2018.
    """
    get = "Pair images of MNIST with clips of the Free Spoken Digit Dataset in an npz archive of image, clip, label and split."
    read = read_archive(path, ("image", "clip", "label", "split"), get)
    get = "Get the recordings of the Free Spoken Digit Dataset as an npz archive of samples, offsets and sample_rate."
    voice = read_archive(sounds, ("samples", "offsets", "sample_rate"), get)
    sound, rate = voice["samples"].astype(np.float32) / 32768, int(voice["sample_rate"])
    bounds = list(itertools.pairwise(voice["offsets"]))
    used = np.unique(read["clip"])
    pictures = np.zeros((len(bounds), FRAMES, BANDS), np.float32)
    for clip in used:
        pictures[clip] = log_mel(sound[slice(*bounds[clip])], rate, frames=FRAMES, bands=BANDS)
    trained = pictures[np.unique(read["clip"][read["split"] == 0])]
    pictures = ((pictures - trained.mean()) / trained.std()).astype(np.float32)
    both = np.zeros((len(read["label"]), PIXELS + FRAMES, BANDS, 1), np.float32)
    both[:, :PIXELS, :PIXELS, 0] = read["image"].astype(np.float32) / 255
    both[:, PIXELS:, :, 0] = pictures[read["clip"]]
    labels = read["label"].astype(np.int32)
    parts = [Split(images=both[some], labels=labels[some]) for some in (read["split"] == part for part in range(3))]
    return Dataset(name="av_digits", num_classes=10, train=parts[0], validation=parts[1], test=parts[2])
