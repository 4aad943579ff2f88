"""Hostile files for every reader of others' files: each must end in the documented error, or in arrays of numbers.

    python tests/foreign_files.py --cases 20000
    python tests/foreign_files.py --cases 20000 --only npz

A file fails if reading it raises anything but the documented error, warns, takes more than a second of processor time, or
lets the process's peak memory grow by more than 256 MB beyond what it returns; or if a command prints what moves a cursor.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from lepton_jax.artifact import container
from lepton_jax.command_line import main as lepton
from lepton_jax.core.packed import is_packed
from lepton_jax.data.compressed import PatchPCA, open_dataset, write_dataset
from lepton_jax.interchange import load_npz, load_orbax, load_safetensors, save_npz, save_safetensors
from lepton_jax.models import ResNetCifar, load_torch_resnet
from lepton_jax.training import Checkpoints

WORDS: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 64, 1 << 31, 1 << 40, 1 << 70, 1.5, "", "a", "../../x", "/etc/x", "\x1b[2J", "a\0b", "x" * 3000),
    *(
        [],
        [0],
        [-1, 2],
        [1 << 40],
        [1 << 40, 0],
        {},
        {"a": 1},
        [[[]]],
        "F32",
        "F64",
        "F6_E2M3",
        "BOOL",
        "int1",
        "float6_e2m3fn",
    ),
    *("uint8", "object", "patch_pca", "key rbg:a", "int:a", [1, "2"], [3, [2, 2], ":a", ":a"]),
)
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


class Kind(NamedTuple):
    """A kind of file.

    Args:
      name: what the file is called.
      make: a hostile one's bytes, or what writes a folder, of a random generator.
      read: what reads it, to arrays.
    """

    name: str
    make: Callable[[np.random.Generator, Path], bytes | None]
    read: Callable[[Path], Any]


class Outcome(NamedTuple):
    """What became of a file: whether it was refused, and what was wrong, or ""."""

    refused: bool
    wrong: str


def edited(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut, repeated or left out."""
    out = bytearray(data) or bytearray(1)
    kind, (start, end) = rng.integers(5), sorted(rng.integers(0, len(out) + 1, 2))
    end = min(end, start + 60)
    if kind < 2:
        for place in rng.integers(0, len(out), rng.integers(1, 4)):
            out[place] = out[place] ^ 1 << int(rng.integers(8)) if kind else int(rng.choice(np.array([0, 1, 127, 128, 255])))
    elif kind == 2:
        del out[start:end]
    elif kind == 3:
        out[start:start] = out[start:end]
    else:
        del out[start:]
    return bytes(out)


def reworded(node: Any, rng: np.random.Generator) -> Any:
    """JSON with one part changed, left out or renamed, somewhere."""
    if isinstance(node, dict) and node and rng.random() < 0.8:
        key = list(node)[rng.integers(len(node))]
        rest = {name: value for name, value in node.items() if name != key}
        way = rng.random()
        return (
            rest if way < 0.1 else {**rest, str(word(rng)): node[key]} if way < 0.2 else {**node, key: reworded(node[key], rng)}
        )
    if isinstance(node, list) and node and rng.random() < 0.8:
        place = rng.integers(len(node))
        return [*node[:place], reworded(node[place], rng), *node[place + 1 :]]
    return word(rng)


def word(rng: np.random.Generator) -> Any:
    return WORDS[rng.integers(len(WORDS))]


def tree(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "a": np.float32(rng.normal(size=(2, 3))),
        "b": {"c": np.int8([1]), "d": [np.ones(2, bool), 3]},
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
    if way == 0:
        header = HEADERS[rng.integers(len(HEADERS))].encode()
        entries[victim] = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(8)
    elif way == 1:
        entries[victim] = edited(entries[victim], rng)
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
    method = zipfile.ZIP_DEFLATED if way == 5 else method  # the others take long to make so much
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in [*entries.items(), *([(victim, b"")] if way == 4 else [])]:
            archive.writestr(name or ".", data)  # Python 3.11 writes no entry without a name
        if way == 5:
            archive.writestr("bomb.npy", bytes(1 << 25))
    return out.getvalue()


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
        write_dataset(f"{folder}/s", arrays, **({"codec": PatchPCA(patch=4, energy=0.9)} if lossy else {}), block=5)
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


def read_set(path: Path) -> Any:
    with open_dataset(path) as data:
        str(data.report())
        return [data[0] if len(data) else {}, data.arrays(progress=False) if len(data) < 1 << 16 else {}]


def command(rng: np.random.Generator, path: Path) -> bytes:
    return (npz if path.suffix == ".npz" else safetensors)(rng, path)


def run_commands(path: Path) -> Any:
    """What each command that reads such files says of it."""
    good = path.with_name(f"good{path.suffix}")
    good.write_bytes(saved(path.suffix))
    for words in (["diff", path, good], ["convert", path, path.with_name("out.npz")], ["inspect", path]):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = lepton([str(w) for w in words])
        said = out.getvalue()
        if code not in (0, 1, 2) or not all(c == "\n" or c.isprintable() for c in said) or len(said) > 20_000:
            raise AssertionError(f"{words[0]} ended with {code} and said {said[:300]!r}")
    return []


KINDS = {
    "npz": Kind("f.npz", npz, load_npz),
    "safetensors": Kind("f.safetensors", safetensors, load_safetensors),
    "data sets": Kind("f.lepd", dataset, read_set),
    "orbax": Kind("run", orbax, load_orbax),
    "torch": Kind("t.safetensors", safetensors, lambda path: load_torch_resnet(path, ResNetCifar(depth=8, features=2))),
    "commands on npz": Kind("c.npz", command, run_commands),
    "commands on safetensors": Kind("c.safetensors", command, run_commands),
}


def attempt(kind: Kind, path: Path, errors: tuple[type[Exception], ...] = (ValueError,)) -> Outcome:
    """Read one file and judge what comes of it."""
    before, begin, refused, wrong, found = peak(), time.process_time(), False, "", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ResourceWarning)
            found = kind.read(path)
    except errors as error:
        refused, text = True, str(error)
        if len(text) > 20_000 or not all(c == "\n" or c.isprintable() for c in text):
            wrong = f"says {text[:300]!r}"
    except Exception as error:  # the very thing that must not be
        wrong = f"{type(error).__name__}: {error}"
    seconds, growth = time.process_time() - begin, peak() - before
    leaves = jax.tree.leaves(found, is_leaf=is_packed)
    strange = [leaf for leaf in leaves if not (hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex)))]
    if strange:
        wrong = wrong or f"returns {strange[0]!r}"
    returned = sum(getattr(leaf, "nbytes", 0) for leaf in leaves)
    if not wrong and (seconds > 1 or growth > 256e6 + returned):
        wrong = f"took {seconds:.2f} s and {growth / 1e6:.0f} MB"
    return Outcome(refused, wrong)


def peak() -> int:
    """The most memory that the process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(name: str, cases: range, seed: int, folder: Path, show: bool = False) -> list[tuple[int, Outcome]]:
    """Attempt these cases of one kind."""
    kind, out = KINDS[name], []
    for case in tqdm(cases, desc=name, disable=not show):
        path = folder / kind.name
        data = kind.make(np.random.default_rng([seed, case]), path)
        if data is not None:
            path.write_bytes(data)
        out.append((case, attempt(kind, path)))
    return out


def main() -> None:
    """Run all cases and print what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    options = parser.parse_args()
    failed = 0
    for name in [options.only] if options.only else KINDS:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = run(name, range(options.cases), options.seed, Path(folder), show=True)
        wrong = [(case, outcome.wrong) for case, outcome in outcomes if outcome.wrong]
        failed += len(wrong)
        print(f"{name}: {len(outcomes)} files, {sum(outcome.refused for _, outcome in outcomes)} refused, {len(wrong)} failed")
        for case, text in wrong[:20]:
            print(" ", case, text[:300])
    if failed:
        raise SystemExit(f"{failed} files failed")


if __name__ == "__main__":
    main()
