"""Hostile files of others' formats: weights in npz and safetensors, data sets, orbax checkpoints."""

from __future__ import annotations

import functools
import io
import json
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.hostile.changes import edited, reworded, word
from lepton_jax.artifact import container
from lepton_jax.data.compressed import Lossless, PatchPCA, write_dataset
from lepton_jax.interchange import save_npz, save_safetensors
from lepton_jax.training import Checkpoints

HEADERS = (
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '|S9', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<f4', 'fortran_order': 1, 'shape': (2,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 0), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 900,
    "{'descr': '<f4', 'fortran_order': False, 'shape': ('''",
    "{'descr': '<f4', 'fortran_order': False}",
    "[" * 1000 + "]" * 1000,
    "",
)


def tree(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "a": np.float32(rng.normal(size=(2, 3))),
        "b": {"c": np.asarray([1], np.int8), "d": [np.ones(2, bool), 3]},
        "k": jax.random.key(1),
    }


@functools.cache
def saved(suffix: str) -> bytes:
    """The bytes of a good file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"f{suffix}")
        {".npz": save_npz, ".safetensors": save_safetensors}[suffix](path, tree(np.random.default_rng(0)))
        return path.read_bytes()


def npz(rng: np.random.Generator, _: Path) -> bytes:
    """Some of its entries changed inside, or under other names, sizes and ways."""
    if rng.random() < 0.3:
        return edited(saved(".npz"), rng)
    with zipfile.ZipFile(io.BytesIO(saved(".npz"))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    victim = list(entries)[rng.integers(len(entries))]
    way = rng.integers(6)
    if way == 5:
        return _bomb() if rng.random() < 0.5 else edited(_bomb(), rng)
    if way < 2:
        entries[victim] = changed_array(entries[victim], rng)
    elif way == 2:
        entries[str(word(rng)) + str(rng.choice(["", ".npy"]))] = entries.pop(victim)
    elif way == 3:
        about = entries["__lepton__.npy"]
        text = json.loads(about[128:] if about[128:129] == b"{" else about[about.index(b"\n") + 1 :])
        text = {**text, "structure": json.dumps(reworded(json.loads(text["structure"]), rng))}
        body = io.BytesIO()
        np.save(body, np.frombuffer(json.dumps(text if rng.random() < 0.5 else reworded(text, rng)).encode(), np.uint8))
        entries["__lepton__.npy"] = body.getvalue()
    out = io.BytesIO()
    method = int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in [*entries.items(), *([(victim, b"")] if way == 4 else [])]:
            archive.writestr(name or ".", data)  # Python 3.11 writes no entry without a name
    return out.getvalue()


@functools.cache
def _bomb() -> bytes:
    """A good file with one more entry, of 32 MB in 32 kB."""
    out = io.BytesIO(saved(".npz"))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", bytes(1 << 25))
    return out.getvalue()


def changed_array(data: bytes, rng: np.random.Generator) -> bytes:
    """A file of one array, changed, or under a false header."""
    if rng.random() < 0.5:
        return edited(data, rng)
    header = HEADERS[rng.integers(len(HEADERS))].encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(8)


def safetensors(rng: np.random.Generator, _: Path) -> bytes:
    """Its header changed, or its bytes."""
    good = saved(".safetensors")
    if rng.random() < 0.3:
        return edited(good, rng)
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    text = json.dumps(reworded(header, rng)).encode() if rng.random() < 0.8 else edited(good[8 : 8 + length], rng)
    if rng.random() < 0.1:
        text = b"[" * int(rng.integers(1, 200_000))
    size = len(text) if rng.random() < 0.95 else int(rng.choice([0, 1, 1 << 40, (1 << 63) + 1]))
    return struct.pack("<Q", size) + text + good[8 + length :]


@functools.cache
def saved_set(lossy: bool) -> bytes:
    """The bytes of a good data set."""
    rng = np.random.default_rng(1)
    arrays = {
        "x": rng.integers(0, 9, (12, 6, 6, 1)).astype(np.uint8),
        "y": np.arange(12.0),
        "z": np.zeros((12, 3), np.complex128),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(f"{folder}/s", arrays, codec=PatchPCA(patch=4, energy=0.9) if lossy else Lossless(), block=5)
        return Path(folder, "s").read_bytes()


def dataset(rng: np.random.Generator, _: Path) -> bytes:
    """Manifest, index and blocks changed, the last under right checksums."""
    good = saved_set(bool(rng.integers(2)))
    if rng.random() < 0.2:
        return edited(good, rng)
    size = int.from_bytes(good[6:10], "little")
    parsed = container.parse(good[10 : 10 + size], "good")
    manifest, index = parsed.sections["manifest"].data, parsed.sections["tensors"].data
    blocks, way = good[10 + size :], rng.integers(4)
    if way == 0:
        manifest = json.dumps(reworded(json.loads(manifest), rng)).encode()
    elif way == 1:
        index = edited(index, rng)
    elif way == 2:
        about = json.loads(manifest)
        about |= {"examples": int(rng.choice([0, 1, 1 << 20, 1 << 40])), "block": int(rng.choice([1, 5, 1 << 20, 1 << 40]))}
        manifest = json.dumps(about).encode()
    else:
        index, blocks = resealed(index, blocks, rng)
    inner = container.build(manifest, b"", index)
    return good[:6] + len(inner).to_bytes(4, "little") + inner + blocks


def resealed(index: bytes, blocks: bytes, rng: np.random.Generator) -> tuple[bytes, bytes]:
    """One byte of the blocks changed, and the checksum of its block mended, wherever in the index it is."""
    place = int(rng.integers(len(blocks)))
    changed = bytearray(blocks)
    changed[place] ^= 1 << int(rng.integers(8))
    for start in range(place + 1):
        for end in range(place + 1, len(blocks) + 1):
            crc = zlib.crc32(blocks[start:end]).to_bytes(4, "little")
            if crc in index and bytes([(end - start) & 127 | (128 if end - start > 127 else 0)]) in index:
                return index.replace(crc, zlib.crc32(changed[start:end]).to_bytes(4, "little")), bytes(changed)
    return index, bytes(changed)


@functools.cache
def saved_folder() -> Path:
    """A good checkpoint."""
    folder = Path(tempfile.mkdtemp())
    with Checkpoints(folder / "run") as checkpoints:
        checkpoints.save(7, {"params": {"w": np.ones((2, 3), np.float32)}, "n": np.int32(3)})
    return folder / "run"


def orbax(rng: np.random.Generator, path: Path) -> None:
    """One file of a checkpoint changed, left out, or a link."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(saved_folder(), path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    victim, way = files[rng.integers(len(files))], rng.random()
    if way < 0.1:
        victim.unlink()
    elif way < 0.15:
        victim.unlink()
        victim.symlink_to("/etc/hostname")
    elif way < 0.6 and (found := sorted(path.rglob("_METADATA"))):
        found[0].write_text(json.dumps(reworded(json.loads(found[0].read_text()), rng)))
    else:
        victim.write_bytes(edited(victim.read_bytes(), rng))
