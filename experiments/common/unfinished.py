"""Trainings that are interrupted: a checkpoint now and then, from which the same training goes on."""

import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lepton_jax.training import Checkpoints, TrainState

FOLDER = "unfinished"
"""In the run's folder; removed when the run is reported."""
SECONDS = 60.0
"""A checkpoint is written after an epoch, or a step, if so much time has passed since the last: short trainings have none."""


def remove(run_dir: Path) -> None:
    """Remove the checkpoints of trainings that are finished."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


class History(Protocol):
    """Figures after every epoch, as JSON can hold them."""

    epochs: list[dict[str, Any]]

    def __call__(self, state: TrainState) -> None:
        """Measure, and add to `epochs`."""


class Unfinished:
    """The checkpoint of one training.

    Args:
      run_dir: of the run; None: nothing is written.
      name: of the training, unique in the run.
      seeds: of its members; another training of the name is refused.
      history: goes back with the state.

    Example:
      >>> from lepton_jax.training import create
      >>> import jax, optax, lepton_jax
      >>> state = create({}, {}, optax.identity(), lepton_jax.identity(), jax.random.key(0))
      >>> Unfinished(None, "dense", [0], None).restored(state)[1]
      0
    """

    def __init__(self, run_dir: Path | None, name: str, seeds: Any, history: History | None) -> None:
        self._history, self._saved = history, time.monotonic()
        self._folder = None if run_dir is None else run_dir / FOLDER / re.sub(r"[^\w.+-]+", "_", name)
        self._run = f"{name}, seeds {list(seeds)}"

    def restored(self, state: TrainState) -> tuple[TrainState, int]:
        """Return the state to go on from, and how many epochs (or steps) it has had: the given one, without a checkpoint."""
        if self._folder is None or not self._folder.exists():
            return state, 0
        with Checkpoints(self._folder, run=self._run) as checkpoints:
            done = checkpoints.latest_step
            if done is None:
                return state, 0
            state, extra = checkpoints.restore(state)
        if self._history is not None:
            self._history.epochs[:] = extra["history"]
        return state, done

    def remove(self) -> None:
        """Remove the checkpoint, of a training that is finished; those of others stay."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # there are others', or there is none
                self._folder.parent.rmdir()

    def save(self, state: TrainState, done: int) -> None:
        """Write a checkpoint after so many epochs (or steps), if it is time."""
        if self._folder is None or time.monotonic() - self._saved < SECONDS:
            return
        with Checkpoints(self._folder, run=self._run, max_to_keep=1) as checkpoints:
            checkpoints.save(done, state, {"history": [] if self._history is None else self._history.epochs})
        self._saved = time.monotonic()
