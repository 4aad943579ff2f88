"""A study of distillation: what a small network learns from, in float32 and at few bits, all from the same seeds."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

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
from lepton_jax import fake_quant, identity
from lepton_jax.core.errors import collect
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Dataset
from lepton_jax.distillation import (
    Distill,
    Outputs,
    as_teacher,
    by_part,
    distillation_loss,
    part,
    teach,
    with_adapters,
)
from lepton_jax.quantization import Uniform
from lepton_jax.training import TrainState, create, linen_apply, make_train_step, stacked

TEACHER = "teacher"
"""The row of the teacher itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train the student."""

    name: str
    """Of the method; the same in float32 and at few bits."""
    distill: Distill = dataclasses.field(default_factory=Distill)
    """What it learns from; by default labels alone."""
    bits: int | None = None
    """Of the kernels, which are trained through their rounding; None: float32."""
    temperature: float | None = None
    """Where the figure draws the row, if it is one of a series of temperatures."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name == TEACHER:
            raise ValueError(f"Row: name must be a word other than {TEACHER!r}, since it names files; got {self.name!r}.")
        if self.bits is not None:  # refused here, not after the teachers are trained
            Uniform(bits=self.bits)

    @property
    def transform(self) -> Transform:
        """The view of the student that it is trained under."""
        return identity() if self.bits is None else fake_quant(bits=self.bits)

    @property
    def label(self) -> str:
        """Unique in a study."""
        return self.name if self.bits is None else f"{self.name}-{self.bits}bit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Training):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        with collect(f"Study {self.name!r}") as problems:
            labels = [row.label for row in self.rows]
            if not labels or len(set(labels)) < len(labels):
                problems.append(f"rows: at least one, no name and bits twice; got {labels}")
            check_rows(problems, list(dict.fromkeys(row.name for row in self.rows)), self.only)
            if not self.teacher_epochs >= 1:
                problems.append(f"teacher_epochs: must be at least 1; got {self.teacher_epochs}")
            if not self.scan:
                problems.append("scan: an epoch is always one program here; leave it True")


class Trained(NamedTuple):
    """What the seeds of a row, or of the teacher, end as."""

    state: TrainState
    """Stacked."""
    figures: dict[str, Any]
    seconds: float


class Runner:
    """Runs a study's rows.

    Args:
      study: the settings.
      seeds: of the runs; teacher and students of a seed go together.
      run_dir: gets a JSON file for each finished row, which is not run again.
      dataset: loaded; by default what the study names.
    """

    def __init__(self, study: Study, seeds: Sequence[int], run_dir: Path, dataset: Dataset | None = None) -> None:
        self.study, self.seeds, self.run_dir = study, tuple(seeds), run_dir
        self.dataset = study.data.load() if dataset is None else dataset
        self._apply = linen_apply(study.model)
        self._measure = Measure(self._apply, self.dataset)

    def run(self) -> list[Result]:
        """Run what is missing; return all results, the teacher's first."""
        rows: list[Row | None] = [None, *chosen(self.study.rows, self.study.only)]
        return [kept(self._path(row), functools.partial(self._row, row)) for row in rows]

    def _path(self, row: Row | None, folder: str = "rows", ending: str = "json") -> Path:
        return self.run_dir / folder / f"{TEACHER if row is None else row.label}.{ending}"

    @functools.cached_property
    def teachers(self) -> Trained:
        """Every seed's."""
        begun, config = time.perf_counter(), dataclasses.replace(self.study, model=self.study.teacher)
        history = History(Measure(linen_apply(config.model), self.dataset), identity())
        args, epochs = (config, self.dataset, config.teacher_optimizer, self.seeds), config.teacher_epochs
        state = members.trained(*args, epochs=epochs, name=TEACHER, history=history, run_dir=self.run_dir)
        return Trained(state, history.figures, time.perf_counter() - begun)

    @functools.cached_property
    def answers(self) -> Outputs:
        """What every seed's teacher gives for each training image, ``[seeds, N, ...]``."""
        taps = tuple(dict.fromkeys(tap for row in chosen(self.study.rows, self.study.only) for tap in row.distill.teacher_taps))
        apply, images = linen_apply(self.study.teacher), self.dataset.train.images
        outputs = [teach(as_teacher(apply, run), taps)(images) for run in stacked.apart(self.teachers.state)]
        return jax.tree.map(lambda *each: jnp.stack(each), *outputs)

    def _row(self, row: Row | None) -> Result:
        """Train all seeds of a row, or of the teacher; return its figures."""
        teacher = Measure(linen_apply(self.study.teacher), self.dataset)
        dense, rounds = teacher.network(stacked.member(self.teachers.state, 0)), self.study.latency_rounds
        about: Result
        if row is None:
            about, trained, measure, transform = {"row": TEACHER, "bits": None}, self.teachers, teacher, identity()
        else:
            about = {"row": row.name, "bits": row.bits, "temperature": row.temperature}
            trained, measure, transform = self.train(row, self.answers), self._measure, row.transform
            trained = trained._replace(state=_student(trained.state))
        path = self._path(row, "files", "lepton") if self.study.files and row is not None else None
        costs = measure.costs(transform, stacked.apart(trained.state), dense=dense, rounds=rounds, path=path)
        return {**about, **trained.figures, **costs, "seeds": list(self.seeds), "seconds": trained.seconds}

    def train(self, row: Row, answers: Outputs) -> Trained:
        """Train every seed's student, and its adapters: the parts "student" and "adapters" of the states."""
        study, begun = self.study, time.perf_counter()
        images, labels = jnp.asarray(self.dataset.train.images), jnp.asarray(self.dataset.train.labels)
        answers = Outputs(answers.logits, {tap: answers.features[tap] for tap in row.distill.teacher_taps})
        tx, views = study.optimizer.build(study.steps(self.dataset, study.epochs)), by_part({"student": row.transform})
        first = jax.tree.map(lambda some: some[0], answers)
        batch = members.taught_batch((images, labels), first, jnp.arange(min(study.batch_size, len(labels))))

        def begin(params: PyTree, model_state: PyTree, *, key: Array) -> TrainState:
            run_key, adapter_key = jax.random.split(key)
            both = with_adapters(row.distill, self._apply, params, model_state, batch, adapter_key)
            return create(both, {"student": model_state}, tx, views, run_key)

        state = members.start(study, self.dataset, begin, self.seeds)
        step = make_train_step(distillation_loss(self._apply, row.distill), tx, views)
        history = History(self._measure, row.transform, seen=_student)
        state = members.train(
            *(study, self.dataset.train, step, state, self.seeds),
            epochs=study.epochs,
            answers=answers,
            name=row.label,
            history=history,
            run_dir=self.run_dir,
        )
        return Trained(state, history.figures, time.perf_counter() - begun)


def _student(state: TrainState) -> TrainState:
    return part(state, "student")
