"""Archives of arrays that a data set is read from."""

import os
from pathlib import Path

import numpy as np


def read_archive(path: str | os.PathLike[str], names: tuple[str, ...], get: str) -> dict[str, np.ndarray]:
    """Return some arrays of an npz archive.

    Args:
      path: of the archive.
      names: of the arrays.
      get: how to get it, the end of the error where it is absent.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if an array is missing.

    Example:
      >>> read_archive("nowhere.npz", ("a",), "Get the set from its authors.")
      Traceback (most recent call last):
      ...
      FileNotFoundError: there is no file nowhere.npz. Get the set from its authors.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}. {get}")
    with np.load(path, allow_pickle=False) as archive:
        if absent := [name for name in names if name not in archive]:
            raise ValueError(f"{path} has no array {', '.join(absent)}; there are {', '.join(archive)}.")
        return {name: archive[name] for name in names}


def check_files(folder: Path, files: tuple[str, ...], get: str) -> None:
    """Raise unless all files are there.

    Args:
      folder: where they are.
      files: their names.
      get: how to get them, the end of the error where one is absent.

    Raises:
      FileNotFoundError: if a file is missing.
    """
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} has no {', '.join(absent)}. {get}")


def read_lines(folder: Path, files: tuple[str, ...], fields: int, get: str) -> list[list[list[str]]]:
    """Return the fields of every line of some files of tab-separated values.

    Args:
      folder: where they are.
      files: their names.
      fields: how many a line has.
      get: how to get them, the end of the error where one is absent.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: for a line of another form.
    """
    check_files(folder, files, get)
    parts = []
    for name in files:
        lines = [line.split("\t") for line in (folder / name).read_text(encoding="utf-8").split("\n") if line]
        if wrong := [number for number, line in enumerate(lines, 1) if len(line) != fields]:
            raise ValueError(f"{folder / name}, line {wrong[0]}: must have {fields} fields, with tabs between them.")
        parts.append(lines)
    return parts
