"""One recipe for several tasks: every task's network is trained, then fine-tuned under each row of the recipe.

Pruned rows lose whole channels, as many of every group, those of least absolute weights, until a share of the parameters is
gone. Rows in int8 train the weights with two axes or more through their rounding, one scale a leaf; vectors are bfloat16.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from flax import linen as nn

from experiments.common import members
from experiments.common.columns import Reference, reference, setting, tabulate, times_smaller
from experiments.common.config import Adam, Checked, Digits, Fsdd, Sst2, Tfds
from experiments.common.figures import accuracy_by_bytes
from experiments.common.measuring import History, Measure
from experiments.common.recipe import DENSE, ROWS, Row, without_channels
from experiments.common.results import Result, gain
from experiments.common.study import Cell, Parts, Runner, Study, check_rows
from experiments.common.training_settings import Training
from lepton_jax.core.transform import Transform
from lepton_jax.data import Dataset
from lepton_jax.training import TrainState, classification_loss, create, linen_apply, make_train_step, stacked

_AIMS = {
    "int8": (4.0, 1.0, "4x smaller at 1 point lost at most"),
    "small": (4.0, 1.0, "4x smaller at 1 point lost at most"),
    "pruned": (1 / 0.7, 2.0, "30 % smaller at 2 points lost at most"),
}
"""Row -> how many times smaller, points that may be lost, the same in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Checked):
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

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.name.isidentifier():
            yield "name: must be a word, since it names files"
        yield from self.at_least(1, "dense_epochs", "epochs", "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Applications(Study):
    """One data set, one or more networks, and the rows of the recipe for each."""

    data: Sst2 | Fsdd | Digits | Tfds
    """Where the examples come from."""
    tasks: Annotated[tuple[Task, ...], tyro.conf.Suppress]
    """The networks."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress] = ROWS
    """The recipe; the row "dense" is what the others are compared with."""
    files: bool = True
    """Save each row's first seed as a file, to count its bytes."""
    latency_rounds: int = 100
    """Timed calls of each network."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from check_rows([task.name for task in self.tasks], (), field="tasks")
        yield from self.at_least(1, "latency_rounds")

    @property
    def cells(self) -> list[Cell]:
        """Every row of every network."""
        return [
            Cell(row=(task, row), name=row.name, settings={"task": task.name}, label=f"{task.name}-{row.name}")
            for task in self.tasks
            for row in self.chosen
        ]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "ApplicationRunner":
        return ApplicationRunner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        dense = reference(results, DENSE, "task")
        return [
            tabulate(results, COLUMNS, dense),
            "## Aims",
            "\n".join(f"- {note}" for note in aims(results, dense)) or "The rows that have one were not run.",
            *accuracy_by_bytes(results, panel="task"),
        ]


COLUMNS = (
    setting("network", "task"),
    *(
        "row",
        "accuracy",
        "change",
        "smaller",
        "best epoch",
        "validation",
        "parameters",
        "bytes",
        "MACs",
        "time, 1",
        "time, 128",
    ),
)


def aims(results: Sequence[Result], dense: Reference) -> list[str]:
    """Say of every row that has an aim what it reached, against the dense network of its task."""
    notes = []
    for result in results:
        other, aim = dense(result), _AIMS.get(result["row"])
        ratio = times_smaller(result, other)
        if aim is None or other is None or ratio is None:
            continue
        times, points, words = aim
        change = gain(result, other)
        word = "reached" if ratio >= times and change >= -points else "missed"
        place = f"{result['settings']['task']}, {result['row']}"
        notes.append(f"{place}: {words}: {word}, with {ratio:.2f}x and {change:+.2f} points.")
    return notes


class ApplicationRunner(Runner[Applications]):
    """Fine-tunes every row of every network, seed by seed; a seed's rows all begin at its dense network."""

    def __init__(self, study: Applications, seeds: Sequence[int], run_dir: Path) -> None:
        super().__init__(study, seeds, run_dir)
        self._before: dict[tuple[str, int], TrainState] = {}

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The examples."""
        return self.study.data.load()

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        [cell] = cells
        task, row = cell.row
        first, *_ = runs = [self.before(task, seed) for seed in self.seeds]
        tuned = [self.tune(task, row, run, seed) for run, seed in zip(runs, self.seeds, strict=True)]
        history, path = tuned[0][1], self.path(cell, "files", "lepton") if self.study.files else None
        # The channels that are left differ from seed to seed, and so do the models; their shapes are the same.
        costs = history.measure.costs(
            history.transform,
            [state for state, _ in tuned],
            dense=Measure(linen_apply(task.model), self.dataset).network(first),
            rounds=self.study.latency_rounds,
            path=path,
        )
        figures = {name: [one.figures[name][0] for _, one in tuned] for name in history.figures}
        return [{**figures, **costs, "seconds": sum(one.seconds for _, one in tuned)}]

    def before(self, task: Task, seed: int) -> TrainState:
        """Return one seed's dense network, trained once."""
        if (task.name, seed) not in self._before:
            args = (self._loop(task), self.dataset, task.dense_optimizer, [seed])
            name = f"{task.name}, seed {seed}, beforehand"
            state = members.trained(*args, epochs=task.dense_epochs, name=name, l2=task.l2, run_dir=self.run_dir)
            self._before[task.name, seed] = stacked.member(state, 0)
        return self._before[task.name, seed]

    def tune(self, task: Task, row: Row, before: TrainState, seed: int) -> tuple[TrainState, History]:
        """Remove what the row removes, and fine-tune the rest under its view."""
        image, loop = jnp.asarray(self.dataset.train.images[:1]), self._loop(task)
        args = (before.params, before.model_state, image, row.removed)
        apply, params, model_state = without_channels(linen_apply(task.model), *args)
        transform: Transform = row.transform
        tx = task.optimizer.build(loop.steps(self.dataset, task.epochs))
        step = make_train_step(classification_loss(apply, l2=task.l2), tx, transform)
        history = History(Measure(apply, self.dataset), transform)
        state = members.train(
            *(loop, self.dataset.train, step, _alone(create(params, model_state, tx, transform, before.key)), [seed]),
            epochs=task.epochs,
            first_epoch=task.dense_epochs,
            name=f"{task.name}, seed {seed}, {row.name}",
            history=history,
            run_dir=self.run_dir,
        )
        return stacked.member(state, 0), history

    def _loop(self, task: Task) -> Training:
        return Training(
            name=task.name,
            data=self.study.data,
            model=task.model,
            epochs=task.epochs,
            batch_size=task.batch_size,
            scan=task.scan,
            max_steps=self.study.max_steps,
        )


def _alone(state: TrainState) -> TrainState:
    """Return one run's state as a stack of one."""
    return TrainState(state.step, *jax.tree.map(lambda leaf: leaf[None], state[1:]))
