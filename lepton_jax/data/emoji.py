"""Small drawings with their names, and the categories of both."""

import os

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import read_archive
from lepton_jax.data.dataset import Dataset, Split
from lepton_jax.data.ngrams import hashed, ngrams, words_of


@checked
def load_emoji(path: str | os.PathLike[str], *, tokens: int = 4096, length: int = 96) -> Dataset:
    """Load emoji: drawings and names, in 9 categories.

    Args:
      path: an npz archive: ``image`` uint8 ``[N, H, W, 3]``, ``text``, ``category``, ``category_names``, ``split`` (0 train, 1
        validation, 2 test).
      tokens: features of names are hashed to so many; see `ngrams` and `hashed`.
      length: features of a name at most.

    Returns:
      As many classes as there are names of categories. Of each example the drawing's ``H W 3`` values, in [0, 1], and then the
      `length` tokens: float32 ``[N, H W 3 + length, 1, 1]``.

    Raises:
      FileNotFoundError: if there is no such file, with where to get it.
      ValueError: if the archive lacks an array.

    Example:
      >>> load_emoji("nowhere.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: drawings of Twemoji; names and categories of Unicode.
    """
    get = "Draw Twemoji at 32 x 32 pixels into an npz archive of image, text, category, category_names and split."
    read = read_archive(path, ("image", "text", "category", "category_names", "split"), get)
    drawings = read["image"].reshape(len(read["image"]), -1).astype(np.float32) / np.float32(255)
    names = hashed((ngrams(words_of(str(text))) for text in read["text"]), tokens, length)
    both = np.concatenate([drawings[..., None, None], names], axis=1)
    labels = read["category"].astype(np.int32)
    parts = [Split(images=both[some], labels=labels[some]) for some in (read["split"] == part for part in range(3))]
    classes = len(read["category_names"])
    return Dataset(name="emoji", num_classes=classes, train=parts[0], validation=parts[1], test=parts[2])
