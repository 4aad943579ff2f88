"""Files of data sets: random access, order, errors, what they say of themselves."""

import contextlib
import lzma
import os
import pickle
import threading

import grain
import numpy as np
import pytest
import zstandard
from sklearn.datasets import load_digits

from lepton_jax.artifact import ArtifactError
from lepton_jax.data.compressed import CompressedDataset, Lossless, PatchPCA, open_dataset, write_dataset


@pytest.fixture(scope="module")
def arrays():
    """Digits: images, labels, and a float feature that is no simple function of the pixels."""
    digits = load_digits()
    noise = np.random.default_rng(0).normal(size=(len(digits.target), 5))
    return {
        "image": digits.images.astype(np.uint8)[..., None],
        "label": digits.target.astype(np.int32),
        "feature": noise.astype(np.float32),
    }


@pytest.fixture(scope="module")
def file(arrays, tmp_path_factory):
    """The same in a file of blocks of 100."""
    path = tmp_path_factory.mktemp("set") / "digits.lepd"
    write_dataset(path, arrays, block=100, meta={"classes": list("0123456789")})
    return path


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_every_way_to_read_gives_the_arrays(arrays, file):
    with open_dataset(file) as data:
        assert len(data) == 1797
        assert data.block == 100
        assert data.meta == {"classes": list("0123456789")}
        assert data.element_spec["image"] == ((8, 8, 1), np.dtype(np.uint8))
        whole = data.arrays()
        assert list(whole) == list(arrays)
        assert all(same(whole[name], arrays[name]) for name in arrays)
        places = np.random.default_rng(1).permutation(len(data))[:60].tolist()
        for place in (*places, 0, 1796, -1, -1797, np.int64(7)):
            example = data[place]
            assert all(same(np.asarray(example[name]), np.asarray(arrays[name][place])) for name in arrays)
        some = data.take([*places, -1, 3, 3])
        assert all(same(some[name], arrays[name][[*places, -1, 3, 3]]) for name in arrays)
        assert data.take([])["image"].shape == (0, 8, 8, 1)


def test_what_is_not_there(file):
    with open_dataset(file) as data:
        for place in (1797, -1798):
            with pytest.raises(IndexError, match=rf"example {place} of 1797"):
                data[place]
            with pytest.raises(IndexError):
                data.take([0, place])
        with pytest.raises(TypeError):
            data[1.0]
        with pytest.raises(ValueError, match="read-only"):
            data[5]["image"][0, 0, 0] = 1


def test_it_is_a_source_of_grain(arrays, file):
    data = open_dataset(file, cached_blocks=18)
    assert isinstance(data, grain.sources.RandomAccessDataSource)
    dataset = grain.MapDataset.source(data).seed(3).shuffle().batch(64)
    labels = [batch["label"] for batch in dataset]
    order = np.concatenate(labels)
    assert labels[0].shape == (64,)
    assert not np.array_equal(order, arrays["label"])
    assert np.array_equal(np.sort(order), np.sort(arrays["label"]))
    total = sum(batch["image"].astype(int).sum() for batch in dataset.to_iter_dataset())
    assert total == arrays["image"].sum()


def test_another_process_and_other_threads(arrays, file):
    data = open_dataset(file)
    again = pickle.loads(pickle.dumps(data))
    assert isinstance(again, CompressedDataset)
    assert repr(again) == repr(data)
    wrong = []

    def read(seed: int) -> None:
        for place in np.random.default_rng(seed).integers(0, 1797, 40).tolist():
            if not same(again[place]["feature"], arrays["feature"][place]):
                wrong.append(place)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_block_is_kept(file, monkeypatch):
    decoded = []
    original = CompressedDataset._decode
    monkeypatch.setattr(CompressedDataset, "_decode", lambda self, number: decoded.append(number) or original(self, number))
    one, two = open_dataset(file), open_dataset(file, cached_blocks=2)
    for data in (one, two):
        for place in (0, 99, 100, 5):
            data[place]
    assert decoded == [0, 1, 0, 0, 1]


def test_report_counts_every_byte(arrays, file):
    report = open_dataset(file).report(speed=True)
    assert report.file_bytes == os.path.getsize(file)
    assert report.raw_bytes == sum(array.nbytes for array in arrays.values())
    assert report.examples_per_second > 0
    assert sum(report.arrays[0].chosen.values()) == 18
    assert [array.mse for array in report.arrays] == [0.0, 0.0, 0.0]
    assert f"{report.ratio:.2f}x" in str(report)


def test_smaller_than_general_compressors(arrays, tmp_path):
    images = arrays["image"]
    write_dataset(tmp_path / "d", {"image": images})
    ours = open_dataset(tmp_path / "d").report().arrays[0].stored_bytes
    zstd, xz = zstandard.ZstdCompressor(19).compress(images.tobytes()), lzma.compress(images.tobytes(), preset=9)
    # xz is one of the candidates, with settings of its own.
    assert ours <= min(len(zstd), 1.01 * len(xz))


def test_favour_of_speed_is_still_exact(arrays, tmp_path):
    write_dataset(tmp_path / "d", arrays, Lossless(favour="speed"), block=300)
    with open_dataset(tmp_path / "d") as data:
        assert all(same(value, arrays[name]) for name, value in data.arrays().items())
        coders = {name.split(", ")[1] for array in data.report().arrays for name in array.chosen}
    assert coders <= {"zstd", "raw"}


def test_the_old_file_stays_if_writing_fails(arrays, tmp_path, monkeypatch):
    path = tmp_path / "d"
    write_dataset(path, {"x": np.arange(5)})
    before = path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ArtifactError, match="No space left"):
            write_dataset(path, arrays)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize(
    ("arrays", "codec", "words"),
    [
        ({}, Lossless(), ["at least one"]),
        ({"a": np.zeros(3), "b": np.zeros(4)}, Lossless(), ["a: has 3 examples", "b: has 4 examples"]),
        ({"a": np.float32(1)}, Lossless(), ["a: has no axis"]),
        ({"a": np.array(["x"]), "b": np.array([None])}, Lossless(), ["a: dtype <U1", "b: dtype object"]),
        ({"a": np.zeros((3, 8, 8))}, PatchPCA(), [r"\[N, H, W, C\]", r"images\[..., None\]"]),
        ({"a": np.zeros(3)}, "zip", ["must be a Lossless or a PatchPCA"]),
    ],
)
def test_refused_arrays(arrays, codec, words, tmp_path):
    with pytest.raises(ValueError, match="cannot write these arrays") as caught:
        write_dataset(tmp_path / "d", arrays, codec)
    for word in words:
        assert caught.match(word)
    assert not os.listdir(tmp_path)


def test_refused_settings(tmp_path):
    with pytest.raises(ValueError, match="block"):
        write_dataset(tmp_path / "d", {"a": np.zeros(3)}, block=0)
    with pytest.raises(ArtifactError, match="meta must be JSON"):
        write_dataset(tmp_path / "d", {"a": np.zeros(3)}, meta={"a": object()})


def test_damage_is_found_and_named(file, tmp_path):
    good = file.read_bytes()
    path = tmp_path / "bad"
    path.write_bytes(b"PK\3\4" + good[4:])
    with pytest.raises(ArtifactError, match="not a data set of lepton_jax"):
        open_dataset(path)
    path.write_bytes(good[:4] + b"\x09" + good[5:])
    with pytest.raises(ArtifactError, match=r"version 9\.0 is newer"):
        open_dataset(path)
    for cut in (0, 3, 9, 30, 200, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(ArtifactError, match=r"bad.*(truncated|not a data set)"):
            open_dataset(path)
    with open_dataset(file) as data:
        begin = data._starts[3 * 3 + 1]  # block 3 of the second array
    path.write_bytes(good[:begin] + bytes([good[begin] ^ 1]) + good[begin + 1 :])
    data = open_dataset(path)
    with pytest.raises(ArtifactError, match=rf"block 3 of label at offset {begin}: damaged: wrong checksum"):
        data[350]
    assert same(data[299]["image"], open_dataset(file)[299]["image"])


def test_no_mutation_is_taken_for_the_set(arrays, tmp_path):
    path, rng = tmp_path / "bad", np.random.default_rng(5)
    whole = {name: array[:60] for name, array in arrays.items()}
    write_dataset(path, whole, block=20)
    good = path.read_bytes()
    found = 0
    for _ in range(100):
        bad = bytearray(good)
        where = int(rng.integers(0, len(bad) if rng.random() < 0.5 else 700))
        bad[where] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(bad))
        read = None
        with contextlib.suppress(ArtifactError), open_dataset(path) as data:
            read = data.arrays(progress=False)
        found += read is None
        # The minor version says nothing of the content.
        assert read is None or all(same(read[name], whole[name]) for name in whole)
    assert found >= 97
