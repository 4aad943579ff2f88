"""TFDS sets without TensorFlow: a tiny one written by hand, and the real ones where they are at hand."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from lepton_jax.data import cache, load_mnist, load_tfds


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def load_tiny(root: Path, folder: Path, **options):
    return load_tfds("tinyset", validation=6, data_dir=root, cache_dir=folder, progress=False, **options)


def test_any_set_is_read_decoded_and_cached(tiny_tfds: Path, tiny_arrays, tmp_path: Path):
    dataset = load_tiny(tiny_tfds, tmp_path)
    images, labels = tiny_arrays(9, 1)
    np.testing.assert_array_equal(dataset.test.images, images.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(dataset.test.labels, labels)
    assert (dataset.name, dataset.num_classes, len(dataset.train), len(dataset.validation)) == ("tinyset", 3, 24, 6)
    train = np.concatenate([dataset.train.images, dataset.validation.images])
    expected = tiny_arrays(30, 0)[0].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(np.sort(train.sum((1, 2, 3))), np.sort(expected.sum((1, 2, 3))))
    assert [path.name for path in files(tmp_path)] == ["test.npz", "train.npz"]
    assert "tensorflow" not in sys.modules


def test_the_cache_serves_without_the_set_and_outlives_damage(tiny_tfds: Path, tmp_path: Path):
    first = load_tiny(tiny_tfds, tmp_path)
    stamps = [path.stat().st_mtime_ns for path in files(tmp_path)]
    load_tiny(tiny_tfds, tmp_path)
    assert [path.stat().st_mtime_ns for path in files(tmp_path)] == stamps
    train = files(tmp_path)[1]
    whole = train.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        train.write_bytes(damaged)
        np.testing.assert_array_equal(load_tiny(tiny_tfds, tmp_path).train.images, first.train.images)
        assert len(train.read_bytes()) == len(whole)


def test_a_cache_of_another_length_is_rebuilt(tiny_tfds: Path, tmp_path: Path):
    load_tiny(tiny_tfds, tmp_path)
    cache.write_arrays(files(tmp_path)[0], {"image": np.zeros((2, 4, 5, 3), np.uint8), "label": np.zeros(2, np.int32)})
    assert len(load_tiny(tiny_tfds, tmp_path).test) == 9


def test_slices_have_cache_files_of_their_own(tiny_tfds: Path, tiny_arrays, tmp_path: Path):
    dataset = load_tiny(tiny_tfds, tmp_path, train_split="train[:20]", test_split="train[20:]")
    assert (len(dataset.train), len(dataset.test), len(files(tmp_path))) == (14, 10, 2)
    np.testing.assert_array_equal(dataset.test.labels, tiny_arrays(30, 0)[1][20:])


def test_a_missing_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(cache_dir=tmp_path / "cache")
    message = str(caught.value)
    assert "pip install 'lepton-jax[tfds]'" in message
    assert f"tfds.builder('mnist', data_dir='{tmp_path}'" in message
    assert "download_and_prepare(file_format='array_record')" in message
    assert "TFDS_DATA_DIR" in message
    assert files(tmp_path) == []


def test_what_is_no_image_classification_set_is_refused(tiny_tfds: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="TFDS knows no set called 'mnits'"):
        load_tfds("mnits", validation=0, data_dir=tmp_path, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="needs a feature 'picture'"):
        load_tiny(tiny_tfds, tmp_path, image_key="picture")
    with pytest.raises(ValueError, match=r"imagenet2012: needs .* one fixed shape"):
        load_tfds("imagenet2012", validation=0, data_dir=tmp_path, cache_dir=tmp_path)


def test_the_cache_folder_comes_from_argument_then_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))
    assert cache.cache_folder() == tmp_path
    assert cache.cache_folder("here") == Path("here")
    monkeypatch.delenv("LEPTON_CACHE")
    assert cache.cache_folder() == Path.home() / ".cache" / "lepton_jax"


def test_a_full_disk_leaves_nothing_behind_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez", full)
    with pytest.raises(OSError, match=r"No space left on device\. Free some space, or name another folder in LEPTON_CACHE"):
        cache.write_arrays(tmp_path / "sub" / "a.npz", {"x": np.zeros(3)})
    assert os.listdir(tmp_path / "sub") == []


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_sets_hold_what_tfds_reads_one_by_one(name: str, real_tfds: str, tmp_path: Path):
    import tensorflow_datasets as tfds

    dataset = load_tfds(
        name,
        validation=0,
        train_split="train[:600]",
        test_split="test[-9:]",
        data_dir=real_tfds,
        cache_dir=tmp_path,
        progress=False,
    )
    assert (dataset.train.images.shape, dataset.test.images.shape) == ((600, 28, 28, 1), (9, 28, 28, 1))
    source = tfds.data_source(name, split="train", data_dir=real_tfds, download=False)
    for i in (0, 255, 256, 599):
        np.testing.assert_array_equal(dataset.train.images[i] * 255, source[i]["image"].astype(np.float32))
        assert dataset.train.labels[i] == source[i]["label"]
    # Published means of the 60,000 images; 600 of them come near.
    assert abs(dataset.train.images.mean() - {"mnist": 0.1307, "fashion_mnist": 0.2860}[name]) < 0.01
