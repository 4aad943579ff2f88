"""The sets of the applications, written by hand in their formats, and read back."""

import itertools
import zlib

import numpy as np
import pytest

from lepton_jax.data import (
    entity_features,
    hashed,
    load_av_digits,
    load_banking77,
    load_emoji,
    load_nab,
    load_online_retail,
    load_pneumonia,
    load_sentfin,
    ngrams,
    words_of,
)
from lepton_jax.data.fsdd import log_mel


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize(
    "load",
    [
        load_banking77,
        load_emoji,
        load_nab,
        load_online_retail,
        load_pneumonia,
        load_sentfin,
        lambda path: load_av_digits(path, path),
    ],
)
def test_what_is_absent_says_how_to_get_it(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*(Get|Draw|Pair) "):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("load", [load_emoji, load_nab, load_online_retail, load_pneumonia])
def test_an_archive_without_an_array_is_refused(load, tmp_path):
    np.savez(tmp_path / "a.npz", other=np.zeros(1))
    with pytest.raises(ValueError, match=r"has no array .*; there are other"):
        load(tmp_path / "a.npz")


def test_features_are_words_pairs_and_parts_each_once():
    found = ngrams(words_of("No, no!"))
    assert found[:4] == ["no", ",", "no", "!"]
    assert {"no ,", "no no", ", no", ", !", "<no", "no>"} <= set(found)
    [row] = hashed([found], 50, 40)[..., 0, 0]
    wanted = [1 + zlib.crc32(one.encode()) % 49 for one in dict.fromkeys(found)]
    np.testing.assert_array_equal(row[: len(wanted)], wanted)
    assert not row[len(wanted) :].any()
    assert hashed([found], 50, 2).shape == (1, 2, 1, 1)


def test_an_entity_has_two_sides():
    found = entity_features("Gold up as Dollar falls hard", "dollar")
    assert {"left up", "right falls", "next left as", "next right falls hard", "@entity"} <= set(found)
    assert "dollar" not in found
    assert entity_features("Gold up", "Silver") == ngrams(["gold", "up"])


def test_texts(tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.tsv").write_text("where is my card\t1\n" * (2 if name == "train" else 1), encoding="utf-8")
    (tmp_path / "labels.txt").write_text("refund\ncard\nfee\n")
    found = load_banking77(tmp_path, tokens=100, length=9)
    assert (found.num_classes, len(found.train), len(found.validation), len(found.test)) == (3, 2, 1, 1)
    np.testing.assert_array_equal(found.test.images, hashed([ngrams(["where", "is", "my", "card"])], 100, 9))
    assert found.test.labels.tolist() == [1]
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.tsv").write_text("Gold up\tGold\t2\n", encoding="utf-8")
    found = load_sentfin(tmp_path, tokens=100, length=9)
    np.testing.assert_array_equal(found.test.images, hashed([entity_features("Gold up", "Gold")], 100, 9))
    (tmp_path / "val.tsv").write_text("Gold up\t2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"val.tsv, line 1: must have 3 fields"):
        load_sentfin(tmp_path)


def test_x_rays(tmp_path, rng):
    arrays = {}
    for part, count in (("train", 5), ("val", 3), ("test", 4)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 6, 6)).astype(np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]  # as MedMNIST has them
    np.savez(tmp_path / "a.npz", **arrays)
    found = load_pneumonia(tmp_path / "a.npz")
    np.testing.assert_allclose(found.test.images[..., 0], arrays["test_images"] / 255, atol=1e-7)
    assert found.train.labels.tolist() == [0, 1, 0, 1, 0]


def test_images_with_sounds(tmp_path, rng):
    samples = rng.integers(-9000, 9000, 3000).astype(np.int16)
    offsets = np.array([0, 1000, 2200, 3000])
    np.savez(tmp_path / "s.npz", samples=samples, offsets=offsets, sample_rate=8000)
    arrays = {"image": rng.integers(0, 256, (4, 28, 28)).astype(np.uint8), "clip": np.array([2, 0, 0, 1])}
    np.savez(tmp_path / "a.npz", label=np.arange(4), split=np.array([0, 0, 1, 2]), **arrays)
    found = load_av_digits(tmp_path / "a.npz", tmp_path / "s.npz")
    assert (len(found.train), len(found.validation), len(found.test)) == (2, 1, 1)
    clips = [
        log_mel(samples[a:b].astype(np.float32) / 32768, 8000, frames=48, bands=32) for a, b in itertools.pairwise(offsets)
    ]
    trained = np.stack([clips[0], clips[2]])
    np.testing.assert_allclose(found.test.images[0, 28:, :, 0], (clips[1] - trained.mean()) / trained.std(), atol=1e-4)
    np.testing.assert_allclose(found.test.images[0, :28, :28, 0], arrays["image"][3] / 255, atol=1e-7)
    assert not found.test.images[0, :28, 28:].any()


def test_drawings_with_names(tmp_path, rng):
    arrays = {"image": rng.integers(0, 256, (3, 4, 4, 3)).astype(np.uint8), "text": np.array(["red cat", "dog", "red dog"])}
    more = {"category": np.array([0, 1, 1]), "category_names": np.array(["a", "b"]), "split": np.arange(3)}
    np.savez(tmp_path / "a.npz", **arrays, **more)
    found = load_emoji(tmp_path / "a.npz", tokens=64, length=5)
    assert found.test.images.shape == (1, 4 * 4 * 3 + 5, 1, 1)
    np.testing.assert_allclose(found.test.images[0, :48, 0, 0], arrays["image"][2].reshape(-1) / 255, atol=1e-7)
    np.testing.assert_array_equal(found.test.images[:, 48:], hashed([ngrams(["red", "dog"])], 64, 5))


def test_series_in_windows(tmp_path, rng):
    value, label = rng.normal(3, 2, 300).astype(np.float32), (rng.random(300) < 0.1).astype(np.uint8)
    np.savez(tmp_path / "a.npz", value=value, label=label, offsets=np.array([0, 100, 300]), split=np.array([1, 2]))
    found = load_nab(tmp_path / "a.npz", window=4)
    assert (len(found.train), len(found.validation), len(found.test)) == (15 - 3 + 30 - 3, 85, 170)
    known = value[100:130].astype(float)
    scaled = np.clip((value[100:] - known.mean()) / known.std(), -6, 6)
    np.testing.assert_allclose(found.test.images[0, :4, 0, 0], scaled[27:31], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.test.images[-1, :4, 0, 0], scaled[-4:], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.test.labels, label[130:])
    assert set(found.test.images[:, 4, 0, 0]) == {1.0}
    assert not found.train.labels.any()
    with pytest.raises(ValueError, match="too few"):
        load_nab(tmp_path / "a.npz", window=15)


def test_what_is_bought_next(tmp_path):
    # Customer 0 buys 0 1 on day 1, 2 3 4 on day 5, of which 3 is for choices and 4 for the test; customer 1 buys 5 alone.
    arrays = {"user": [0, 0, 0, 0, 0, 1], "item": [0, 1, 2, 3, 4, 5], "day": [1, 1, 5, 5, 5, 2], "split": [0, 0, 0, 1, 2, 0]}
    np.savez(tmp_path / "a.npz", **{name: np.array(some) for name, some in arrays.items()})
    found = load_online_retail(tmp_path / "a.npz", basket=3, history=4)
    assert found.num_classes == 6
    assert (found.validation.labels.tolist(), found.test.labels.tolist()) == ([3], [4])
    [validation], [test] = (split.images[..., 0, 0] for split in (found.validation, found.test))
    assert (sorted(validation[:3]), sorted(validation[3:])) == ([0, 0, 3], [0, 0, 1, 2])
    assert (sorted(test[:3]), sorted(test[3:])) == ([0, 3, 4], [0, 0, 1, 2])
    assert sorted(found.train.labels) == [0, 1, 2, 5]
    for tokens, label in zip(found.train.images[..., 0, 0], found.train.labels):
        assert 1 + label not in tokens
        assert not {4, 5} & set(tokens.astype(int))  # what is for choices and for the test
