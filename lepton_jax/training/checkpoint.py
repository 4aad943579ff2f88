"""Checkpoints by orbax: saved in the background, complete or not there at all, and refused if they are of another run."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jax.core.typing import PyTree
from lepton_jax.training.arrays import check_same, describe, from_arrays, stored, to_arrays


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


class Checkpoints:
    """The checkpoints of one run (or of one of its phases) in a folder of their own.

    A checkpoint appears in the folder only once it is complete: a run that is killed while it saves keeps the one before.
    `fit` saves every so many steps, if enough time has passed as well.

    Args:
      directory: made when the first checkpoint is saved.
      run: identifies the run, e.g. ``fingerprint(config)``; a folder with checkpoints of another run is refused.
      max_to_keep: how many of the newest stay.
      seconds: between two checkpoints, at least; a training that is shorter has none, unless it is interrupted.

    Raises:
      ValueError: if the folder holds checkpoints of another run.

    Example:
      >>> import tempfile
      >>> with Checkpoints(tempfile.mkdtemp(), run="a") as checkpoints:
      ...     checkpoints.save(3, {"w": np.ones(2, np.float32)})
      ...     checkpoints.restore({"w": np.zeros(2, np.float32)})[0]["w"].tolist()
      [1.0, 1.0]
    """

    def __init__(self, directory: str | os.PathLike[str], *, run: str = "", max_to_keep: int = 2, seconds: float = 0.0) -> None:
        if max_to_keep < 1:
            raise ValueError(f"Checkpoints: max_to_keep must be at least 1; got {max_to_keep}.")
        self.directory = Path(directory).absolute()
        self.run, self.seconds = run, seconds
        self._max_to_keep, self._saved = max_to_keep, time.monotonic()
        if (latest := self.latest_step) is not None and (found := self._about(latest)["run"]) != run:
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
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step() if self.directory.exists() else None

    @property
    def due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that there may be another."""
        return time.monotonic() - self._saved >= self.seconds

    def save(self, step: int, state: PyTree, extra: Mapping[str, Any] | None = None) -> None:
        """Save a state; the writing goes on in the background, and the state may be donated at once.

        Args:
          step: number of steps taken; saving a step that is there already does nothing.
          state: any pytree of arrays, random keys included.
          extra: JSON-able facts to keep with it.
        """
        arrays = to_arrays(state)
        about = {"run": self.run, "leaves": describe(arrays), "extra": dict(extra or {})}
        # Orbax stores no empty arrays; their description says all there is to know about them.
        some = {path: leaf for path, leaf in arrays.items() if leaf.size}
        args = self._ocp.args
        if step != self.latest_step:
            self._manager.save(step, args=args.Composite(state=args.StandardSave(some), about=args.JsonSave(about)), force=True)
        self._saved = time.monotonic()

    def restore(self, template: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
        """Return a saved state in the structure of `template`, with its shardings, and the `extra` facts.

        Args:
          template: a state of the same run, e.g. the initial one.
          step: which one; by default the newest.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if paths, shapes or dtypes differ from the template's; the message lists them.
        """
        self.wait()
        step = self.latest_step if step is None else step
        if step is None:
            raise FileNotFoundError(f"{self.directory} holds no checkpoint; start without resuming.")
        about = self._about(step)
        check_same(about["leaves"], template)
        blank = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in stored(template).items()}
        wanted = {path: leaf for path, leaf in blank.items() if leaf.size}
        args = self._ocp.args
        loaded = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(wanted)))["state"]
        return from_arrays({**blank, **loaded}, template), about["extra"]

    def wait(self) -> None:
        """Wait until everything that was saved is on disk."""
        if "_manager" in vars(self):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and end the background threads."""
        if "_manager" in vars(self):
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _about(self, step: int) -> dict[str, Any]:
        args = self._ocp.args
        return self._manager.restore(step, args=args.Composite(about=args.JsonRestore()))["about"]
