"""A study of applications: every task's network is trained, then fine-tuned under each row of one recipe."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from flax import linen as nn

from experiments.common import members
from experiments.common.config import Adam
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, kept
from experiments.common.rows import check_rows, chosen
from experiments.common.training_settings import Training
from experiments.studies.applications.recipe import ROWS, Row, without_channels
from experiments.studies.applications.sources import Source
from lepton_jax.core.errors import collect
from lepton_jax.core.transform import Transform
from lepton_jax.training import TrainState, classification_loss, create, linen_apply, make_train_step, stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A network for the study's data, and how it is trained."""

    name: str
    """Of the network."""
    model: nn.Module
    """The network."""
    dense_epochs: int
    """Passes over the training set beforehand."""
    epochs: int
    """Passes of every row after that, the dense one's too."""
    dense_optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of the training."""
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of the rows."""
    batch_size: int = 64
    """Examples a step."""
    l2: float = 0.0
    """Weight of half the sum of squares of the weights with two axes or more."""
    scan: bool = True
    """Take all steps of an epoch in one program; not for convolutions on CPU."""

    def __post_init__(self) -> None:
        with collect(f"Task {self.name!r}") as problems:
            if not self.name.isidentifier():
                problems.append("name: must be a word, since it names files")
            for field in ("dense_epochs", "epochs", "batch_size"):
                if not getattr(self, field) >= 1:
                    problems.append(f"{field}: must be at least 1; got {getattr(self, field)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One data set, one or more networks, and the rows of the recipe for each."""

    name: str
    """Names the run folder."""
    data: Source
    """Where the examples come from."""
    tasks: Annotated[tuple[Task, ...], tyro.conf.Suppress]
    """The networks."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress] = ROWS
    """The recipe; the row "dense" is what the others are compared with."""
    seed: int = 0
    """The first seed: of initialisation, order and dropout."""
    max_steps: int | None = None
    """Stop every training after so many steps, for a trial run."""
    only: tuple[str, ...] = ()
    """Run only the rows of these names."""
    files: bool = True
    """Save each row's first seed as a file, to count its bytes."""
    latency_rounds: int = 100
    """Timed calls of each network."""

    def __post_init__(self) -> None:
        with collect(f"Study {self.name!r}") as problems:
            check_rows(problems, [task.name for task in self.tasks], (), field="tasks")
            check_rows(problems, [row.name for row in self.rows], self.only)
            if self.latency_rounds < 1:
                problems.append(f"latency_rounds: must be at least 1; got {self.latency_rounds}")
            if self.max_steps is not None and self.max_steps < 1:
                problems.append(f"max_steps: must be at least 1; got {self.max_steps}")


class Tuned(NamedTuple):
    """What one seed of a row ends as."""

    measure: Measure
    """Of the network with the channels that are left."""
    transform: Transform
    """The view of its parameters."""
    state: TrainState
    figures: dict[str, list[float]]
    """Each a list of one."""


class Runner:
    """Runs a study's tasks and rows.

    Args:
      study: the settings.
      seeds: of the runs; a seed's rows all begin at its dense network.
      run_dir: gets a JSON file for each finished row of a task, which is not run again.
    """

    def __init__(self, study: Study, seeds: Sequence[int], run_dir: Path) -> None:
        self.study, self.seeds, self.run_dir = study, tuple(seeds), run_dir
        self.dataset = study.data.load()

    def run(self) -> list[Result]:
        """Run what is missing; return all results, task by task."""
        results = []
        for task in self.study.tasks:
            before = functools.cache(functools.partial(self.trained, task))
            for row in chosen(self.study.rows, self.study.only):
                results.append(kept(self._path(task, row), functools.partial(self._row, task, row, before)))
        return results

    def _path(self, task: Task, row: Row, folder: str = "rows", ending: str = "json") -> Path:
        return self.run_dir / folder / f"{task.name}-{row.name}.{ending}"

    def _row(self, task: Task, row: Row, before: Callable[[int], TrainState]) -> Result:
        """Fine-tune all seeds of a row; return its figures."""
        first, *_ = runs = [before(seed) for seed in self.seeds]
        begun = time.perf_counter()
        tuned = [self.tune(task, row, run, seed) for run, seed in zip(runs, self.seeds, strict=True)]
        seconds = time.perf_counter() - begun
        dense = Measure(linen_apply(task.model), self.dataset).network(first)
        path = self._path(task, row, "files", "lepton") if self.study.files else None
        # The channels that are left differ from seed to seed, and so do the models; their shapes are the same.
        costs = tuned[0].measure.costs(
            tuned[0].transform, [one.state for one in tuned], dense=dense, rounds=self.study.latency_rounds, path=path
        )
        figures = {name: [one.figures[name][0] for one in tuned] for name in tuned[0].figures}
        return {"task": task.name, "row": row.name, "seeds": list(self.seeds), **figures, **costs, "seconds": seconds}

    def trained(self, task: Task, seed: int) -> TrainState:
        """Train one seed's dense network."""
        args, name = (
            (self._loop(task), self.dataset, task.dense_optimizer, [seed]),
            f"{task.name}, seed {seed}, beforehand",
        )
        state = members.trained(*args, epochs=task.dense_epochs, name=name, l2=task.l2, run_dir=self.run_dir)
        return stacked.member(state, 0)

    def tune(self, task: Task, row: Row, before: TrainState, seed: int) -> Tuned:
        """Remove what the row removes, and fine-tune the rest under its view."""
        image = jnp.asarray(self.dataset.train.images[:1])
        apply, params, model_state = without_channels(
            linen_apply(task.model), before.params, before.model_state, image, row.removed
        )
        transform, tx = row.transform, task.optimizer.build(self._loop(task).steps(self.dataset, task.epochs))
        step = make_train_step(classification_loss(apply, l2=task.l2), tx, transform)
        state = _alone(create(params, model_state, tx, transform, before.key))
        measure = Measure(apply, self.dataset)
        history = History(measure, transform)
        state = members.train(
            *(self._loop(task), self.dataset.train, step, state, [seed]),
            epochs=task.epochs,
            first_epoch=task.dense_epochs,
            name=f"{task.name}, seed {seed}, {row.name}",
            history=history,
            run_dir=self.run_dir,
        )
        return Tuned(measure, transform, stacked.member(state, 0), history.figures)

    def _loop(self, task: Task) -> Training:
        return Training(
            name=task.name,
            data=self.study.data,  # type: ignore[arg-type]  # it is loaded already, and only the loop's fields are read
            model=task.model,
            epochs=task.epochs,
            batch_size=task.batch_size,
            scan=task.scan,
            max_steps=self.study.max_steps,
        )


def _alone(state: TrainState) -> TrainState:
    """Return one run's state as a stack of one."""
    return TrainState(state.step, *jax.tree.map(lambda leaf: leaf[None], state[1:]))
