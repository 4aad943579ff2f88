"""Decoded arrays on disk: written atomically, rebuilt when damaged."""

import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from lepton_jax.core.files import ArtifactError, write_atomic

_ENV = "LEPTON_CACHE"


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder: the argument, else the variable LEPTON_CACHE, else ``~/.cache/lepton_jax``.

    Example:
      >>> cache_folder("elsewhere").name
      'elsewhere'
    """
    chosen = cache_dir or os.environ.get(_ENV)
    return Path(chosen) if chosen else Path.home() / ".cache" / "lepton_jax"


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Read named arrays, or return None where the file is missing or damaged (the archive carries checksums).

    Args:
      path: a file that `write_arrays` wrote.
      names: the arrays that must be in it.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays so that a reader sees the whole file or none.

    Args:
      path: the file to write; its folder is made.
      arrays: by name.

    Raises:
      OSError: if the folder or the disk refuses; nothing half-written stays behind.
    """
    data = io.BytesIO()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(data, **arrays)  # type: ignore[arg-type]
        write_atomic(path, data.getbuffer())
    except (OSError, ArtifactError) as error:
        raise OSError(
            f"cannot write the decoded arrays to {path}: {error}. "
            f"Free some space, or name another folder in {_ENV} or cache_dir."
        ) from error
