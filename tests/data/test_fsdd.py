"""Tones made by hand, against a slow transform of their own."""

from pathlib import Path

import numpy as np
import pytest

from lepton_jax.data import load_fsdd
from lepton_jax.data.fsdd import log_mel, mel_bands

RATE = 8000


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two digits of one speaker, four recordings each."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(300, 1500, 8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    arrays = {"label": np.repeat([3, 7], 4).astype(np.uint8), "index": np.tile(np.arange(4), 2).astype(np.uint8)}
    samples = rng.integers(-9000, 9000, offsets[-1]).astype(np.int16)
    np.savez(tmp_path / "a.npz", samples=samples, offsets=offsets, sample_rate=np.int32(RATE), **arrays)
    return tmp_path / "a.npz"


def slow_log_mel(clip: np.ndarray, frames: int, bands: int) -> np.ndarray:
    clip = np.concatenate([clip, np.zeros(10_000)]).astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(129), np.arange(256)) / 256)
    out = np.empty((frames, bands))
    for t in range(frames):
        power = np.abs(waves @ (hann * clip[128 * t : 128 * t + 256])) ** 2 / np.sum(hann**2)
        out[t] = np.log(1e-6 + mel_bands(RATE, bands, 256) @ power)
    return out


@pytest.mark.parametrize("length", [100, 700, 3000])
def test_log_mel_is_the_logarithm_of_the_power(length: int):
    clip = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    got = log_mel(clip, RATE, frames=7, bands=5)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_log_mel(clip, 7, 5), rtol=1e-4, atol=1e-4)


def test_a_tone_is_loudest_in_the_band_of_its_frequency():
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + f / 700) for f in (60, 4000)), 22) / 2595) - 1)
    for band in (5, 10, 19):
        tone = np.sin(2 * np.pi * edges[band + 1] * np.arange(4000) / RATE).astype(np.float32)
        assert set(log_mel(tone, RATE, frames=8, bands=20).argmax(axis=1)) == {band}


def test_bands_are_triangles_that_add_to_one_between_their_tops():
    bands = mel_bands(RATE, 6, 4096)
    tops = bands.argmax(axis=1)
    inside = bands[:, tops[0] + 1 : tops[-1]].sum(axis=0)
    np.testing.assert_allclose(inside, 1, atol=1e-12)
    assert (bands >= 0).all()


def test_recordings_are_split_by_their_number_and_scaled_by_training_ones(archive: Path):
    dataset = load_fsdd(archive, frames=6, bands=4, test=1, validation=1)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [4, 2, 2]
    assert dataset.train.labels.tolist() == [3, 3, 7, 7]
    assert dataset.train.images.shape == (4, 6, 4, 1)
    assert abs(dataset.train.images.mean()) < 1e-5
    assert dataset.train.images.std() == pytest.approx(1, abs=1e-5)
    with np.load(archive) as arrays:
        clips = [arrays["samples"][a:b] / 32768 for a, b in zip(arrays["offsets"][:-1], arrays["offsets"][1:])]
    whole = np.stack([slow_log_mel(clip, 6, 4) for clip in clips])
    train = whole[[2, 3, 6, 7]]
    np.testing.assert_allclose(dataset.test.images[..., 0], (whole[[0, 4]] - train.mean()) / train.std(), atol=1e-3)


def test_what_is_missing_is_named(archive: Path):
    with pytest.raises(FileNotFoundError, match="Get the recordings of the Free Spoken Digit Dataset"):
        load_fsdd(archive.with_name("b.npz"))
    np.savez(archive, samples=np.zeros(3, np.int16))
    with pytest.raises(ValueError, match="has no array offsets, label, index, sample_rate; there are samples"):
        load_fsdd(archive)


def test_something_must_be_left_to_train_on(archive: Path):
    with pytest.raises(ValueError, match="leave no recordings to train on; they take 4 of each"):
        load_fsdd(archive, test=2, validation=2)
