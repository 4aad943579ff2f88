"""Byte-pair pieces: texts as numbers of often recurring parts of words."""

import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole

_WORD = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\w\s]|\s|_")
SPECIAL = 4
"""Tokens before the pieces: padding, a sign that was not learned, the beginning and the end of a text."""
UNKNOWN, BEGIN, END = 1, 2, 3


class Pieces:
    """Cut texts into pieces that were learned, and put them together again.

    A word, with the space before it, begins as its signs; the learned pairs are merged in the order in which they were learned.
    A text of known signs comes back as it was.

    Args:
      signs: single characters.
      merges: pairs of pieces, in their order.

    Example:
      >>> pieces = Pieces.learn(["low lower", "lower low"], size=14)
      >>> pieces.merges
      [('l', 'o'), ('lo', 'w'), (' ', 'low'), ('e', 'r')]
      >>> pieces.encode("lower"), pieces.decode(pieces.encode("lower"))
      ([11, 13], 'lower')

    Source: R. Sennrich et al., Neural machine translation of rare words with subword units, 2016.
    """

    @checked
    def __init__(self, signs: Sequence[str], merges: Sequence[tuple[str, str]]) -> None:
        self.merges = [(left, right) for left, right in merges]
        self._names = [*signs, *(left + right for left, right in self.merges)]
        self._numbers = {name: number + SPECIAL for number, name in enumerate(self._names)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._known: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return SPECIAL + len(self._names)

    @classmethod
    @checked
    def learn(cls, texts: Iterable[str], *, size: int) -> "Pieces":
        """Learn from texts: again and again the pair that occurs most becomes a piece; of equals, the first by the alphabet.

        Args:
          texts: to learn from.
          size: tokens in all, with the four special ones; fewer where every word has become a piece.

        Raises:
          ValueError: if the signs alone are more.
        """
        counts = Counter(word for text in texts for word in _WORD.findall(text))
        signs = sorted({sign for word in counts for sign in word})
        check_whole("Pieces.learn: size", size, SPECIAL + len(signs))
        return cls(signs, _merges(counts, size - SPECIAL - len(signs)))

    @checked
    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        return [number for word in _WORD.findall(text) for number in self._word(word)]

    @checked
    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, up to the end; unknown signs become question marks."""
        parts = []
        for token in tokens:
            if token == END:
                break
            if token >= SPECIAL:
                parts.append(self._names[token - SPECIAL])
            elif token == UNKNOWN:
                parts.append("?")
        return "".join(parts).strip()

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            parts = list(word)
            while pairs := [(self._ranks[pair], pair) for pair in itertools.pairwise(parts) if pair in self._ranks]:
                parts = _merged(parts, min(pairs)[1])
            self._known[word] = [self._numbers.get(part, UNKNOWN) for part in parts]
        return self._known[word]


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with every such pair made one, from the left."""
    made, at = [], 0
    while at < len(parts):
        both = tuple(parts[at : at + 2]) == pair
        made.append(pair[0] + pair[1] if both else parts[at])
        at += 2 if both else 1
    return made


def _merges(counts: Counter[str], most: int) -> list[tuple[str, str]]:
    """The pairs in the order in which they are merged; a heap keeps counts, old ones of which are passed over."""
    words = [(list(word), count) for word, count in counts.items()]
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for number, (parts, count) in enumerate(words):
        for pair in itertools.pairwise(parts):
            pairs[pair] += count
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    made: list[tuple[str, str]] = []
    while heap and len(made) < most:
        count, best = heapq.heappop(heap)
        if -count != pairs[best] or not count:
            continue
        made.append(best)
        changed = set()
        for number in where.pop(best):
            parts, times = words[number]
            new = _merged(parts, best)
            for pair in itertools.pairwise(parts):
                pairs[pair] -= times
                changed.add(pair)
            for pair in itertools.pairwise(new):
                pairs[pair] += times
                where[pair].add(number)
                changed.add(pair)
            words[number] = (new, times)
        for pair in changed:
            heapq.heappush(heap, (-pairs[pair], pair))
    return made
