"""Npz: numpy's own archive of named arrays, read without pickle."""

from __future__ import annotations

import ast
import io
import json
import math
import os
import zipfile
from typing import Any

import numpy as np

from lepton_jax.coding.arrays import dtype_of
from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.files import ArtifactError, open_file, write_atomic
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.limits import Allowance
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.names import as_tree, check_arrays, fill, foreign, to_named

_ABOUT = "__lepton__"
_MAGIC = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4, b"\x93NUMPY\x03\x00": 4}
"""The beginnings of an entry, and how many bytes the length of its header has."""
_LONGEST_HEADER = 4096
_PLAIN = {"b1", "c8", "c16", "f2", "f4", "f8"} | {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_ENCRYPTED = 1


@checked_but("tree")
def save_npz(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Write a tree's arrays to an ``.npz`` file, under their paths; replaced in one step if it is there.

    One more entry, ``__lepton__``, keeps the structure and the dtypes that numpy has no name for: bfloat16 and its like are
    stored as unsigned integers of their bits. Packed leaves are written dense.

    Args:
      path: the file.
      tree: any tree of arrays, numbers and random keys.

    Raises:
      ValueError: for leaves that are no arrays, or names that as files would lie elsewhere; names each.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_npz(f"{folder}/w.npz", {"w": (np.ones(2, np.int8), jnp.bfloat16(3))})
      ...     codes, scale = load_npz(f"{folder}/w.npz")["w"]
      >>> codes.tolist(), float(scale), scale.dtype.name
      ([1, 1], 3.0, 'bfloat16')
    """
    arrays, text = to_named(tree)
    if _ABOUT in arrays:
        raise ValueError(f"{_ABOUT} is the name of the file's own entry; rename that leaf.")
    named = {name: array.dtype.name for name, array in arrays.items() if _is_foreign(array.dtype)}
    stored = {name: array.view(f"u{array.dtype.itemsize}") if name in named else array for name, array in arrays.items()}
    about = json.dumps({"structure": text, "dtypes": named}, ensure_ascii=False).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:  # not np.savez, whose keywords (`file`) are names that a leaf may have
        for name, array in {**stored, _ABOUT: np.frombuffer(about, np.uint8)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    write_atomic(path, out.getvalue())


@checked
def load_npz(path: str | os.PathLike[str], template: PyTree | None = None) -> PyTree:
    """Read an ``.npz`` file.

    Args:
      path: the file; of any program.
      template: what it must hold, see Returns; None: whatever there is.

    Returns:
      the tree that was saved, with NumPy leaves. A file of another program gives dictionaries nested by the '/' of its names.
      With a template, a tree of its structure.

    Raises:
      ValueError: if the file is damaged or holds anything but arrays of numbers, asks for more memory than its size allows, or
        holds not the template's names, shapes and dtypes; names file and entry.
      OSError: if it cannot be read.

    Example:
      >>> load_npz("absent.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'absent.npz'
    """
    return as_tree(*read_arrays(path), template, path)


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], str | None]:
    """Return ``({name: array}, structure or None)``.

    Raises:
      ValueError: as `load_npz`.
    """
    name = os.fspath(path)
    with open_file(path) as file:
        if file.read(6) == b"\x93NUMPY":
            raise ArtifactError(f"{name} is no npz file but a single array (.npy).")
        allowance = Allowance(os.fstat(file.fileno()).st_size)
        with foreign(f"{name} is no whole npz file of plain arrays"), zipfile.ZipFile(file) as archive:
            entries = _entries(archive, allowance)
            arrays = {}
            for key, entry in entries.items():
                with archive.open(entry) as part:
                    arrays[key] = _read_array(part, entry.file_size, f"the entry {shown(key)}")
    text, dtypes = _about(arrays.pop(_ABOUT, None), name)
    for key in dtypes.keys() & arrays.keys():
        dtype = dtype_of(dtypes[key])
        if dtype.itemsize != arrays[key].dtype.itemsize:
            raise ArtifactError(f"{name}: {shown(key)}: {arrays[key].dtype} cannot be read as {dtype}.")
        arrays[key] = arrays[key].view(dtype)
    check_arrays(arrays, name)
    return arrays, text


def _entries(archive: zipfile.ZipFile, allowance: Allowance) -> dict[str, zipfile.ZipInfo]:
    """The entries by the names of their arrays; all that can be wrong without reading one is checked.

    Raises:
      ValueError: for two of one name, and for what is no array, or is coded in a way that numpy never does.
    """
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        key = entry.filename.removesuffix(".npy")
        if key == entry.filename:
            raise ValueError(f"the entry {shown(entry.filename)} is no array (.npy); remove it")
        if key in entries:
            raise ValueError(f"two entries are called {shown(key)}; rename one")
        if entry.orig_filename != entry.filename:
            raise ValueError(f"the entry {shown(entry.orig_filename)} has a character that no name may have; rename it")
        if entry.flag_bits & _ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"the entry {shown(key)} is encrypted or not of deflate; write it by numpy.savez")
        allowance.memory(entry.file_size, f"the entry {shown(key)}")
        allowance.work(8, "entries")
        entries[key] = entry
    return entries


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a single array of numbers (``.npy``).

    Raises:
      ValueError: if it is none, or damaged.
      OSError: if it cannot be read.

    Example:
      >>> read_npy("absent.npy")
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'absent.npy'
    """
    with open_file(path) as file:
        if file.read(2) == b"PK":
            raise ValueError(f"{os.fspath(path)} holds several arrays; give a .npy file for each input.")
        file.seek(0)
        with foreign(f"{os.fspath(path)} is no .npy file of a plain array", ValueError):
            return _read_array(file, os.fstat(file.fileno()).st_size, "the file")


def _read_array(file: Any, size: int, where: str) -> np.ndarray:
    """Read one array: its header first, which must agree with the size of it all before room is taken.

    Raises:
      ValueError: if it is no array of plain numbers.
    """
    width = _MAGIC.get(file.read(8), 0)
    length = int.from_bytes(_exactly(file, width, where), "little") if width else 0
    if not 0 < length <= _LONGEST_HEADER:
        raise ValueError(f"{where} begins like no array; write it by numpy.save")
    dtype, fortran, shape = _header(_exactly(file, length, where), where)
    wanted, there = math.prod(shape) * dtype.itemsize, size - 8 - width - length
    if wanted != there:
        raise ValueError(f"{where} declares {dtype}{list(shape)}, {wanted} bytes, and has {there}")
    array = fill(file, dtype, shape[::-1] if fortran else shape, where)
    if file.read(1):  # which has an archive's checksum compared, too
        raise ValueError(f"{where} has more bytes than it declares")
    array = array.transpose() if fortran else array
    return array.astype(dtype.newbyteorder("="), copy=False)


def _exactly(file: Any, count: int, where: str) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"{where} ends within its header")
    return data


def _header(text: bytes, where: str) -> tuple[np.dtype, bool, tuple[int, ...]]:
    """Dtype, order and shape of an array.

    Raises:
      ValueError: if they are not those of plain numbers.
    """
    try:
        about = ast.literal_eval(text.decode("latin1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{where} has a damaged header") from error
    if not isinstance(about, dict) or about.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"{where} has a damaged header")
    descr, fortran, shape = about["descr"], about["fortran_order"], about["shape"]
    if not isinstance(descr, str) or descr.lstrip("<>|=") not in _PLAIN or len(descr) > 4:
        raise ValueError(f"{where} is of {shown(descr, 40)}, not of numbers that numpy names; convert it")
    good = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
    if type(fortran) is not bool or not good or math.prod(max(n, 1) for n in shape) >= 1 << 56:
        raise ValueError(f"{where} has a shape that is not possible: {shown(shape, 60)}")
    return np.dtype(descr), fortran, shape


def _about(entry: np.ndarray | None, name: str) -> tuple[str | None, dict[str, str]]:
    if entry is None:
        return None, {}
    about = parse_json(entry.tobytes(), f"{name}: its entry {_ABOUT}")
    text, dtypes = about.get("structure"), about.get("dtypes")
    if not isinstance(text, str) or not isinstance(dtypes, dict) or not all(isinstance(n, str) for n in dtypes.values()):
        raise ArtifactError(f"{name}: its entry {_ABOUT} is damaged: no structure and dtypes in it")
    return text, dtypes


def _is_foreign(dtype: np.dtype) -> bool:
    return dtype.kind == "V" or np.dtype(dtype.str) != dtype
