"""One recipe for several tasks: every task's network is trained, then fine-tuned under each row of the recipe.

Pruned rows lose whole channels, as many of every group, those of least absolute weights, until a share of the parameters is
gone. Rows in int8 train the weights with two axes or more through their rounding, one scale a leaf; vectors are bfloat16.
"small" is both. "distilled" is pruned too, and learns half from labels, half from the dense network's outputs. "tuned" has the
bits and zeros of every layer by `lepton_jax.tuning`, within an eighth of the bytes, found on training examples with the first
seed's network, and is fine-tuned like the others.

A task that is judged by another figure than accuracy has that in its place in the tables, in percent, and
once more under its own name, as a fraction.

Times on ONNX Runtime are of files: float or packed as the row is, those in int8 with activations in int8 too, calibrated on 128
training examples.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import tyro
from flax import linen as nn

from experiments.common import members
from experiments.common.columns import Column, Reference, figure, plain, reference, setting, tabulate, times_smaller
from experiments.common.config import Adam, Checked
from experiments.common.deployed import logits
from experiments.common.figures import accuracy_by_bytes
from experiments.common.measuring import History, Measure, packed_variables
from experiments.common.objectives import Classes
from experiments.common.on_engine import on_engine
from experiments.common.recipe import DENSE, ROWS, Row, within, without_channels
from experiments.common.results import Result, gain
from experiments.common.sources import Data
from experiments.common.study import Cell, Parts, Runner, Study, check_rows
from experiments.common.training_settings import Training
from lepton_jax.core.transform import Transform
from lepton_jax.data import Dataset
from lepton_jax.training import TrainState, create, linen_apply, make_train_step, stacked

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
    round_to: int = 1
    """What the channels that are left are a multiple of; 8 or 16 for convolutions on ONNX Runtime."""
    scan: bool = True
    """Take all steps of an epoch in one program; not for convolutions on CPU."""
    objective: Classes = dataclasses.field(default_factory=Classes)
    """What it is trained for, and judged by."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.name.isidentifier():
            yield "name: must be a word, since it names files"
        yield from self.at_least(1, "dense_epochs", "epochs", "batch_size", "round_to")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Applications(Study):
    """One data set, one or more networks, and the rows of the recipe for each."""

    data: Data
    """Where the examples come from."""
    tasks: Annotated[tuple[Task, ...], tyro.conf.Suppress]
    """The networks."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress] = ROWS
    """The recipe; the row "dense" is what the others are compared with."""
    files: bool = True
    """Save each row's first seed as a file, to count its bytes."""
    latency_rounds: int = 100
    """Timed calls of each network."""
    engine_rounds: int = 15
    """Of the time on ONNX Runtime."""
    known: Annotated[str, tyro.conf.Suppress] = ""
    """What is to be known of the data, and what was aimed at, for the report."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from check_rows([task.name for task in self.tasks], (), field="tasks")
        yield from self.at_least(1, "latency_rounds", "engine_rounds")

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
            tabulate(results, [*COLUMNS, *_own(results)], dense),
            *([self.known] if self.known else []),
            *_refused(results),
            "## Aims",
            "\n".join(f"- {note}" for note in aims(results, dense)) or "The rows that have one were not run.",
            *accuracy_by_bytes(results, panel="task"),
        ]


def _engine(batch: str, result: Result) -> str:
    """The time on ONNX Runtime over the dense network's."""
    there = result.get("onnx_latency_ratio", {})
    return f"{there[batch]:.2f}" if batch in there else ""


OWN = (
    *("auroc", "hit_rate_at_10", "recall_at_1", "ap50", "bleu"),
    *(f"accuracy_{how}_{what}" for what in ("image", "sound") for how in ("without", "noisy")),
)
"""Figures that have a column where they are there, in the order of an objective; fractions."""
COLUMNS: tuple[Column | str, ...] = (
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
    plain("ONNX bytes", lambda r: f"{r['onnx_bytes']:,}" if "onnx_bytes" in r else ""),
    *(plain(f"ONNX time, {batch}", partial(_engine, batch)) for batch in ("1", "128")),
)


def _own(results: Sequence[Result]) -> list[Column]:
    """Columns of the figures that not all studies have: the metric by its name, and what else is measured."""
    there = [name for name in dict.fromkeys(name for result in results for name in result) if name in OWN]
    return [figure(name.replace("_", " "), name, 4) for name in there]


def _refused(results: Sequence[Result]) -> list[str]:
    """Say which networks have no form on ONNX Runtime."""
    return [f"{one['row']} has no file for ONNX Runtime: {one['onnx_refused']}" for one in results if "onnx_refused" in one]


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
        self._recipes: dict[str, Transform] = {}

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
        dense = Measure(linen_apply(task.model), self.dataset).network(first)
        # The channels that are left differ from seed to seed, and so do the models; their shapes are the same.
        costs = history.measure.costs(
            history.transform, [state for state, _ in tuned], dense=dense, rounds=self.study.latency_rounds, path=path
        )
        figures = {name: [one.figures[name][0] for _, one in tuned] for name in history.figures}
        packed, images = packed_variables(history.transform, tuned[0][0]), self.dataset.train.images
        engine = on_engine(dense, history.measure.apply, packed, images, int8=row.bits == 8, rounds=self.study.engine_rounds)
        named = {task.objective.metric: [task.objective.figure(error) for error in figures["error"]]}
        more = [
            task.objective.more(one.measure.apply, one.measure.seen(one.transform, run), self.dataset.test)
            for run, one in tuned
        ]
        besides = {name: [each[name] for each in more] for name in more[0]}
        return [{**figures, **named, **besides, **costs, **engine, "seconds": sum(one.seconds for _, one in tuned)}]

    def before(self, task: Task, seed: int) -> TrainState:
        """Return one seed's dense network, trained once."""
        if (task.name, seed) not in self._before:
            args = (self._loop(task), self.dataset, task.dense_optimizer, [seed])
            name = f"{task.name}, seed {seed}, beforehand"
            state = members.trained(
                *args, epochs=task.dense_epochs, name=name, l2=task.l2, objective=task.objective, run_dir=self.run_dir
            )
            self._before[task.name, seed] = stacked.member(state, 0)
        return self._before[task.name, seed]

    def tune(self, task: Task, row: Row, before: TrainState, seed: int) -> tuple[TrainState, History]:
        """Remove what the row removes, and fine-tune the rest under its view."""
        image, loop = jnp.asarray(self.dataset.train.images[:1]), self._loop(task)
        args = (before.params, before.model_state, image, row.removed, task.round_to)
        whole = linen_apply(task.model)
        apply, params, model_state = without_channels(whole, *args)
        transform = self._recipe(task, row) if row.share is not None else row.transform
        tx = task.optimizer.build(loop.steps(self.dataset, task.epochs))
        if row.taught:
            loss = task.objective.taught(
                apply, task.l2, partial(logits, whole, {"params": before.params, **before.model_state})
            )
        else:
            loss = task.objective.loss(apply, task.l2)
        step = make_train_step(loss, tx, transform)
        history = History(Measure(apply, self.dataset, task.objective), transform)
        state = members.train(
            *(loop, self.dataset.train, step, members.alone(create(params, model_state, tx, transform, before.key)), [seed]),
            epochs=task.epochs,
            first_epoch=task.dense_epochs,
            name=f"{task.name}, seed {seed}, {row.name}",
            history=history,
            run_dir=self.run_dir,
        )
        return stacked.member(state, 0), history

    def _recipe(self, task: Task, row: Row) -> Transform:
        """The row's recipe, the same for all seeds: found with the first one's network."""
        if task.name not in self._recipes:
            first, images = self.before(task, self.seeds[0]), self.dataset.train.images[:256]
            assert row.share is not None
            args = (row.share, linen_apply(task.model), first.params, first.model_state)
            batches = [jnp.asarray(images[start : start + 128]) for start in range(0, len(images), 128)]
            self._recipes[task.name] = within(*args, batches, task.objective.divergence)
        return self._recipes[task.name]

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
