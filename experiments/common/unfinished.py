"""Trainings that can be interrupted: a checkpoint now and then, from which the same training goes on."""

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from experiments.common import processes
from lepton_jax.training import Checkpoints, FitSettings, StackedSource, TrainState, TrainStep, multihost

FOLDER = "unfinished"
"""In the run's folder; removed when the run is reported."""
SECONDS = 60.0
"""A checkpoint is written if so much time has passed since the last: short trainings have none."""


class History(Protocol):
    """Figures of every epoch, as JSON can hold them."""

    epochs: list[dict[str, Any]]

    def __call__(self, state: TrainState) -> dict[str, Any]:
        """Measure; `train` adds the figures to `epochs`."""


def train(
    state: TrainState,
    step: TrainStep,
    batch_at: Callable[[int], Any] | StackedSource,
    settings: FitSettings,
    *,
    name: str,
    seeds: Sequence[int],
    history: History | None = None,
    run_dir: Path | None = None,
) -> TrainState:
    """Train by `processes.train`, so that the same call goes on where it was interrupted.

    Args:
      name: of the training, unique in the run's folder; shown at the progress bar.
      seeds: of its members; a checkpoint of the name and of other seeds is refused.
      history: measures the state after every evaluation.
      run_dir: gets a checkpoint now and then; None: none is written.
      state, step, batch_at, settings: as for `fit`.

    Raises:
      FloatingPointError: if a loss is not finite.
    """
    kept: AbstractContextManager[Checkpoints | None] = nullcontext()
    if run_dir is not None:
        about = f"{name}, seeds {list(seeds)}"
        kept = Checkpoints(_folder(run_dir, name), run=about, seconds=SECONDS)
    epochs = None if history is None else history.epochs
    with kept as checkpoints:
        ways: dict[str, Any] = {"evaluate": history, "history": epochs, "checkpoints": checkpoints, "name": name}
        return processes.train(state, step, batch_at, settings, resume=True, **ways)


def remove(run_dir: Path, name: str | None = None) -> None:
    """Remove the checkpoints of a run's trainings, which are finished; of one training, if it is named."""
    if not multihost.is_first():
        return
    shutil.rmtree(run_dir / FOLDER if name is None else _folder(run_dir, name), ignore_errors=True)
    with suppress(OSError):  # there are others', or there is none
        (run_dir / FOLDER).rmdir()


def _folder(run_dir: Path, name: str) -> Path:
    return run_dir / FOLDER / re.sub(r"[^\w.+-]+", "_", name)
