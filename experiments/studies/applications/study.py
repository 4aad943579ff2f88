"""A study of applications: every task's network is trained, then fine-tuned under each row of one recipe."""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from flax import linen as nn

from experiments.common import members
from experiments.common.config import Adam
from experiments.common.deployed import deployed
from experiments.common.measuring import Measure, best_errors
from experiments.common.results import Result, save_result
from experiments.common.tables import revision
from experiments.common.training_settings import Training
from experiments.studies.applications.recipe import ROWS, Row, without_channels
from experiments.studies.applications.sources import Source
from lepton_jax import identity, pack
from lepton_jax.data import steps_per_epoch
from lepton_jax.errors import collect
from lepton_jax.training import ModelApply, TrainState, classification_loss, create, linen_apply, make_train_step
from lepton_jax.transform import Transform


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
            for field in ("tasks", "rows"):
                names = [one.name for one in getattr(self, field)]
                if not names or len(set(names)) < len(names):
                    problems.append(f"{field}: at least one, each with a name of its own; got {names}")
            names = [row.name for row in self.rows]
            problems.extend(f"only: there is no row {name!r}; there are {names}" for name in self.only if name not in names)
            if self.latency_rounds < 1:
                problems.append(f"latency_rounds: must be at least 1; got {self.latency_rounds}")
            if self.max_steps is not None and self.max_steps < 1:
                problems.append(f"max_steps: must be at least 1; got {self.max_steps}")

    @property
    def chosen(self) -> tuple[Row, ...]:
        """The rows to run."""
        return tuple(row for row in self.rows if not self.only or row.name in self.only)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """What one seed of a row ends as.

    Args:
      apply: the network, with the channels that are left.
      transform: the view of its parameters.
      state: of the training.
      measure: of this network.
      history: what that measured after every epoch.
    """

    apply: ModelApply
    transform: Transform
    state: TrainState
    measure: Measure
    history: list[dict[str, Any]]


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
            missing = [row for row in self.study.chosen if not self._path(task, row).exists()]
            if missing:
                before = [self.trained(task, seed) for seed in self.seeds]
                for row in missing:
                    self._run_row(task, row, before)
            results += [json.loads(self._path(task, row).read_text()) for row in self.study.chosen]
        return results

    def _path(self, task: Task, row: Row, folder: str = "rows", ending: str = "json") -> Path:
        return self.run_dir / folder / f"{task.name}-{row.name}.{ending}"

    def trained(self, task: Task, seed: int) -> TrainState:
        """Train one seed's dense network."""
        loop, plain = self._loop(task), identity()
        tx = task.dense_optimizer.build(self._steps(task, task.dense_epochs))
        state = members.start(loop, self.dataset, functools.partial(create, tx=tx, transform=plain), [seed])
        step = make_train_step(classification_loss(linen_apply(task.model), l2=task.l2), tx, plain)
        args = (loop, self.dataset.train, step, state, [seed])
        state = members.train(*args, epochs=task.dense_epochs, name=f"{task.name}, seed {seed}, dense beforehand")
        return members.member(state, 0)

    def tune(self, task: Task, row: Row, before: TrainState, seed: int) -> Tuned:
        """Remove what the row removes, and fine-tune the rest under its view."""
        image = jnp.asarray(self.dataset.train.images[:1])
        apply, params, model_state = without_channels(
            linen_apply(task.model), before.params, before.model_state, image, row.removed
        )
        transform, tx = row.transform, task.optimizer.build(self._steps(task, task.epochs))
        step = make_train_step(classification_loss(apply, l2=task.l2), tx, transform)
        state = _alone(create(params, model_state, tx, transform, before.key))
        measure, history = Measure(apply, self.dataset), []
        for epoch in range(task.dense_epochs, task.dense_epochs + task.epochs):
            args = (self._loop(task), self.dataset.train, step, state, [seed])
            state = members.train(*args, epochs=1, first_epoch=epoch, name=f"{task.name}, seed {seed}, {row.name}")
            history.append(measure(transform, [members.member(state, 0)]))
            if self.study.max_steps is not None:
                break
        return Tuned(apply=apply, transform=transform, state=members.member(state, 0), measure=measure, history=history)

    def _run_row(self, task: Task, row: Row, before: Sequence[TrainState]) -> None:
        """Fine-tune all seeds of a row, and write their result."""
        begun = time.perf_counter()
        tuned = [self.tune(task, row, run, seed) for run, seed in zip(before, self.seeds, strict=True)]
        seconds = time.perf_counter() - begun
        names = tuned[0].history[-1]
        figures: dict[str, Any] = {name: [one.history[-1][name][0] for one in tuned] for name in names}
        figures["best_error"] = [best_errors(one.history)[0] for one in tuned]
        first = tuned[0]
        packed = [{"params": pack(o.transform, o.state.params, o.state.tstate), **o.state.model_state} for o in tuned]
        dense = (linen_apply(task.model), {"params": before[0].params, **before[0].model_state})
        found = deployed(dense, first.apply, packed, self.dataset.test.images, rounds=self.study.latency_rounds)
        if self.study.files:
            path = self._path(task, row, "files", "lepton")
            figures["file_bytes"] = first.measure.file_bytes(first.transform, first.state, path)
        about = {"task": task.name, "row": row.name, "seeds": list(self.seeds)}
        save_result(self._path(task, row), {**about, **figures, **found, "seconds": seconds, "revision": revision()})

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

    def _steps(self, task: Task, epochs: int) -> int:
        steps = epochs * steps_per_epoch(self.dataset.train, task.batch_size)
        return steps if self.study.max_steps is None else min(steps, self.study.max_steps)


def _alone(state: TrainState) -> TrainState:
    """Return one run's state as a stack of one."""
    return TrainState(state.step, *jax.tree.map(lambda leaf: leaf[None], state[1:]))
