"""Headlines of financial news with the sentiment towards a company or an asset that they name."""

import os
from pathlib import Path

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import read_lines
from lepton_jax.data.dataset import Dataset, Split
from lepton_jax.data.ngrams import hashed, ngrams, words_of

_FILES = ("train.tsv", "val.tsv", "test.tsv")
_NEAR = 5
"""Words on either side of the entity that are features of that side."""


@checked
def load_sentfin(folder: str | os.PathLike[str], *, tokens: int = 65536, length: int = 256) -> Dataset:
    """Load ``train.tsv``, ``val.tsv`` (for choices) and ``test.tsv``: a line is a headline, an entity, and its sentiment.

    Features are those of `entity_features`.

    Args:
      folder: where the files are.
      tokens: features are hashed to so many.
      length: features of a headline at most.

    Returns:
      Three classes: negative, neutral, positive. Tokens stand in `images`, as whole float32 numbers ``[N, length, 1, 1]``.

    Raises:
      FileNotFoundError: if a file is missing, with where to get it.
      ValueError: for a line of another form, or a label out of range.

    Example:
      >>> load_sentfin("nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: A. Sinha et al., SEntFiN 1.0: entity-aware sentiment analysis for financial news, 2022.
    """
    get = "Get the SEntFiN 1.0 headlines as TSV files: headline, entity, and 0 (negative), 1 or 2 (positive)."
    splits = []
    for lines in read_lines(Path(folder), _FILES, 3, get):
        images = hashed((entity_features(headline, entity) for headline, entity, _ in lines), tokens, length)
        splits.append(Split(images=images, labels=np.array([int(label) for *_, label in lines], np.int32)))
    train, validation, test = splits
    return Dataset(name="sentfin", num_classes=3, train=train, validation=validation, test=test)


@checked
def entity_features(headline: str, entity: str) -> list[str]:
    """Return features that say what stands left and right of an entity, in whose place stands a sign.

    The nearest five words of either side with that side, the nearest and the nearest two of either side, and `ngrams` of all.
    An entity that does not occur leaves `ngrams` of the headline.

    Example:
      >>> entity_features("Infosys up", "Infosys")[:3]
      ['right up', 'next right up', '@entity']
    """
    at = headline.lower().find(entity.lower())
    if at < 0 or not entity:
        return ngrams(words_of(headline))
    left, right = words_of(headline[:at]), words_of(headline[at + len(entity) :])
    sides = [f"left {word}" for word in left[-_NEAR:]] + [f"right {word}" for word in right[:_NEAR]]
    for count in (1, 2):
        sides += [f"next left {' '.join(left[-count:])}"] if len(left) >= count else []
        sides += [f"next right {' '.join(right[:count])}"] if len(right) >= count else []
    return [*sides, *ngrams([*left, "@entity", *right])]
