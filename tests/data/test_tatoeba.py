"""Pieces against byte-pair encoding as its authors write it, and pairs of sentences written by hand."""

import gzip
import re
from collections import Counter

import numpy as np
import pytest

from lepton_jax.data import Pieces, load_tatoeba, tatoeba_pieces
from lepton_jax.data.pieces import END, SPECIAL, UNKNOWN

RNG = np.random.default_rng(11)


def words(count):
    return ["".join(RNG.choice(list("abcdeß"), RNG.integers(1, 9))) for _ in range(count)]


def merges_by_counting(texts, most):
    """All pairs counted anew each time; the most frequent, of equals the first by the alphabet."""
    counts = Counter(word for text in texts for word in re.findall(r" ?[^\W\d_]+", text))
    parts = {word: list(word) for word in counts}
    made = []
    while len(made) < most:
        pairs = Counter()
        for word, count in counts.items():
            for pair in zip(parts[word], parts[word][1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        made.append(best)
        for word, some in parts.items():
            at, new = 0, []
            while at < len(some):
                both = tuple(some[at : at + 2]) == best
                new.append("".join(best) if both else some[at])
                at += 1 + both
            parts[word] = new
    return made


@pytest.mark.parametrize("size", [20, 60, 1000])
def test_pieces_are_those_of_counting_all_pairs_each_time(size):
    texts = [" ".join(words(6)) for _ in range(12)]
    signs = len(set("".join(texts)))
    learned = Pieces.learn(texts, size=size)
    assert learned.merges == merges_by_counting(texts, size - SPECIAL - signs)
    assert len(learned) == SPECIAL + signs + len(learned.merges) <= size


def test_texts_come_back():
    texts = ["Ich wünschte, ich hätte meinen Mund gehalten.", "It's 12:30_ now!", "Tabs\tand  spaces"]
    pieces = Pieces.learn(texts, size=80)
    for text in texts:
        tokens = pieces.encode(text)
        assert min(tokens) >= SPECIAL
        assert pieces.decode([*tokens, END, 7]) == text
    assert pieces.encode("x") == [UNKNOWN]
    assert pieces.decode(pieces.encode("Mxnd")) == "M?nd"


def write(folder, **parts):
    for name in ("train", "val", "test"):
        lines = parts.get(name, ["Go on.\tMach weiter.", "Stop.\tHalt.\tStopp."])
        (folder / f"{name}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def test_pairs_are_read(tmp_path):
    write(tmp_path, train=["Go.\tLos.", "Stop.\tHalt.", "A sentence of very many words.\tEin Satz."], val=["Halt\tStop"])
    data, pieces = load_tatoeba(tmp_path, tokens=60, length=6), tatoeba_pieces(tmp_path, tokens=60)
    assert data.train.images.shape == (2, 12, 1, 1)  # the third pair is too long
    assert data.test.images.shape[1] > 12  # these are never cut
    for split, pairs in ((data.train, [("Go.", "Los."), ("Stop.", "Halt.")]), (data.validation, [("Halt", "Stop")])):
        for image, pair in zip(split.images, pairs, strict=True):
            for side, text in zip(image.reshape(2, -1).astype(int).tolist(), pair, strict=True):
                tokens = [*pieces.encode(text), END]
                assert side == tokens + [0] * (len(side) - len(tokens))
    assert data.train.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"size must be"):
        tatoeba_pieces(tmp_path, tokens=9)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no train.tsv.gz, val.tsv.gz, test.tsv.gz. Get English"):
        load_tatoeba(tmp_path)
    write(tmp_path, val=["Go on.\tMach weiter.", "alone"])
    with pytest.raises(ValueError, match=r"val.tsv.gz, line 2: must have 2 fields"):
        load_tatoeba(tmp_path)
