"""Npz: numpy's own archive of named arrays, read without pickle."""

import io
import json
import os
import zipfile
from typing import Any

import numpy as np

from lepton_jax.core.files import write_atomic
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.names import as_tree, named_dtype, to_named

_ABOUT = "__lepton__"


def save_npz(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Write a tree's arrays to an ``.npz`` file, under their paths; replaced in one step if it is there.

    One more entry, ``__lepton__``, keeps the structure and the dtypes that numpy has no name for: bfloat16 and its like are
    stored as unsigned integers of their bits. Packed leaves are written dense.

    Args:
      path: the file.
      tree: any tree of arrays, numbers and random keys.

    Raises:
      ValueError: for leaves that are no arrays; names each.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_npz(f"{folder}/w.npz", {"w": (np.ones(2, np.int8), jnp.bfloat16(3))})
      ...     load_npz(f"{folder}/w.npz")
      {'w': (array([1, 1], dtype=int8), array(3, dtype=bfloat16))}
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


def load_npz(path: str | os.PathLike[str], template: PyTree | None = None) -> PyTree:
    """Read an ``.npz`` file.

    Args:
      path: the file; of any program.
      template: what it must hold, see Returns; None: whatever there is.

    Returns:
      the tree that was saved, with NumPy leaves. A file of another program gives dictionaries nested by the '/' of its names.
      With a template, a tree of its structure.

    Raises:
      ValueError: if the file is damaged or holds Python objects, or not the template's names, shapes and dtypes.

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
      ValueError: if the file is no npz file, is damaged or holds Python objects.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:  # numpy leaves its own open when a file is damaged
        try:
            archive = np.load(file, allow_pickle=False)
            arrays = {key: archive[key] for key in archive.files} if isinstance(archive, np.lib.npyio.NpzFile) else None
        except (ValueError, EOFError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{name} is no whole npz file of plain arrays: {error}") from error
    if arrays is None:
        raise ValueError(f"{name} is no npz file but a single array (.npy).")
    text, dtypes = _about(arrays.pop(_ABOUT, None), name)
    for key in dtypes.keys() & arrays.keys():
        dtype = named_dtype(dtypes[key])
        if dtype.hasobject or dtype.itemsize != arrays[key].dtype.itemsize:
            raise ValueError(f"{name}: {key}: {arrays[key].dtype} cannot be read as {dtype}.")
        arrays[key] = arrays[key].view(dtype)
    return arrays, text


def _about(entry: Any, name: str) -> tuple[str | None, dict[str, str]]:
    if entry is None:
        return None, {}
    try:
        about = json.loads(entry.tobytes())
        return about["structure"], dict(about["dtypes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: its entry {_ABOUT} is damaged: {error}") from error


def _is_foreign(dtype: np.dtype) -> bool:
    return dtype.kind == "V" or np.dtype(dtype.str) != dtype
