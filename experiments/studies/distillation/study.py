"""A study of distillation: what a small network learns from, in float32 and at few bits, all from the same seeds."""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn
from tqdm.auto import tqdm

from experiments.common import members, taught
from experiments.common.config import Adam
from experiments.common.measuring import Measure
from experiments.common.results import Result, save_result
from experiments.common.tables import revision
from experiments.common.training_settings import Training
from lepton_jax import fake_quant, identity
from lepton_jax.data import Dataset, steps_per_epoch
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
from lepton_jax.errors import collect
from lepton_jax.quantization import Uniform
from lepton_jax.training import TrainState, classification_loss, create, linen_apply, make_train_step
from lepton_jax.transform import Transform
from lepton_jax.typing import Array, PyTree

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
            names = list(dict.fromkeys(row.name for row in self.rows))
            problems.extend(f"only: there is no row {name!r}; there are {names}" for name in self.only if name not in names)
            if not self.teacher_epochs >= 1:
                problems.append(f"teacher_epochs: must be at least 1; got {self.teacher_epochs}")
            if not self.scan:
                problems.append("scan: an epoch is always one program here; leave it True")

    @property
    def chosen(self) -> tuple[Row, ...]:
        """The rows to run."""
        return tuple(row for row in self.rows if not self.only or row.name in self.only)


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
        missing = [row for row in self.study.chosen if not self._path(row.label).exists()]
        if missing or not self._path(TEACHER).exists():
            answers = self._teachers_answers(missing)
            for row in missing:
                self._run_row(row, answers)
        labels = [TEACHER, *(row.label for row in self.study.chosen)]
        return [json.loads(self._path(label).read_text()) for label in labels]

    def _path(self, label: str) -> Path:
        return self.run_dir / "rows" / f"{label}.json"

    def _save(self, label: str, begun: float, **result: Any) -> None:
        seconds = time.perf_counter() - begun
        about = {"seeds": list(self.seeds), "seconds": seconds, "revision": revision()}
        save_result(self._path(label), {**result, **about})

    def _teachers_answers(self, rows: Sequence[Row]) -> Outputs:
        """Train every seed's teacher; return what each gives for each training image, ``[seeds, N, ...]``."""
        study, begun, plain = self.study, time.perf_counter(), identity()
        apply = linen_apply(study.teacher)
        tx = study.teacher_optimizer.build(self._steps(study.teacher_epochs))
        config = dataclasses.replace(study, model=study.teacher)
        state = members.start(config, self.dataset, functools.partial(create, tx=tx, transform=plain), self.seeds)
        step = make_train_step(classification_loss(apply), tx, plain)
        args = (config, self.dataset.train, step, state, self.seeds)
        state = members.train(*args, epochs=study.teacher_epochs, name=TEACHER)
        runs = [members.member(state, place) for place in range(len(self.seeds))]
        figures = Measure(apply, self.dataset)(plain, runs)
        self._save(TEACHER, begun, row=TEACHER, bits=None, parameters=_size(runs[0].params), **figures)
        taps = tuple(dict.fromkeys(tap for row in rows for tap in row.distill.teacher_taps))
        outputs = [teach(as_teacher(apply, run), taps)(self.dataset.train.images) for run in runs]
        return jax.tree.map(lambda *each: jnp.stack(each), *outputs)

    def _run_row(self, row: Row, answers: Outputs) -> None:
        """Train all seeds of a row in one program, and write their result."""
        begun = time.perf_counter()
        needed = Outputs(answers.logits, {tap: answers.features[tap] for tap in row.distill.teacher_taps})
        state = self.train(row, needed)
        runs = [part(members.member(state, place), "student") for place in range(len(self.seeds))]
        figures = self._measure(row.transform, runs)
        if self.study.files:
            path = self.run_dir / "files" / f"{row.label}.lepton"
            figures["file_bytes"] = self._measure.file_bytes(row.transform, runs[0], path)
        about = {"row": row.name, "bits": row.bits, "temperature": row.temperature, "parameters": _size(runs[0].params)}
        self._save(row.label, begun, **about, **figures)

    def train(self, row: Row, answers: Outputs) -> TrainState:
        """Train every seed's student; return the stacked states, student and adapters."""
        study = self.study
        images, labels = jnp.asarray(self.dataset.train.images), jnp.asarray(self.dataset.train.labels)
        tx, views = study.optimizer.build(self._steps(study.epochs)), by_part({"student": row.transform})
        first = jax.tree.map(lambda some: some[0], answers)
        batch = taught.batch_of(images, labels, first, jnp.arange(min(study.batch_size, len(labels))))

        def begin(params: PyTree, model_state: PyTree, *, key: Array) -> TrainState:
            run_key, adapter_key = jax.random.split(key)
            both = with_adapters(row.distill, self._apply, params, model_state, batch, adapter_key)
            return create(both, {"student": model_state}, tx, views, run_key)

        state = members.start(study, self.dataset, begin, self.seeds)
        step = make_train_step(distillation_loss(self._apply, row.distill), tx, views)
        with tqdm(total=study.epochs, desc=row.label, unit="epoch", disable=None) as bar:
            for epoch in range(study.epochs if study.max_steps is None else 1):
                orders = np.stack([self._order(seed, epoch) for seed in self.seeds])
                state, losses = taught.epoch(step, study.vmap, state, answers, images, labels, jnp.asarray(orders))
                finite = np.isfinite(np.asarray(losses)).all(axis=1)
                if not finite.all():
                    bad = ", ".join(str(seed) for seed, good in zip(self.seeds, finite) if not good)
                    raise FloatingPointError(f"{row.label}: the loss is not finite in epoch {epoch}, of seed {bad}.")
                bar.update()
        return state

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        return members.order(self.dataset.train, self.study.batch_size, seed, epoch)[: self.study.max_steps]

    def _steps(self, epochs: int) -> int:
        steps = epochs * steps_per_epoch(self.dataset.train, self.study.batch_size)
        return steps if self.study.max_steps is None else min(steps, self.study.max_steps)


def _size(params: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
