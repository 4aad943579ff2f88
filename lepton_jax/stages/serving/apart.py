"""The stages of a folder, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.stages.files import read_manifest
from lepton_jax.stages.serving.frames import PeerError, model_name
from lepton_jax.stages.serving.remote import Remote, in_line


@checked
class Apart:
    """Runs every stage of a folder that `stages.save` wrote in a process of its own, on this machine.

    Use it as a context: its end ends the processes.

    Args:
      folder: of the stages.
      timeout: seconds for a frame, and for an answer.
      start: seconds that the processes have to start.

    Attributes:
      processes: one a stage.

    Raises:
      ArtifactError: for a folder without stages, or damaged ones.
      PeerError: if a process does not start in time; when called, if one dies or is late.

    Example:
      >>> import tempfile
      >>> with Apart(tempfile.gettempdir()) as run:
      ...     pass
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: ... the folder holds no stages.
    """

    def __init__(self, folder: str | os.PathLike[str], *, timeout: float = 60.0, start: float = 120.0):
        self._folder, self._timeout, self._start = FilePath(folder), timeout, start
        self._rows = read_manifest(self._folder)["stages"]
        self.processes: list[subprocess.Popen[str]] = []
        self._remotes: list[Remote] = []

    def __enter__(self) -> Apart:
        try:
            for row in self._rows:
                command = [
                    sys.executable,
                    "-m",
                    "lepton_jax.stages.serving",
                    str(self._folder / row["file"]),
                    str(self._timeout),
                ]
                self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            end = time.monotonic() + self._start
            for row, process in zip(self._rows, self.processes):
                port = self._port(process, end, row["file"])
                model = model_name((self._folder / row["file"]).read_bytes())
                self._remotes.append(Remote(("127.0.0.1", port), model, timeout=self._timeout))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for remote in self._remotes:
            remote.close()
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close() if stream is not None else None

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Return the flat outputs of the last stage."""
        carried: tuple[Any, ...] = inputs
        for remote in self._remotes:
            carried = remote(*carried)
        return carried

    def run(self, batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """Send batches through the stages, each busy with its own; see `in_line`."""
        return in_line(self._remotes, batches)

    def _port(self, process: subprocess.Popen[str], end: float, name: str) -> int:
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            if not ready.select(max(end - time.monotonic(), 0.0)):
                raise PeerError(f"the process of {name} did not start within {self._start:g} s.")
        line = process.stdout.readline().strip()
        if not line.isdigit():
            raise PeerError(f"the process of {name} ended before it served (exit code {process.wait()}); see what it printed.")
        return int(line)
