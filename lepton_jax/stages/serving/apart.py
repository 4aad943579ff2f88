"""The stages of a folder, each in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.stages.files import read_manifest
from lepton_jax.stages.serving.frames import model_name
from lepton_jax.stages.serving.processes import Process, begun, ended, port_of
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
        self.processes: list[Process] = []
        self._remotes: list[Remote] = []

    def __enter__(self) -> Apart:
        try:
            for row in self._rows:
                self.processes.append(begun("lepton_jax.stages.serving", self._folder / row["file"], self._timeout))
            end = time.monotonic() + self._start
            for row, process in zip(self._rows, self.processes):
                port = port_of(process, end, row["file"])
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
            ended(process)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Return the flat outputs of the last stage."""
        carried: tuple[Any, ...] = inputs
        for remote in self._remotes:
            carried = remote(*carried)
        return carried

    def run(self, batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """Send batches through the stages, each busy with its own; see `in_line`."""
        return in_line(self._remotes, batches)
