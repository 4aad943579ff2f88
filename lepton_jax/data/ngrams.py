"""Texts as sets of words, pairs of words and parts of words, numbered by hashing."""

import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from lepton_jax.core.arguments import checked

_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
_PARTS = (3, 4, 5)


@checked
def words_of(text: str) -> list[str]:
    """Return a text's words, numbers and signs, in small letters.

    Example:
      >>> words_of("Up 3% at Dal's!")
      ['up', '3', '%', 'at', 'dal', "'", 's', '!']
    """
    return _WORD.findall(text.lower())


@checked
def ngrams(words: Sequence[str]) -> list[str]:
    """Return words, pairs of neighbours and of the next but one, and the parts of words of 3 to 5 letters, ends marked.

    Example:
      >>> ngrams(["go", "now"])
      ['go', 'now', 'go now', '<go', 'go>', '<no', 'now', 'ow>', '<now', 'now>']
    """
    pairs = [" ".join(pair) for distance in (1, 2) for pair in zip(words, words[distance:])]
    marked = [f"<{word}>" for word in words]
    parts = [
        word[at : at + size] for word in marked for size in _PARTS if size < len(word) for at in range(len(word) - size + 1)
    ]
    return [*words, *pairs, *parts]


@checked
def hashed(texts: Iterable[Sequence[str]], tokens: int, length: int) -> np.ndarray:
    """Return the features of texts as tokens, each once a text; 0 is padding, at the end.

    A feature's token is ``1 + crc32 mod (tokens - 1)``: no vocabulary is kept, and rare features share tokens.

    Args:
      texts: the features of each.
      tokens: how many there are, padding among them.
      length: tokens of a text; what is beyond is cut off.

    Returns:
      float32 ``[N, length, 1, 1]``, whole numbers; see `lepton_jax.models.as_tokens`.

    Example:
      >>> hashed([["a", "a"], []], 100, 3)[..., 0, 0].tolist()
      [[46.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    rows = [[1 + zlib.crc32(one.encode()) % (tokens - 1) for one in dict.fromkeys(text)][:length] for text in texts]
    images = np.zeros((len(rows), length, 1, 1), np.float32)
    for image, row in zip(images, rows):
        image[: len(row), 0, 0] = row
    return images
