"""What a small network learns from, in float32 and at few bits, all from the same seeds.

`gain` is the mean over seeds of the difference from the row `none`, labels alone, of the same bits and seed. At few bits
kernels are trained through their rounding, biases stay float32.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from flax import linen as nn

from experiments.common import members, study
from experiments.common.columns import COSTS, ROW, accuracy, across, change, reference, setting, tabulate
from experiments.common.config import Adam
from experiments.common.curves import Curve, Panel, draw
from experiments.common.figures import Drawing
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, accuracies, spread
from experiments.common.study import Cell, Parts
from experiments.common.tables import Lines
from experiments.common.training_study import TrainingRunner, TrainingStudy
from lepton_jax import fake_quant, identity
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.distillation import Distill, Outputs, as_teacher, by_part, distillation_loss, part, teach, with_adapters
from lepton_jax.quantization import Uniform
from lepton_jax.training import TrainState, create, linen_apply, make_train_step, stacked

TEACHER = "teacher"
"""The row of the teacher itself."""
PLAIN = "none"
"""The row that learns from labels alone, the reference of all others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One way to train the student; rows of one name differ in their bits."""

    reserved = (TEACHER,)

    distill: Distill = dataclasses.field(default_factory=Distill)
    """What it learns from; by default labels alone."""
    bits: int | None = None
    """Of the kernels, which are trained through their rounding; None: float32."""
    temperature: float | None = None
    """Where the figure draws the row, if it is one of a series of temperatures."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.bits is not None:  # refused here, not after the teachers are trained
            Uniform(bits=self.bits)

    @property
    def transform(self) -> Transform:
        """The view of the student that it is trained under."""
        return identity() if self.bits is None else fake_quant(Uniform(self.bits))

    @property
    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits, "temperature": self.temperature}

    @property
    def label(self) -> str:
        return self.name if self.bits is None else f"{self.name}-{self.bits}bit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(TrainingStudy):
    """A table: rows are what the student learns from, columns the bits of its weights; `model` is the student."""

    teacher: Annotated[nn.Module, tyro.conf.Suppress]
    """The large network."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The ways to train."""
    teacher_epochs: int
    """Passes of the teacher over the training set."""
    teacher_optimizer: Adam = dataclasses.field(default_factory=Adam)
    """The teacher's."""
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    """The students', and their adapters'."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "teacher_epochs")
        if not self.scan:
            yield "scan: an epoch is always one program here; leave it True"

    @property
    def cells(self) -> list[Cell]:
        """The teacher first."""
        return [Cell(row=None, name=TEACHER, settings={"bits": None}, label=TEACHER), *super().cells]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        teacher, *students = results
        return [
            accuracies_by_bits(students),
            Drawing(
                file="accuracy.png",
                alternative="accuracy by method, and against temperature",
                draw=partial(plot, teacher=teacher, results=students),
            ),
            "## Validation and cost",
            tabulate(results, VALIDATION),
        ]


def _bits(bits: int | None) -> str:
    return "float32" if bits is None else f"{bits} bits"


LEARNS_FROM = ROW._replace(title="learns from")
VALIDATION = (LEARNS_FROM, setting("weights", "bits", _bits), "accuracy", "parameters", *COSTS)


def accuracies_by_bits(results: Sequence[Result]) -> Lines:
    """Return the cells: a line a method, two columns for each number of bits."""
    columns = (accuracy("{}"), change("gain"))
    return across(results, "bits", columns, head=LEARNS_FROM.title, show=_bits, compare=reference(results, PLAIN, "bits"))


def plot(path: Path, teacher: Result, results: Sequence[Result]) -> None:
    """Draw every method's accuracy, each seed a dot, and accuracy against temperature; dashed: labels alone."""
    rows = list(dict.fromkeys(result["row"] for result in results))
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_bits(result["settings"]["bits"]), []).append(result)
    methods, temperatures = [], []
    for number, (bits, group) in enumerate(groups.items()):
        x = [rows.index(r["row"]) + 0.25 * (number - (len(groups) - 1) / 2) for r in group]
        methods.append(Curve(label=bits, x=x, y=[accuracies(r) for r in group], look={"linestyle": "none"}))
        series = sorted((r for r in group if r["settings"]["temperature"]), key=lambda r: r["settings"]["temperature"])
        x = [r["settings"]["temperature"] for r in series]
        temperatures.append(Curve(label=bits, x=x, y=[accuracies(r) for r in series]))
    plain = {f"labels alone, {_bits(r['settings']['bits'])}": r for r in results if r["row"] == PLAIN}
    levels = {name: statistics.mean(accuracies(result)) for name, result in plain.items()}
    ticks = {float(place): row for place, row in enumerate(rows)}
    panels = [
        Panel(curves=methods, title=f"teacher: {spread(accuracies(teacher))} %", ticks=ticks, seeds=True),
        Panel(
            curves=[curve for curve in temperatures if curve.x],
            title="against the temperature of the soft targets",
            levels=levels,
            x_scale="log",
            ticks={x: f"{x:g}" for curve in temperatures for x in curve.x},
        ),
    ]
    draw(path, panels, y="test accuracy (%)", size=(5.5, 4.8), shared=True)


class Runner(TrainingRunner[Distillation]):
    """Trains every seed's teacher once, and the students of all rows with what it answers."""

    @cached_property
    def teachers(self) -> tuple[TrainState, History]:
        """Every seed's, stacked, and how they were trained."""
        config = self.study
        history = History(Measure(linen_apply(config.teacher), self.dataset), identity())
        args = (config.teacher_optimizer, config.teacher_epochs, TEACHER)
        return self.trained(*args, model=config.teacher, history=history), history

    @cached_property
    def answers(self) -> Outputs:
        """What every seed's teacher gives for each training image, ``[seeds, N, ...]``."""
        taps = tuple(dict.fromkeys(tap for row in self.study.chosen for tap in row.distill.teacher_taps))
        apply, images = linen_apply(self.study.teacher), self.dataset.train.images
        outputs = [teach(as_teacher(apply, run), taps)(images) for run in stacked.apart(self.teachers[0])]
        return jax.tree.map(lambda *each: jnp.stack(each), *outputs)

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        cell, (teachers, history) = cells[0], self.teachers
        dense = history.measure.network(stacked.member(teachers, 0))
        if cell.row is None:
            return [self.figures(cell, history, teachers, dense, file=False)]
        state, history = self.learn(cell.row, self.answers)
        return [self.figures(cell, history, _student(state), dense)]

    def learn(self, row: Row, answers: Outputs) -> tuple[TrainState, History]:
        """Train every seed's student, and its adapters: the parts "student" and "adapters" of the states."""
        config, history = self.study, History(self.measured, row.transform, seen=_student)
        images, labels = jnp.asarray(self.dataset.train.images), jnp.asarray(self.dataset.train.labels)
        answers = Outputs(answers.logits, {tap: answers.features[tap] for tap in row.distill.teacher_taps})
        tx, views = config.optimizer.build(config.steps(self.dataset, config.epochs)), by_part({"student": row.transform})
        first = jax.tree.map(lambda some: some[0], answers)
        batch = members.taught_batch((images, labels), first, jnp.arange(min(config.batch_size, len(labels))))

        def begin(params: PyTree, model_state: PyTree, *, key: Array) -> TrainState:
            run_key, adapter_key = jax.random.split(key)
            both = with_adapters(row.distill, self.apply, params, model_state, batch, adapter_key)
            return create(both, {"student": model_state}, tx, views, run_key)

        state = members.start(config, self.dataset, begin, self.seeds)
        step = make_train_step(distillation_loss(self.apply, row.distill), tx, views)
        return self.train(step, state, range(config.epochs), row.label, history, answers=answers), history


def _student(state: TrainState) -> TrainState:
    return part(state, "student")
