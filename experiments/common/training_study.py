"""Studies of small networks that are trained here, every seed of a row in one program."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from flax import linen as nn

from experiments.common import members
from experiments.common.config import Adam, Momentum
from experiments.common.deployed import Network
from experiments.common.measuring import History, Measure
from experiments.common.results import Result
from experiments.common.study import Cell, Runner, Study
from experiments.common.training_settings import Training
from lepton_jax.data import Dataset
from lepton_jax.distillation import Outputs
from lepton_jax.training import ModelApply, TrainState, TrainStep, linen_apply, stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingStudy(Study, Training):
    """A study of one network on one data set."""

    files: bool = True
    """Save each row's first seed as a file, to count its bytes."""
    latency_rounds: int = 50
    """Timed calls of each network, whose time is compared with the dense one's."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "latency_rounds")


T = TypeVar("T", bound=TrainingStudy)


class TrainingRunner(Runner[T]):
    """Trains and measures the cells of such a study.

    Args:
      study: the settings.
      seeds: of the runs.
      run_dir: gets a JSON file for each finished cell.
      dataset: loaded; by default what the study names.
    """

    def __init__(self, study: T, seeds: Sequence[int], run_dir: Path, dataset: Dataset | None = None) -> None:
        super().__init__(study, seeds, run_dir)
        self._given = dataset

    @cached_property
    def dataset(self) -> Dataset:
        """The examples."""
        return self.study.data.load() if self._given is None else self._given

    @cached_property
    def apply(self) -> ModelApply:
        """The study's network."""
        return linen_apply(self.study.model)

    @cached_property
    def measured(self) -> Measure:
        """Measures the study's network."""
        return Measure(self.apply, self.dataset)

    def trained(
        self,
        optimizer: Adam | Momentum,
        epochs: int,
        name: str,
        *,
        model: nn.Module | None = None,
        history: History | None = None,
    ) -> TrainState:
        """Train every seed's network, or another model, from its initial weights under no transform; the stacked states."""
        config = dataclasses.replace(self.study, model=model or self.study.model)
        args = (config, self.dataset, optimizer, self.seeds)
        return members.trained(*args, epochs=epochs, name=name, history=history, run_dir=self.run_dir)

    def train(
        self,
        step: TrainStep,
        state: TrainState,
        epochs: range,
        name: str,
        history: History | None = None,
        *,
        seeds: Sequence[int] | None = None,
        answers: Outputs | None = None,
    ) -> TrainState:
        """Train stacked states for some epochs of the data.

        Args:
          step: from `make_train_step`.
          state: donated.
          epochs: of the data; each seed has an order of its own in each.
          name: of the training, unique in the run's folder.
          history: called after every epoch.
          seeds: of the members; by default the runner's.
          answers: what every member's teacher says of all examples; steps are then of `TaughtBatch`.
        """
        args = (self.study, self.dataset.train, step, state, self.seeds if seeds is None else seeds)
        where: dict[str, Any] = {"name": name, "history": history, "run_dir": self.run_dir, "answers": answers}
        return members.train(*args, epochs=len(epochs), first_epoch=epochs.start, **where)

    def figures(
        self,
        cell: Cell,
        history: History,
        state: TrainState | Sequence[TrainState],
        dense: Network,
        *,
        file: bool = True,
        **more: Any,
    ) -> Result:
        """Return what is said of a cell that was trained: its errors, what it costs packed, the time it took.

        Args:
          cell: names its file.
          history: of the training.
          state: stacked, or every seed's.
          dense: the network that times are compared with; see `Measure.network`.
          file: whether it has one.
          more: other figures, which replace those of the same name.
        """
        runs = stacked.apart(state) if isinstance(state, TrainState) else list(state)
        path = self.path(cell, "files", "lepton") if self.study.files and file else None
        costs = history.measure.costs(history.transform, runs, dense=dense, rounds=self.study.latency_rounds, path=path)
        return {**history.figures, **costs, "seconds": history.seconds, **more}
