"""Servers in processes of their own: they say where they serve, and end when whoever began them ends."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path as FilePath

from lepton_jax.core.arguments import checked
from lepton_jax.stages.serving.frames import PeerError
from lepton_jax.stages.serving.server import Server

Process = subprocess.Popen[str]


def begun(module: str, file: FilePath, timeout: float) -> Process:
    """Begin the process of ``python -m MODULE FILE TIMEOUT``."""
    command = [sys.executable, "-m", module, str(file), str(timeout)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def port_of(process: Process, end: float, name: str) -> int:
    """Wait for a process to say at which port it serves.

    Args:
      process: from `begun`.
      end: until when, by `time.monotonic`.
      name: of its file, for errors.

    Raises:
      PeerError: if it does not in time, or ended.
    """
    assert process.stdout is not None
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        if not ready.select(max(end - time.monotonic(), 0.0)):
            raise PeerError(f"the process of {name} did not start in time.")
    line = process.stdout.readline().strip()
    if not line.isdigit():
        raise PeerError(f"the process of {name} ended before it served (exit code {process.wait()}); see what it printed.")
    return int(line)


def ended(process: Process) -> None:
    """End a process, and close what led to it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            stream.close() if stream is not None else None


@contextlib.contextmanager
@checked
def started(
    module: str, file: str | os.PathLike[str], *, timeout: float = 60.0, start: float = 120.0
) -> Iterator[tuple[str, int]]:
    """Serve a file in a process of its own, on this machine, as long as the context lasts.

    Args:
      module: ``lepton_jax.stages.serving`` for a stage or a whole model, ``lepton_jax.stages.edge`` for the cloud's half.
      file: what it serves.
      timeout: seconds for a frame.
      start: seconds that it has to start.

    Yields:
      host and port.

    Raises:
      PeerError: if it does not start in time.

    Example:
      >>> with started("lepton_jax.stages.nothing", "a.lepton") as address:
      ...     pass
      Traceback (most recent call last):
      ...
      lepton_jax.stages.serving.frames.PeerError: the process of a.lepton ended before it served (exit code 1); ...
    """
    process = begun(module, FilePath(file), timeout)
    try:
        yield "127.0.0.1", port_of(process, time.monotonic() + start, FilePath(file).name)
    finally:
        ended(process)


def run_until_input_ends(server: Server) -> None:
    """Say the port, alone on a line, and serve until the standard input ends: the parent's end, however it comes."""

    def wait() -> None:
        sys.stdin.read()
        server.close()

    threading.Thread(target=wait, daemon=True).start()
    print(server.address[1], flush=True)
    server.run()
