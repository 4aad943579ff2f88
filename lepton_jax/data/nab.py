"""Windows of time series, some of whose points are anomalies."""

import itertools
import os

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import read_archive
from lepton_jax.data.dataset import Dataset, Split

_KNOWN = 0.15


@checked
def load_nab(path: str | os.PathLike[str], *, window: int = 96) -> Dataset:
    """Load time series in windows, each of which ends at the point that it is of.

    A series is shifted and scaled by mean and deviation of its first 15 %, and cut off at 6 deviations. There are no labels to
    train by: the windows that end there are the training split; the others are for choices or for the final figure, series by
    series.

    Args:
      path: an npz archive: series k is ``value[offsets[k]:offsets[k + 1]]``, likewise ``label`` (1: anomaly); ``split``, 1 for
        series for choices, 2 for series for the final figure.
      window: points of a window.

    Returns:
      float32 ``[N, window + 1, 1, 1]``: the points, oldest first, and the number of the series. The label is that of the newest
      point; in the training split 0.

    Raises:
      FileNotFoundError: if there is no such file, with where to get it.
      ValueError: if the archive lacks an array, or a series is too short.

    Example:
      >>> load_nab("nowhere.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: A. Lavin and S. Ahmad, Evaluating real-time anomaly detection algorithms: the Numenta Anomaly Benchmark, 2015.
    """
    get = "Get the series of the Numenta Anomaly Benchmark as an npz archive of value, label, offsets and split."
    read = read_archive(path, ("value", "label", "offsets", "split"), get)
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {0: [], 1: [], 2: []}
    for number, (start, stop) in enumerate(itertools.pairwise(read["offsets"])):
        value, label = read["value"][start:stop].astype(np.float64), read["label"][start:stop].astype(np.int32)
        known = int(_KNOWN * len(value))
        if known <= window:
            raise ValueError(f"{path}: series {number} has {len(value)} points, too few for windows of {window}.")
        scaled = np.clip((value - value[:known].mean()) / (value[:known].std() + 1e-9), -6, 6)
        windows = np.lib.stride_tricks.sliding_window_view(scaled, window)
        whole = np.concatenate([windows, np.full((len(windows), 1), number)], axis=1).astype(np.float32)[..., None, None]
        first = known - window + 1
        found[0].append((whole[:first], np.zeros(first, np.int32)))
        found[int(read["split"][number])].append((whole[first:], label[known:]))
    splits = [Split(images=_joined(some, 0), labels=_joined(some, 1)) for some in found.values()]
    return Dataset(name="nab", num_classes=2, train=splits[0], validation=splits[1], test=splits[2])


def _joined(parts: list[tuple[np.ndarray, np.ndarray]], which: int) -> np.ndarray:
    return np.concatenate([part[which] for part in parts])
