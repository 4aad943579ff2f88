"""CIFAR-10 sheets made by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lepton_jax.data import load_cifar10_subset, standardize


def test_sheets_and_labels_are_matched_by_number(tmp_path: Path):
    rng = np.random.default_rng(0)
    pixels = {k: rng.integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8) for k in (1, 50)}
    for k, images in pixels.items():
        Image.fromarray(images.reshape(1000, 1024, 3)).save(tmp_path / f"cifar10_batch_{k}.png", compress_level=0)
    labels = rng.integers(0, 10, 51_000).astype(np.uint8)
    np.save(tmp_path / "labels_51000.npy", labels)
    dataset = load_cifar10_subset(tmp_path)
    np.testing.assert_array_equal(dataset.train.images * 255, pixels[1])
    np.testing.assert_array_equal(dataset.train.labels, labels[1000:2000])
    np.testing.assert_array_equal(dataset.test.labels, labels[50_000:])
    np.testing.assert_array_equal(dataset.test.images[7], pixels[50][7] / np.float32(255))


def test_an_incomplete_folder_names_what_it_lacks(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"has no labels_51000\.npy, cifar10_batch_50\.png, cifar10_batch_0\.png"):
        load_cifar10_subset(tmp_path)


def test_standardize_needs_one_number_a_channel():
    images = np.random.default_rng(0).random((2, 3, 3, 3), dtype=np.float32)
    got = standardize(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0, 0, 0, 2], (float(images[0, 0, 0, 2]) - 0.406) / 0.225, rtol=1e-5)
    with pytest.raises(ValueError, match="got 3 and 3 for 1 channels"):
        standardize(images[..., :1])
