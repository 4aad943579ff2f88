"""Versions: a newer major one is refused and says what to do, a newer minor one is read as far as it is known."""

import json
import zlib

import pytest

from experiments.hostile.lepton_files import good_files, seal
from experiments.hostile.readers import tensor_bits
from lepton_jax.artifact import ArtifactError, container, load
from lepton_jax.coding import arrays


def sealed(manifest, tensors, version):
    return seal([(0, data, len(data)) for data in (manifest, b"p", tensors)], bytes(version))


@pytest.mark.parametrize("major", [2, 3, 255])
def test_a_newer_major_version_is_refused(major, tmp_path):
    good = good_files()[0]
    # Even where nothing else is as it is today.
    for data in (sealed(good.manifest, good.tensors, (major, 0)), container.MAGIC + bytes([major, 7]) + b"who knows"):
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(ArtifactError, match=rf"f: version {major}\.\d at offset 4: written by a newer lepton_jax.*upgrade"):
            load(tmp_path / "f")


def test_version_zero_never_was(tmp_path):
    good = good_files()[0]
    (tmp_path / "f").write_bytes(sealed(good.manifest, good.tensors, (0, 9)))
    with pytest.raises(ArtifactError, match="never was"):
        load(tmp_path / "f")


def test_a_newer_minor_version_is_read(tmp_path):
    good = good_files()[0]
    (tmp_path / "old").write_bytes(good.file)
    manifest = {**json.loads(good.manifest), "unheard_of": {"x": 1}}
    (tmp_path / "new").write_bytes(sealed(json.dumps(manifest).encode(), good.tensors, (container.MAJOR, container.MINOR + 5)))
    old, new = load(tmp_path / "old"), load(tmp_path / "new")
    assert tensor_bits(new) == tensor_bits(old)
    assert new.packed["params"].keys() == old.packed["params"].keys()


def test_a_coder_of_a_newer_minor_version_is_named(tmp_path):
    tensors = bytes([len(arrays.CODERS)])
    (tmp_path / "f").write_bytes(sealed(b'{"tree":{"w":"1"}}', tensors, (container.MAJOR, container.MINOR + 1)))
    with pytest.raises(
        ArtifactError, match=r"tensor w: unknown coder \d+ of values at offset \d+; a newer version may read it"
    ):
        load(tmp_path / "f")


def test_the_version_is_covered_by_the_checksum_of_the_head():
    data = bytearray(good_files()[0].file)
    data[5] += 1
    with pytest.raises(ArtifactError, match="wrong checksum of the head, offsets 0 to"):
        container.parse(bytes(data), "f")
    assert zlib.crc32(b"123456789") == 0xCBF43926  # the one of zip and png, so that other readers can be written
