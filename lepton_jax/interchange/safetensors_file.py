"""Safetensors: named arrays in one file, read without executing anything."""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from lepton_jax.coding.arrays import dtype_of
from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.files import ArtifactError, open_file, write_atomic
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.limits import Allowance
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.names import as_tree, check_arrays, fill, foreign, to_named

_STRUCTURE = "lepton_structure"
_PREFIX, _MAX_AXES = 8, 32
# The format's names of what numpy or ml_dtypes can hold.
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


@checked_but("tree")
def save_safetensors(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Write a tree's arrays to a safetensors file, under their paths; replaced in one step if it is there.

    The structure is kept in the file's metadata, so that lists, tuples and Python numbers come back as such; other programs
    see plain names. Packed leaves are written dense.

    Args:
      path: the file.
      tree: any tree of arrays, numbers and random keys.

    Raises:
      ValueError: for leaves that are no arrays or of a dtype that the format lacks (``int4``, ``complex128``); names each.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_safetensors(f"{folder}/w.safetensors", {"w": [np.ones(2, np.float32), 3]})
      ...     load_safetensors(f"{folder}/w.safetensors")
      {'w': [array([1., 1.], dtype=float32), 3]}

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    from safetensors import TensorSpec, serialize

    arrays, text = to_named(tree)
    lacking = [f"{name}: {array.dtype}" for name, array in arrays.items() if array.dtype.name not in _DTYPES.values()]
    if lacking:
        raise ValueError(f"safetensors has no such dtypes: {', '.join(lacking)}. Convert them, or save as .npz.")
    little = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}
    specs = {
        name: TensorSpec(dtype=array.dtype.name, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in little.items()
    }
    write_atomic(path, serialize(specs, metadata={_STRUCTURE: text}))


@checked
def load_safetensors(path: str | os.PathLike[str], template: PyTree | None = None) -> PyTree:
    """Read a safetensors file.

    Args:
      path: the file; of any program.
      template: what it must hold, see Returns; None: whatever there is.

    Returns:
      the tree that was saved, with NumPy leaves. A file of another program gives dictionaries nested by the '/' of its names.
      With a template, a tree of its structure.

    Raises:
      ValueError: if the file is damaged, or does not hold the template's names, shapes and dtypes; names file and tensor.
      OSError: if it cannot be read.

    Example:
      >>> load_safetensors("absent.safetensors")
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'absent.safetensors'
    """
    return as_tree(*read_arrays(path), template, path)


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], str | None]:
    """Return ``({name: array}, structure or None)``.

    Raises:
      ValueError: as `load_safetensors`.
    """
    name = os.fspath(path)
    with open_file(path) as file:
        tensors, begin, metadata = _header(file, name)
        arrays = {}
        with foreign(f"{name} is no whole safetensors file"):
            for one in tensors:
                file.seek(begin + one.begin)
                arrays[one.name] = one.read(file)
    check_arrays(arrays, name)
    return arrays, metadata.get(_STRUCTURE)


def read_shapes(path: str | os.PathLike[str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape and dtype of every tensor by name; of the file, only its header is read.

    Raises:
      ValueError: as `load_safetensors`, where the header tells.
    """
    with open_file(path) as file:
        tensors = _header(file, os.fspath(path))[0]
    return {one.name: jax.ShapeDtypeStruct(one.shape, dtype_of(_DTYPES[one.dtype])) for one in tensors}


def _header(file: BinaryIO, name: str) -> tuple[list[_Tensor], int, dict[str, str]]:
    """Return the tensors in the order of their names, where their bytes begin, and the file's metadata."""
    size = os.fstat(file.fileno()).st_size
    with foreign(f"{name} is no whole safetensors file"):
        length = int.from_bytes(file.read(_PREFIX), "little")
        if not 2 <= length <= size - _PREFIX:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = parse_json(file.read(length), "its header")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are no texts by names")
        Allowance(size).work(8 * len(header), "tensors")
        tensors = [_Tensor.of(key, entry) for key, entry in header.items()]
    lacking = [f"{shown(one.name)}: {shown(one.dtype, 40)}" for one in tensors if one.dtype not in _DTYPES]
    if lacking:
        raise ArtifactError(f"{name}: numpy has no such dtypes: {', '.join(lacking)}. Convert them first.")
    end = 0
    with foreign(f"{name} is no whole safetensors file"):
        for one in sorted(tensors, key=lambda one: (one.begin, one.end)):
            if one.begin != end:
                raise ValueError(f"the tensor {shown(one.name)} begins at {one.begin}, the one before ends at {end}")
            end = one.end
        if end != size - _PREFIX - length:
            raise ValueError(f"its tensors end at {end}, its bytes at {size - _PREFIX - length}")
        for one in tensors:
            one.check()
    return sorted(tensors, key=lambda one: one.name), _PREFIX + length, metadata


class _Tensor(NamedTuple):
    """What the header says of one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def of(cls, name: str, entry: Any) -> _Tensor:
        """Read an entry of the header.

        Raises:
          ValueError: if it describes no tensor.
        """
        wrong = ValueError(f"the tensor {shown(name)} is described by {shown(entry, 80)}")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise wrong
        dtype, shape, places = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(places, list) or len(places) != 2:
            raise wrong
        if len(shape) > _MAX_AXES or not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, *places)):
            raise wrong
        if math.prod(max(n, 1) for n in shape) >= 1 << 56 or places[0] > places[1]:
            raise wrong
        return cls(name, dtype, tuple(shape), *places)

    def check(self) -> None:
        """Raise unless it has the size that its shape and dtype say."""
        wanted = math.prod(self.shape) * dtype_of(_DTYPES[self.dtype]).itemsize
        if wanted != self.end - self.begin:
            raise ValueError(f"the tensor {shown(self.name)} of {wanted} bytes has {self.end - self.begin}")

    def read(self, file: BinaryIO) -> np.ndarray:
        """Read the tensor, where the file stands."""
        return fill(file, dtype_of(_DTYPES[self.dtype]), self.shape, f"the tensor {shown(self.name)}")
