"""Who holds a file or a folder: locks that end with the process, however it ends."""

import contextlib
import os

try:
    import fcntl
except ImportError:  # of other systems; there nothing is locked
    fcntl = None  # type: ignore[assignment]

_HELD: dict[str, int] = {}
"""Descriptors of the folders that this process holds, by their real paths."""


def lock(path: str | os.PathLike[str], descriptor: int | None = None) -> int | None:
    """Lock a file or folder for this process.

    Args:
      path: of it.
      descriptor: by which it is open already.

    Returns:
      The descriptor, to be closed or given to `unlock`; None if another process has the lock.
    """
    opened = os.open(path, os.O_RDONLY) if descriptor is None else descriptor
    try:
        if fcntl is not None:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if descriptor is None:
            os.close(opened)
        return None
    except OSError:  # a file system without locks
        pass
    return opened


def unlock(descriptor: int | None) -> None:
    """Give a lock back."""
    if descriptor is not None:
        os.close(descriptor)


def free(path: str | os.PathLike[str]) -> bool:
    """Whether no process holds the lock of a file or folder; without locks, nothing is known to be free."""
    if fcntl is None:
        return False
    descriptor = lock(path)
    unlock(descriptor)
    return descriptor is not None


def hold(folder: str | os.PathLike[str]) -> None:
    """Hold a folder until this process ends or lets it go; holding it again changes nothing.

    Raises:
      ValueError: if another process holds it; with its number.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> hold(folder), hold(folder), let_go(folder)
      (None, None, None)
    """
    place = os.path.realpath(folder)
    if place in _HELD:
        return
    descriptor = lock(place)
    if descriptor is None:
        raise ValueError(
            f"{os.fspath(folder)} is in use by {_holder(place)}. Wait until it has ended, or choose another folder; nothing "
            "was overwritten."
        )
    _HELD[place] = descriptor


def let_go(folder: str | os.PathLike[str]) -> None:
    """Let a folder go that this process holds."""
    unlock(_HELD.pop(os.path.realpath(folder), None))


def _holder(place: str) -> str:
    """Name the process that holds a lock, as Linux tells it."""
    about = os.stat(place)
    file = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks") as locks:
        for line in locks:  # 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
            words = line.split()
            if words[1] == "FLOCK" and file in words and int(words[words.index(file) - 1]) > 0:
                return f"process {words[words.index(file) - 1]}"
    return "another process"
