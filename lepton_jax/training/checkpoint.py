"""Checkpoints by orbax: saved in the background, complete or not there at all, and refused if they are of another run."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from lepton_jax.core import locks
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, one_line
from lepton_jax.core.files import ArtifactError
from lepton_jax.core.typing import PyTree
from lepton_jax.training.arrays import check_same, describe, from_arrays, stored, to_arrays
from lepton_jax.training.multihost import from_first
from lepton_jax.training.reduce.base import as_saved, regrouped

T = TypeVar("T")


@checked
def fingerprint(config: Any) -> str:
    """Return a short hash of a configuration, the same for equal ones in every process.

    Args:
      config: anything that JSON can hold; what it cannot (dataclasses, functions) counts by its `repr`.

    Example:
      >>> fingerprint({"rate": 0.1, "seed": 0}) == fingerprint({"seed": 0, "rate": 0.1})
      True
    """
    text = json.dumps(config, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@checked
class Checkpoints:
    """The checkpoints of one run (or of one of its phases) in a folder of their own.

    A checkpoint appears in the folder only once it is complete: a run that is killed while it saves keeps the one before. Of
    several processes one at a time can save in the folder.
    `fit` saves every so many steps, if enough time has passed as well.

    Args:
      directory: made when the first checkpoint is saved.
      run: identifies the run, e.g. ``fingerprint(config)``; a folder with checkpoints of another run is refused.
      max_to_keep: how many of the newest stay.
      seconds: between two checkpoints, at least; a training that is shorter has none, unless it is interrupted.

    Raises:
      ValueError: if the folder holds checkpoints of another run, or is a file.

    Example:
      >>> import tempfile
      >>> with Checkpoints(tempfile.mkdtemp(), run="a") as checkpoints:
      ...     checkpoints.save(3, {"w": np.ones(2, np.float32)})
      ...     checkpoints.restore({"w": np.zeros(2, np.float32)})[0]["w"].tolist()
      [1.0, 1.0]
    """

    def __init__(self, directory: str | os.PathLike[str], *, run: str = "", max_to_keep: int = 2, seconds: float = 0.0) -> None:
        check_whole("Checkpoints: max_to_keep", max_to_keep, 1)
        self.directory = Path(directory).absolute()
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"Checkpoints: directory must be a folder; {self.directory} is a file. Choose another.")
        self.run, self.seconds = run, seconds
        self._max_to_keep, self._saved = max_to_keep, time.monotonic()
        self._damaged: dict[int, str] = {}
        if (found := self._newest()[1].get("run", run)) != run:
            self.close()
            raise ValueError(
                f"{self.directory} holds checkpoints of another configuration (run {found!r}, this one is {run!r}). "
                "Choose another folder, or go back to that configuration. Nothing was overwritten."
            )

    @cached_property
    def _ocp(self) -> Any:
        import orbax.checkpoint  # here because it takes a third of a second that other uses of the package need not wait for

        return orbax.checkpoint

    @cached_property
    def _manager(self) -> Any:
        options = self._ocp.CheckpointManagerOptions(max_to_keep=self._max_to_keep, create=True)
        return self._ocp.CheckpointManager(self.directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, of those not known to be damaged if there are any, or None."""
        return max(self._good or self._steps(), default=None)

    @property
    def _good(self) -> set[int]:
        return self._steps() - self._damaged.keys()

    @property
    def due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that there may be another; in every process alike."""
        passed = time.monotonic() - self._saved >= self.seconds
        return passed if self.seconds <= 0 else from_first("whether a checkpoint is due", passed)

    def save(self, step: int, state: PyTree, extra: Mapping[str, Any] | None = None) -> None:
        """Save a state; the writing goes on in the background, and the state may be donated at once.

        Args:
          step: number of steps taken; saving a step that is there already does nothing.
          state: any pytree of arrays, random keys included.
          extra: JSON-able facts to keep with it.
        """
        if step == self.latest_step:
            self._saved = time.monotonic()
            return
        arrays = to_arrays(state)
        # Written in the background, while the caller goes on with what it gave.
        facts = copy.deepcopy(dict(extra or {}))
        about = {"run": self.run, "leaves": describe(arrays), "sums": _sums(arrays), "extra": facts}
        # Orbax stores no empty arrays; their description says all there is to know about them.
        some = {path: leaf for path, leaf in arrays.items() if leaf.size}
        args = self._ocp.args
        self.hold()
        with self._writing(f"the checkpoint of step {step}"):
            with tempfile.TemporaryFile(dir=self.directory):
                pass  # where nothing can be written, orbax says so after ten minutes
            for damaged in self._damaged.keys() & self._steps():
                self._manager.delete(damaged)
            self._damaged.clear()
            self._manager.save(step, args=args.Composite(state=args.StandardSave(some), about=args.JsonSave(about)), force=True)
        self._saved = time.monotonic()

    def hold(self) -> None:
        """Keep other processes from saving here until `close`; in a run of several processes the first one holds.

        Raises:
          ValueError: if another process holds the folder.
        """
        with self._writing("a checkpoint"):  # each process: none waits here until the first has made the folder
            self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            locks.hold(self.directory)

    def restore(self, template: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
        """Return a saved state in the structure of `template`, with its shardings, and the `extra` facts.

        If the newest is damaged, the one before it is taken, with a warning; the next save removes what is damaged.

        Args:
          template: a state of the same run, e.g. the initial one.
          step: which one; by default the newest.

        Raises:
          FileNotFoundError: if there is no checkpoint, or not that one.
          ValueError: if paths, shapes or dtypes differ from the template's; the message lists them. If all checkpoints are
            damaged, or that one.
        """
        self.wait()
        if step is not None and step not in self._steps():
            raise FileNotFoundError(f"{self.directory} holds no checkpoint of step {step}, but of {sorted(self._steps())}.")
        for at in sorted(self._good, reverse=True) if step is None else [step]:
            about = self._read(at, self._about)
            if about is None:
                continue
            saved = as_saved(template, about["leaves"])
            check_same(about["leaves"], saved)
            state = self._read(at, partial(self._state, about=about, template=saved))
            if state is not None:
                if step is None and self._damaged:
                    warnings.warn(f"{self._why()} Going on from step {at}, the newest that is whole.", stacklevel=2)
                return from_arrays(regrouped(state, template), template), about["extra"]
        if not self._damaged:
            raise FileNotFoundError(f"{self.directory} holds no checkpoint; start without resuming.")
        raise ValueError(f"{self._why()} Delete the folder to begin anew, or restore another step.")

    def _why(self) -> str:
        said = "; ".join(f"that of step {step}: {why}" for step, why in sorted(self._damaged.items()))
        return f"{self.directory} has damaged checkpoints ({said})."

    def _state(self, step: int, *, about: Mapping[str, Any], template: PyTree) -> dict[str, Any]:
        blank = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in stored(template).items()}
        wanted = {path: leaf for path, leaf in blank.items() if leaf.size}
        args = self._ocp.args
        loaded = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(wanted)))["state"]
        state, sums = {**blank, **loaded}, about.get("sums", {})
        wrong = [path for path, found in _sums(state).items() if found != sums.get(path, found)]
        if wrong:
            raise ValueError(f"{', '.join(wrong[:3])} did not come back as saved")
        return state

    def wait(self) -> None:
        """Wait until everything that was saved is on disk."""
        if "_manager" in vars(self):
            with self._writing("a checkpoint"):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and end the background threads."""
        try:
            if "_manager" in vars(self):
                with self._writing("a checkpoint"):
                    self._manager.close()
        finally:
            locks.let_go(self.directory)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _steps(self) -> set[int]:
        return set(self._manager.all_steps()) if self.directory.exists() else set()

    def _newest(self) -> tuple[int, dict[str, Any]]:
        """Return the newest step whose description can be read, and that; -1 and nothing if there is none."""
        for step in sorted(self._good, reverse=True):
            if about := self._read(step, self._about):
                return step, about
        return -1, {}

    def _about(self, step: int) -> dict[str, Any]:
        args = self._ocp.args
        about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore()))["about"]
        if not {"run", "leaves", "extra"} <= set(about):
            raise ValueError("its description is not whole")
        return about

    def _read(self, step: int, read: Callable[[int], T]) -> T | None:
        """Return what is read of a checkpoint; None, and note it as damaged, if that fails in whatever way."""
        try:
            return read(step)
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # of orbax, of tensorstore, or of what they call
            self._damaged[step] = one_line(error)
            return None

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            with suppress(Exception):
                self._manager.reload()  # what was not written does not count
            kept = f"Those of steps {sorted(self._good)} are as they were; free space or choose another folder."
            raise ArtifactError(f"{self.directory}: cannot write {what}: {one_line(error)}. {kept}") from error


def _sums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Return a checksum of every array that is whole in this process."""
    whole = {path: leaf for path, leaf in arrays.items() if isinstance(leaf, np.ndarray)}
    return {path: zlib.crc32(np.ascontiguousarray(leaf).tobytes()) for path, leaf in whole.items()}
