"""Writing files so that nothing is lost when it fails half-way, and reading them so that damage is named."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from lepton_jax.core.foreign_text import printable
from lepton_jax.core.locks import free, lock, unlock

_PART = "lepton-part"
"""How the names of temporary files and folders end."""
_LONGEST_MESSAGE = 4000


class ArtifactError(ValueError):
    """A file that cannot be written, or is damaged, foreign or too new; says what and where.

    What strangers wrote may be part of the message, so that of all its characters only those that show are kept as they are.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}..."))


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read bytes; never waits for what is no file.

    Raises:
      OSError: as `open`.
      ArtifactError: for a folder, a pipe, a device or a socket.

    Example:
      >>> open_file(".")
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: . is a folder; give a file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
            raise ArtifactError(f"{os.fspath(path)} is {what}; give a file.") from OSError(errno.EINVAL, "no file", path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def write_atomic(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file so that, whatever happens, its old content or the new one is there.

    The bytes go to a temporary file in the same folder, ``.NAME.*.lepton-part``, reach the disk, and take the name in
    one step. Who is killed before that leaves such a file behind; nothing reads it, and the next writer of the name removes
    it.

    Raises:
      ArtifactError: if the disk is full or the folder cannot be written; a file already there is kept.
    """
    target = os.path.realpath(os.fspath(path))
    folder, base = os.path.split(target)
    temporary = ""
    try:
        remove_leftovers(target)
        temporary, descriptor = _begin(folder, base)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            if os.path.exists(target):
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        finally:
            os.close(descriptor)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise ArtifactError(
            f"cannot write {os.fspath(path)} ({len(data)} bytes): {error.strerror or error}. "
            "A file of that name is as it was; free space or choose another folder."
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text by `write_atomic`.

    Example:
      >>> import tempfile
      >>> write_text(tempfile.mkdtemp() + "/a.txt", "b")
    """
    write_atomic(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON by `write_atomic`, to be read by people too.

    Example:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + "/a.json"
      >>> write_json(path, {"b": 1})
      >>> read_json(path, "Delete it.")
      {'b': 1}
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> Any:
    """Return the object that a JSON file holds.

    Args:
      path: of the file.
      remedy: what to do if it is damaged, as a sentence.

    Raises:
      ArtifactError: if it holds no JSON object; with the path and the remedy.
      OSError: if it cannot be read.

    Example:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + "/a.json"
      >>> write_text(path, '{"b": 1}')
      >>> read_json(path, "Delete it.")
      {'b': 1}
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{os.fspath(path)} is damaged and cannot be read as JSON: {error}. {remedy}") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ArtifactError(f"{os.fspath(path)} is damaged: it must hold a JSON object; it holds a {kind}. {remedy}")
    return value


@contextlib.contextmanager
def folder_in_the_making(target: str | os.PathLike[str]) -> Iterator[str]:
    """Make an empty folder beside `target`, to be renamed to it; what is left of it at the end of the block is removed.

    Folders of that target whose makers were killed are removed first.
    """
    target = os.path.realpath(os.fspath(target))
    remove_leftovers(target)
    temporary = os.path.join(os.path.dirname(target), _temporary(os.path.basename(target)))
    os.mkdir(temporary)
    descriptor = lock(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        unlock(descriptor)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files and folders of a file or folder whose writers were killed; those that are in use stay."""
    folder, base = os.path.split(os.path.realpath(os.fspath(path)))
    of_base = re.compile(re.escape(f".{base[:50]}.") + rf"[0-9a-f]{{8}}\.{_PART}")
    with contextlib.suppress(OSError):  # what cannot be removed hurts no one
        for name in filter(of_base.fullmatch, os.listdir(folder)):
            left = os.path.join(folder, name)
            if free(left):
                shutil.rmtree(left) if os.path.isdir(left) else os.unlink(left)


def is_leftover(name: str) -> bool:
    """Whether a name is that of a temporary file or folder.

    Example:
      >>> is_leftover(".config.json.0a1b2c3d.lepton-part")
      True
    """
    return name.endswith(f".{_PART}")


def _begin(folder: str, base: str) -> tuple[str, int]:
    """Make a temporary file that is marked as being written; return its path and descriptor."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = os.path.join(folder, _temporary(base))
        descriptor = os.open(temporary, flags, 0o666)
        # Another writer may have taken it for left over before it was marked.
        if lock(temporary, descriptor) is not None and os.path.exists(temporary):
            return temporary, descriptor
        os.close(descriptor)


def _temporary(base: str) -> str:
    return f".{base[:50]}.{secrets.token_hex(4)}.{_PART}"


def _sync_folder(folder: str) -> None:
    """Have a new name reach the disk too, where the system can do that for a folder; the file is whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
