"""The file: written in one step or not at all, and no damaged or foreign file does more than raise ArtifactError."""

import errno
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.artifact import ArtifactError, account, container, load, save
from lepton_jax.coding import compression, streams
from lepton_jax.coding.bit_packing import pack_bits
from lepton_jax.formats import Uniform
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.quantize import quantize
from lepton_jax.leaves.sparse import Sparse


def save_dense(v, x):
    return x


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("container") / "good.lepton"
    rng = np.random.default_rng(0)
    codes = jnp.asarray(np.where(rng.random((20, 8)) < 0.3, rng.integers(1, 4, (20, 8)), 0).astype(np.uint8))
    tree = {
        "a": CodebookArray(pack_bits(codes, 2), jnp.array([-1.0, 0.5, 2.0]), 2, (20, 8), "float32"),
        "b": jnp.asarray(rng.normal(size=8), jnp.float32),
        "q": quantize(jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), Uniform(bits=4)),
        "s": Sparse.from_dense(jnp.asarray(np.eye(9), jnp.bfloat16)),
    }
    save(path, save_dense, tree, jnp.ones((1, 20)), metrics={"error": 0.1})
    return path


def sections(path):
    return {name: section.data for name, section in container.parse(path.read_bytes(), "x").sections.items()}


def tensor_bits(artifact):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(artifact.packed)]


def test_sections_come_back():
    parts = [b'{"tree":{}}', b"program " * 50, bytes(range(256))]
    parsed = container.parse(container.build(*parts), "x")
    assert [parsed.sections[name].data for name in container.SECTIONS] == parts
    assert parsed.head + sum(section.stored for section in parsed.sections.values()) == len(container.build(*parts))


@pytest.mark.parametrize("codec", range(4))
def test_codecs_never_make_more_than_was_declared(codec):
    data = bytes(1 << 20)
    outputs = {
        0: data,
        1: compression._deflate(data),
        2: compression.zstandard.ZstdCompressor(19).compress(data),
        3: compression.lzma.compress(data, format=compression.lzma.FORMAT_RAW, filters=compression._lzma(len(data))),
    }
    assert compression.decompress(codec, outputs[codec], len(data)) == data
    for size in (len(data) - 1, 10, 0, len(data) + 1):
        with pytest.raises(ArtifactError, match="declares"):
            compression.decompress(codec, outputs[codec], size)
    with pytest.raises(ArtifactError, match="allowed"):
        compression.decompress(codec, outputs[codec], 1 << 40)


def test_foreign_and_empty_and_missing_files(tmp_path):
    for content in (b"", b"PK\x03\x04 something else", b"\x93"):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"not a \.lepton file"):
            load(tmp_path / "f")
    with pytest.raises(ArtifactError, match=r"cannot read .*none"):
        load(tmp_path / "none")


def test_a_newer_major_version_is_refused(good, tmp_path):
    data = bytearray(good.read_bytes())
    data[4] = container.MAJOR + 1
    (tmp_path / "new").write_bytes(data)
    with pytest.raises(
        ArtifactError, match=rf"version 2\.{container.MINOR} at offset 4: written by a newer lepton_jax.*upgrade"
    ):
        load(tmp_path / "new")


def test_damage_names_the_section_and_its_offset(good, tmp_path):
    data, parsed = good.read_bytes(), container.parse(good.read_bytes(), "x")
    for name, section in parsed.sections.items():
        broken = bytearray(data)
        broken[section.offset + section.stored // 2] ^= 16
        (tmp_path / "f").write_bytes(broken)
        with pytest.raises(ArtifactError, match=f"checksum of the {name}, offsets {section.offset}"):
            load(tmp_path / "f")
    (tmp_path / "f").write_bytes(data + b"x")
    with pytest.raises(ArtifactError, match="foreign bytes"):
        load(tmp_path / "f")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"[]", "is no JSON object but of type list"),
        (b"not json", "is not JSON"),
        (b'{"tree":[9]}', "the tree is damaged"),
        (b'{"tree":"x9 3"}', "does not describe a leaf"),
        (b'{"tree":"99999999,99999999"}', "bytes of dense weights declared"),
        (b'{"tree":"c9 3"}', "codes of 9 bits"),
        (b'{"tree":"3 object"}', "dtype"),
        (b'{"tree":"-5"}', "does not describe"),
        (b'{"tree":{}}', "belong to no tensor"),
        (b'{"tree":' + b'{"a":' * 100 + b'"1"' + b"}" * 101, "deeper than"),
    ],
)
def test_false_manifests_are_refused(manifest, message, good, tmp_path):
    parts = sections(good)
    (tmp_path / "f").write_bytes(container.build(manifest, parts["program"], parts["tensors"]))
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path / "f")
    with pytest.raises(ArtifactError, match=message):
        account(tmp_path / "f")


def test_a_false_size_in_a_resealed_head_is_refused_before_it_is_allocated(good, tmp_path):
    data = good.read_bytes()
    head = bytearray(data[:6])
    for codec, stored, size in ((2, 10, 1 << 40), (0, 0, 0), (0, 0, 0)):
        head += (
            bytes([codec])
            + streams.varint(stored)
            + streams.varint(size)
            + zlib.crc32(b"0123456789"[:stored]).to_bytes(4, "little")
        )
    head += zlib.crc32(head).to_bytes(4, "little")
    (tmp_path / "f").write_bytes(bytes(head) + b"0123456789")
    with pytest.raises(ArtifactError, match="declares 1099511627776 bytes"):
        load(tmp_path / "f")


@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
def test_a_full_disk_is_an_error_and_keeps_the_old_file(function, tmp_path, monkeypatch):
    path = tmp_path / "m.lepton"
    container.write_atomic(path, b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        container.write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.lepton"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="cannot write"):
        container.write_atomic(tmp_path / "none" / "m.lepton", b"x")
