"""Safetensors: named arrays in one file, read without executing anything."""

import os
from pathlib import Path

import numpy as np

from lepton_jax.core.files import write_atomic
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.names import as_tree, named_dtype, to_named

_STRUCTURE = "lepton_structure"
# The format's names of what numpy or ml_dtypes can hold.
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


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


def load_safetensors(path: str | os.PathLike[str], template: PyTree | None = None) -> PyTree:
    """Read a safetensors file.

    Args:
      path: the file; of any program.
      template: what it must hold, see Returns; None: whatever there is.

    Returns:
      the tree that was saved, with NumPy leaves. A file of another program gives dictionaries nested by the '/' of its names.
      With a template, a tree of its structure.

    Raises:
      ValueError: if the file is damaged, or does not hold the template's names, shapes and dtypes.

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
      ValueError: if the file is no safetensors file, or has a dtype that numpy lacks.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    data = Path(path).read_bytes()
    try:
        tensors = deserialize(data)
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is no whole safetensors file: {error}") from error
    lacking = [f"{name}: {about['dtype']}" for name, about in tensors if about["dtype"] not in _DTYPES]
    if lacking:
        raise ValueError(f"{os.fspath(path)}: numpy has no such dtypes: {', '.join(lacking)}. Convert them first.")
    arrays: dict[str, np.ndarray] = {}
    for name, about in sorted(tensors, key=lambda tensor: tensor[0]):
        arrays[name] = np.frombuffer(about["data"], named_dtype(_DTYPES[about["dtype"]])).reshape(about["shape"])
    return arrays, metadata.get(_STRUCTURE)
