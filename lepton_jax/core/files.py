"""Writing files so that nothing is lost when it fails half-way."""

import contextlib
import os
import secrets
import shutil


class ArtifactError(ValueError):
    """A file of ours that cannot be written, or is damaged, foreign or too new; says what and where."""


def write_atomic(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file so that, whatever happens, its old content or the new one is there.

    The bytes go to a temporary file in the same folder, ``.NAME.*.lepton-part``, reach the disk, and take the name in
    one step. Who is killed before that leaves such a file behind; nothing reads it, and it may be deleted.

    Raises:
      ArtifactError: if the disk is full or the folder cannot be written; a file already there is kept.
    """
    target = os.path.realpath(os.fspath(path))
    folder, base = os.path.split(target)
    temporary = os.path.join(folder, f".{base[:100]}.{secrets.token_hex(4)}.lepton-part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise ArtifactError(
            f"cannot write {os.fspath(path)} ({len(data)} bytes): {error.strerror or error}. "
            "A file of that name is as it was; free space or choose another folder."
        ) from error


def _sync_folder(folder: str) -> None:
    """Have a new name reach the disk too, where the system can do that for a folder; the file is whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
