"""Spoken digits as pictures of their sound: frequency by time."""

import itertools
import os

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import read_archive
from lepton_jax.data.dataset import Dataset, Split

_FLOOR = 1e-6
"""Added to the power before the logarithm: -60 dB of full scale, below which clips differ by their silence."""
_LOWEST_HZ = 60.0


@checked
def load_fsdd(
    path: str | os.PathLike[str], *, frames: int = 48, bands: int = 32, test: int = 5, validation: int = 5
) -> Dataset:
    """Load the Free Spoken Digit Dataset: clips of six speakers, each of whom says every digit fifty times.

    A clip becomes `log_mel`, its first `frames` frames (0.78 s by default), silence behind a shorter one; all are shifted and
    scaled by one mean and one deviation, those of the training clips.

    Args:
      path: an npz archive: ``samples`` int16, clip i being ``samples[offsets[i]:offsets[i + 1]]``; ``label``, ``index`` (the
        number of the recording of a speaker and digit, from 0) and ``sample_rate``.
      frames: how many.
      bands: of frequency.
      test: recordings 0 to ``test - 1`` are for the final figure, as the set's authors do it (5: 300 clips).
      validation: as many recordings after these are for choices.

    Returns:
      Images float32 ``[N, frames, bands, 1]``, ten classes.

    Raises:
      FileNotFoundError: if there is no such file, with where to get it.
      ValueError: if the archive lacks an array, or nothing is left to train on.

    Example:
      >>> load_fsdd("nowhere.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: Z. Jackson et al., Free Spoken Digit Dataset, 2018; its test split.
    """
    get = (
        "Get the recordings of the Free Spoken Digit Dataset, and write them to an npz archive of samples, offsets, label, "
        "index and sample_rate."
    )
    names = ("samples", "offsets", "label", "index", "sample_rate")
    samples, offsets, labels, index, rate = read_archive(path, names, get).values()
    sound = samples.astype(np.float32) / 32768
    clips = (sound[start:stop] for start, stop in itertools.pairwise(offsets))
    images = np.stack([log_mel(clip, int(rate), frames=frames, bands=bands) for clip in clips])[..., None]
    held_out = test + validation
    places = {"test": index < test, "validation": (index >= test) & (index < held_out), "train": index >= held_out}
    if not places["train"].any():
        raise ValueError(f"{path}: test and validation leave no recordings to train on; they take {held_out} of each.")
    mean, deviation = images[places["train"]].mean(), images[places["train"]].std()
    images = ((images - mean) / deviation).astype(np.float32)
    parts = {name: Split(images=images[some], labels=labels[some].astype(np.int32)) for name, some in places.items()}
    return Dataset(name="fsdd", num_classes=10, **parts)


def log_mel(clip: np.ndarray, rate: int, *, frames: int, bands: int, window: int = 256, hop: int = 128) -> np.ndarray:
    """Return the logarithm of a clip's power in bands of the mel scale, frame by frame.

    ``log(1e-6 + sum_k M[b, k] |sum_n h_n x_{t hop + n} e^{-2 pi i k n / window}|^2 / sum_n h_n^2)`` with Hann's window h and
    triangles M of height 1, evenly spaced from 60 Hz to half the rate on ``2595 log10(1 + f / 700)``.

    Args:
      clip: samples in [-1, 1]; cut or filled up with silence.
      rate: samples a second.
      frames: how many.
      bands: how many.
      window: samples a frame.
      hop: samples from a frame to the next.

    Returns:
      float32 ``[frames, bands]``.

    Example:
      >>> log_mel(np.zeros(100, np.float32), 8000, frames=2, bands=3).round(2)
      array([[-13.82, -13.82, -13.82],
             [-13.82, -13.82, -13.82]], dtype=float32)
    """
    needed = window + hop * (frames - 1)
    sound = np.zeros(needed, np.float32)
    sound[: min(len(clip), needed)] = clip[:needed]
    shape = np.hanning(window + 1)[:-1].astype(np.float32)
    cut = sound[np.arange(frames)[:, None] * hop + np.arange(window)[None]]
    power = np.abs(np.fft.rfft(cut * shape[None], axis=1)) ** 2 / np.sum(shape**2)
    return np.log(_FLOOR + power @ mel_bands(rate, bands, window).T).astype(np.float32)


def mel_bands(rate: int, bands: int, window: int) -> np.ndarray:
    """Return the triangles ``[bands, window // 2 + 1]`` over the frequencies of a frame.

    Example:
      >>> mel_bands(8000, 4, 16).shape
      (4, 9)
    """
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (_LOWEST_HZ, rate / 2))
    edges = 700 * (10 ** (np.linspace(lowest, highest, bands + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(window, 1 / rate)[None]
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
    return np.maximum(np.minimum(rising, falling), 0)
