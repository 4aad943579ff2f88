"""Questions of a bank's customers with their intents."""

import os
from pathlib import Path

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import read_lines
from lepton_jax.data.dataset import Dataset, Split
from lepton_jax.data.ngrams import hashed, ngrams, words_of

_FILES = ("train.tsv", "val.tsv", "test.tsv")


@checked
def load_banking77(folder: str | os.PathLike[str], *, tokens: int = 32768, length: int = 256) -> Dataset:
    """Load ``train.tsv``, ``val.tsv`` (for choices) and ``test.tsv``: a line is a question, a tab, and its intent's number.

    Line n of ``labels.txt``, from 0, names intent n.

    Args:
      folder: where the files are.
      tokens: features of questions are hashed to so many; see `ngrams` and `hashed`.
      length: features of a question at most.

    Returns:
      As many classes as there are names. Tokens stand in `images`, as whole float32 numbers ``[N, length, 1, 1]``.

    Raises:
      FileNotFoundError: if a file is missing, with where to get it.
      ValueError: for a line of another form.

    Example:
      >>> load_banking77("nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: I. Casanueva et al., Efficient intent detection with dual sentence encoders, 2020.
    """
    get = "Get the Banking77 questions as TSV files (question, tab, number of the intent), and labels.txt with a name a line."
    parts = read_lines(Path(folder), _FILES, 2, get)
    [names] = [[line for [line] in some] for some in read_lines(Path(folder), ("labels.txt",), 1, get)]
    splits = []
    for lines in parts:
        images = hashed((ngrams(words_of(text)) for text, _ in lines), tokens, length)
        splits.append(Split(images=images, labels=np.array([int(label) for _, label in lines], np.int32)))
    train, validation, test = splits
    return Dataset(name="banking77", num_classes=len(names), train=train, validation=validation, test=test)
