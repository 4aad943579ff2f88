"""CIFAR-10 sheets made by hand."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lepton_jax.data import load_cifar10_jpeg, load_cifar10_subset, standardize


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


def test_jpeg_images_are_drawn_without_replacement_and_keep_their_labels(tmp_path: Path):
    shades, stream, offsets = np.arange(0, 240, 40, dtype=np.uint8), b"", [0]
    for shade in shades:
        file = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), shade)).save(file, "JPEG", quality=95)
        stream += file.getvalue()
        offsets.append(len(stream))
    path = tmp_path / "images.npz"
    np.savez(path, train_jpeg=np.frombuffer(stream, np.uint8), train_offsets=offsets, train_label=np.arange(6))
    split = load_cifar10_jpeg(path, 4, seed=3)
    assert split.images.shape == (4, 32, 32, 3)
    assert split.images.dtype == np.float32
    assert split.labels.dtype == np.int32
    assert len(set(split.labels.tolist())) == 4
    expected = np.broadcast_to(shades[split.labels][:, None, None, None] / 255, split.images.shape)
    np.testing.assert_allclose(split.images, expected, atol=2 / 255)  # grey survives JPEG but for rounding
    with pytest.raises(ValueError, match="has 6 training images; got 7"):
        load_cifar10_jpeg(path, 7)
