"""Sentences in English and German that are translations of each other."""

import functools
import gzip
import os
from pathlib import Path

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import check_files
from lepton_jax.data.dataset import Dataset, Split
from lepton_jax.data.pieces import END, Pieces

_FILES = ("train.tsv.gz", "val.tsv.gz", "test.tsv.gz")
_GET = "Get English and German pairs of tatoeba.org as TSV files in gzip (English, tab, German, tab, further German ones)."


@checked
def load_tatoeba(folder: str | os.PathLike[str], *, tokens: int = 4000, length: int = 16) -> Dataset:
    """Load ``train.tsv.gz``, ``val.tsv.gz`` (for choices) and ``test.tsv.gz`` as pairs of sentences in pieces.

    A line is an English sentence, a tab, and a German one; further German ones may follow, and are not used. Pieces are learned
    from both languages of the training part, see `Pieces`.

    Args:
      folder: where the files are.
      tokens: how many there are.
      length: of a training sentence, its end included; pairs with a longer one are left out. Others are never cut.

    Returns:
      Tokens stand in `images`, as whole float32 numbers ``[N, 2 length, 1, 1]``: the English sentence in the first half, the
      German one in the second, both closed by the token of the end and filled up with 0. Validation and test have a length of
      their own, that of their longest sentence. A label is the number of a pair.

    Raises:
      FileNotFoundError: if a file is missing, with where to get it.
      ValueError: for a line of another form.

    Example:
      >>> load_tatoeba("nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: tatoeba.org, CC BY 2.0 FR.
    """
    pieces = tatoeba_pieces(folder, tokens=tokens)
    splits = []
    for number, pairs in enumerate(_pairs(Path(folder))):
        sides = [tuple([*pieces.encode(text), END] for text in pair) for pair in pairs]
        kept = [both for both in sides if number or max(map(len, both)) <= length]
        room = length if number == 0 else max((len(side) for both in kept for side in both), default=length)
        images = np.zeros((len(kept), 2, room), np.float32)
        for image, both in zip(images, kept):
            for row, side in zip(image, both):
                row[: len(side)] = side
        splits.append(Split(images=images.reshape(-1, 2 * room, 1, 1), labels=np.arange(len(kept), dtype=np.int32)))
    train, validation, test = splits
    most = max(map(len, splits))
    return Dataset(name="tatoeba_en_de", num_classes=most, train=train, validation=validation, test=test)


@checked
def tatoeba_pieces(folder: str | os.PathLike[str], *, tokens: int = 4000) -> Pieces:
    """Return the pieces of `load_tatoeba`; learned once in a process.

    Args:
      folder: where the files are.
      tokens: how many there are.

    Example:
      >>> tatoeba_pieces("nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...
    """
    check_files(Path(folder), _FILES, _GET)
    return _learned(Path(folder).resolve(), tokens)


@functools.lru_cache(maxsize=4)
def _learned(folder: Path, tokens: int) -> Pieces:
    return Pieces.learn((text for pair in _pairs(folder)[0] for text in pair), size=tokens)


def _pairs(folder: Path) -> list[list[tuple[str, str]]]:
    """The two sentences of every line of every file."""
    check_files(folder, _FILES, _GET)
    parts = []
    for name in _FILES:
        text = gzip.decompress((folder / name).read_bytes()).decode()
        lines = [line.split("\t") for line in text.split("\n") if line]
        if wrong := [number for number, line in enumerate(lines, 1) if len(line) < 2]:
            raise ValueError(f"{folder / name}, line {wrong[0]}: must have 2 fields or more, with tabs between them.")
        parts.append([(source, target) for source, target, *_ in lines])
    return parts
