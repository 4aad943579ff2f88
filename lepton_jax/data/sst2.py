"""Sentences of film reviews with their sentiment, read from three files of tab-separated values."""

import collections
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import check_files
from lepton_jax.data.dataset import Dataset, Split

PADDING, UNKNOWN = 0, 1
"""The tokens that are no words."""
_FILES = ("train.tsv", "dev.tsv", "test.tsv")


@checked
def load_sst2(folder: str | os.PathLike[str], *, length: int = 40, tokens: int = 7000) -> Dataset:
    """Load ``train.tsv``, ``dev.tsv`` (for choices) and ``test.tsv``: a line is a sentence, a tab, and 0 or 1.

    The vocabulary is that of the training sentences alone: their most frequent words, numbered from 2. Token 0 is padding, at
    the end, token 1 every other word.

    Args:
      folder: where the files are.
      length: tokens of a sentence; what is beyond is cut off.
      tokens: how many there are at most, padding and the unknown word among them.

    Returns:
      Two classes, 1 is positive. Tokens stand in `images`, as whole float32 numbers ``[N, length, 1, 1]``;
      `lepton_jax.models.as_tokens` makes integers ``[N, length]`` of them.

    Raises:
      FileNotFoundError: if a file is missing, with where to get it.
      ValueError: for a line of another form, or a setting out of range.

    Example:
      >>> load_sst2("nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: R. Socher et al., Recursive deep models for semantic compositionality over a sentiment treebank, 2013; whole
    sentences, two classes: 6,920, 872 and 1,821.
    """
    for name, value, least in (("length", length, 1), ("tokens", tokens, 3)):
        if value < least:
            raise ValueError(f"load_sst2: {name} must be at least {least}; got {value}.")
    root = Path(folder)
    get = (
        "Get the binary Stanford Sentiment Treebank as TSV files of whole sentences (sentence, tab, 0 or 1), and give their "
        "folder."
    )
    check_files(root, _FILES, get)
    parts = [_read(root / name) for name in _FILES]
    numbers = vocabulary(parts[0][0], tokens)
    train, validation, test = (
        Split(images=as_images(sentences, numbers, length), labels=np.array(labels, np.int32)) for sentences, labels in parts
    )
    return Dataset(name="sst2", num_classes=2, train=train, validation=validation, test=test)


def vocabulary(sentences: Iterable[str], tokens: int) -> dict[str, int]:
    """Number the most frequent words from 2 to ``tokens - 1``, the most frequent first, equals by the alphabet.

    Example:
      >>> vocabulary(["a b", "c b", "a b"], 4)
      {'b': 2, 'a': 3}
    """
    counts = collections.Counter(word for sentence in sentences for word in sentence.split())
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(ordered[: tokens - 2], UNKNOWN + 1)}


def as_images(sentences: Sequence[str], numbers: dict[str, int], length: int) -> np.ndarray:
    """Return the sentences' tokens as float32 ``[N, length, 1, 1]``.

    Example:
      >>> as_images(["b z"], {"b": 2}, 3)[..., 0, 0].tolist()
      [[2.0, 1.0, 0.0]]
    """
    tokens = np.full((len(sentences), length, 1, 1), PADDING, np.float32)
    for row, sentence in zip(tokens, sentences):
        words = [numbers.get(word, UNKNOWN) for word in sentence.split()[:length]]
        row[: len(words), 0, 0] = words
    return tokens


def _read(path: Path) -> tuple[list[str], list[int]]:
    sentences, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        sentence, tab, label = line.rpartition("\t")
        if not tab or label not in ("0", "1"):
            raise ValueError(f"{path}, line {number}: must be a sentence, a tab, and 0 or 1; got {line[:80]!r}.")
        sentences.append(sentence)
        labels.append(int(label))
    return sentences, labels
