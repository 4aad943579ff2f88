"""A study of combinations: every row is a fine-tuning of the same dense networks, for the same number of epochs."""

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
from experiments.common.deployed import deployed
from experiments.common.measuring import Measure, best_errors
from experiments.common.results import Result, save_result
from experiments.common.tables import revision
from experiments.common.training_settings import Training
from experiments.studies.combined.techniques import TECHNIQUES, Settings, Technique
from lepton_jax import chain, freeze, identity, pack
from lepton_jax.data import Dataset, steps_per_epoch
from lepton_jax.distillation import Distill, LogitTerm, Outputs, by_part, distillation_loss, part, soft_targets
from lepton_jax.errors import collect
from lepton_jax.training import TrainState, TrainStep, classification_loss, create, linen_apply, make_train_step
from lepton_jax.transform import Transform
from lepton_jax.typing import Array, PyTree

DENSE = "dense"
"""The row that is fine-tuned without any technique."""
_ANSWERS = 1000
"""Images a batch, when the teachers answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Techniques together, in the order of their views; in several phases, one after another.

    A phase's techniques go on being applied in the phases after it, frozen: masks stay; distillation ends with its phase.
    """

    phases: tuple[tuple[Technique, ...], ...] = ((),)
    """The epochs are shared equally among them."""

    def __post_init__(self) -> None:
        with collect("Row") as problems:
            if not self.phases:
                problems.append("phases: at least one")
            unknown = {name for phase in self.phases for name in phase if name not in TECHNIQUES}
            problems.extend(f"phases: there is no technique {name!r}; there are {', '.join(TECHNIQUES)}" for name in unknown)
            if any(len(set(phase)) < len(phase) for phase in self.phases):
                problems.append(f"phases: no technique twice in one; got {self.phases}")

    @property
    def label(self) -> str:
        """Unique in a study: techniques of a phase are joined by a plus."""
        return "-then-".join("+".join(phase) for phase in self.phases) or DENSE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Training):
    """A table of combinations; `epochs` are those of the fine-tuning."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The combinations."""
    dense_epochs: int
    """Passes beforehand, of the dense networks that all rows begin at."""
    teacher: Annotated[nn.Module, tyro.conf.Suppress]
    """A larger network, one a seed, trained for as long as the dense one."""
    techniques: Settings = dataclasses.field(default_factory=Settings)
    """How strong each is."""
    dense_optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of the dense networks and the teachers."""
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of the fine-tuning, made anew for every phase."""
    latency_rounds: int = 200
    """Timed calls of each network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        with collect(f"Study {self.name!r}") as problems:
            labels = [row.label for row in self.rows]
            if not labels or len(set(labels)) < len(labels):
                problems.append(f"rows: at least one, none twice; got {labels}")
            problems.extend(f"only: there is no row {name!r}; there are {labels}" for name in self.only if name not in labels)
            for field in ("dense_epochs", "latency_rounds"):
                if not getattr(self, field) >= 1:
                    problems.append(f"{field}: must be at least 1; got {getattr(self, field)}")
            for row in self.rows:
                if self.epochs % len(row.phases):
                    problems.append(f"row {row.label}: {len(row.phases)} phases must share {self.epochs} epochs equally")
            if not self.scan:
                problems.append("scan: an epoch is always one program here; leave it True")

    @property
    def chosen(self) -> tuple[Row, ...]:
        """The rows to run."""
        return tuple(row for row in self.rows if not self.only or row.label in self.only)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a row ends as.

    Args:
      transform: the view of all its phases.
      runs: the seeds' states.
      history: of every epoch after which the figures count, as `Measure` gives them.
    """

    transform: Transform
    runs: list[TrainState]
    history: list[dict[str, Any]]


class Runner:
    """Runs a study's rows.

    Args:
      study: the settings.
      seeds: of the runs; a seed's rows all begin at its dense network.
      run_dir: gets a JSON file for each finished row, which is not run again.
      dataset: loaded; by default what the study names.
    """

    def __init__(self, study: Study, seeds: Sequence[int], run_dir: Path, dataset: Dataset | None = None) -> None:
        self.study, self.seeds, self.run_dir = study, tuple(seeds), run_dir
        self.dataset = study.data.load() if dataset is None else dataset
        self._apply = linen_apply(study.model)
        self._measure = Measure(self._apply, self.dataset)

    def run(self) -> list[Result]:
        """Run what is missing; return all results, in the order of the study."""
        missing = [row for row in self.study.chosen if not self._path(row).exists()]
        if missing:
            before = self.trained(self.study.model, DENSE)
            answers = self._answers(taught=any("distil" in phase for row in missing for phase in row.phases))
            for row in missing:
                self._run_row(row, before, answers)
        return [json.loads(self._path(row).read_text()) for row in self.study.chosen]

    def _path(self, row: Row, folder: str = "rows", ending: str = "json") -> Path:
        return self.run_dir / folder / f"{row.label}.{ending}"

    def trained(self, model: nn.Module, name: str) -> TrainState:
        """Train every seed's dense network, or teacher; the stacked states."""
        study, plain = dataclasses.replace(self.study, model=model), identity()
        tx = study.dense_optimizer.build(self._steps(study.dense_epochs))
        state = members.start(study, self.dataset, functools.partial(create, tx=tx, transform=plain), self.seeds)
        step = make_train_step(classification_loss(linen_apply(model)), tx, plain)
        args = (study, self.dataset.train, step, state, self.seeds)
        return members.train(*args, epochs=study.dense_epochs, name=name)

    def _answers(self, *, taught: bool) -> Array:
        """Return the logits of every seed's teacher for all training images, ``[seeds, N, classes]``; zeros untaught."""
        images = self.dataset.train.images
        if not taught:
            return jnp.zeros((len(self.seeds), len(images), self.dataset.num_classes))
        state, apply = self.trained(self.study.teacher, "teacher"), linen_apply(self.study.teacher)

        @jax.jit
        def logits(params: PyTree, model_state: PyTree, some: Array) -> Array:
            return apply(params, model_state, some, train=False, key=None)[0]

        runs = [members.member(state, place) for place in range(len(self.seeds))]
        parts = np.array_split(images, max(len(images) // _ANSWERS, 1))
        given = [[logits(run.params, run.model_state, jnp.asarray(some)) for some in parts] for run in runs]
        return jnp.stack([jnp.concatenate(one) for one in given])

    def _run_row(self, row: Row, before: TrainState, answers: Array) -> None:
        """Fine-tune all seeds of a row, and write their result."""
        begun = time.perf_counter()
        tuned = self.tune(row, before, answers)
        seconds = time.perf_counter() - begun
        figures = {**tuned.history[-1], "best_error": best_errors(tuned.history)}
        dense = members.member(before, 0)
        packed = [{"params": pack(tuned.transform, run.params, run.tstate), **run.model_state} for run in tuned.runs]
        given = (self._apply, {"params": dense.params, **dense.model_state})
        found = deployed(given, self._apply, packed, self.dataset.test.images, rounds=self.study.latency_rounds)
        if self.study.files:
            figures["file_bytes"] = self._measure.file_bytes(tuned.transform, tuned.runs[0], self._path(row, "files", "lepton"))
        about = {"row": row.label, "phases": [list(phase) for phase in row.phases], "seeds": list(self.seeds)}
        save_result(self._path(row), {**about, **figures, **found, "seconds": seconds, "revision": revision()})

    def tune(self, row: Row, before: TrainState, answers: Array) -> Tuned:
        """Fine-tune every seed, phase after phase."""
        transform, states = identity(), before
        history: list[dict[str, Any]] = []
        epochs = self.study.epochs // len(row.phases)
        for number, phase in enumerate(row.phases):
            steps = self._steps(epochs)
            built = [made for name in phase if (made := self.study.techniques.build(name, steps)) is not None]
            tx = self.study.optimizer.build(steps)
            states, transform = _begin(states, transform, built, tx)
            step = make_train_step(self._loss(phase), tx, by_part({"student": transform}))
            first = self.study.dense_epochs + number * epochs
            name = f"{row.label}, {number + 1} of {len(row.phases)}"
            states, history = self._train(step, transform, states, answers, range(first, first + epochs), name)
        return Tuned(transform=transform, runs=self._runs(states), history=history)

    def _loss(self, phase: Sequence[Technique]) -> Any:
        if "distil" not in phase:
            return distillation_loss(self._apply, Distill())
        settings = self.study.techniques
        term = LogitTerm(loss=functools.partial(soft_targets, temperature=settings.temperature), weight=settings.soft)
        return distillation_loss(self._apply, Distill(terms=(term,), label_weight=1 - settings.soft))

    def _train(
        self, step: TrainStep, transform: Transform, states: TrainState, answers: Array, epochs: range, name: str
    ) -> tuple[TrainState, list[dict[str, Any]]]:
        """Train one phase; return the states, and the figures after every epoch of its second half."""
        train, history = self.dataset.train, []
        images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)
        for epoch in tqdm(epochs, desc=name, unit="epoch", disable=None):
            orders = [members.order(train, self.study.batch_size, seed, epoch)[: self.study.max_steps] for seed in self.seeds]
            states, losses = taught.epoch(
                step, self.study.vmap, states, Outputs(answers, {}), images, labels, jnp.asarray(np.stack(orders))
            )
            if not np.isfinite(np.asarray(losses)).all():
                raise FloatingPointError(f"{name}: the loss is not finite in epoch {epoch}.")
            # Before that the sparsity still rises, and the network is not yet what the row says.
            if 2 * (epoch + 1 - epochs.start) > len(epochs) or self.study.max_steps is not None:
                history.append(self._measure(transform, self._runs(part(states, "student"))))
            if self.study.max_steps is not None:
                break
        return part(states, "student"), history

    def _runs(self, states: TrainState) -> list[TrainState]:
        return [members.member(states, place) for place in range(len(self.seeds))]

    def _steps(self, epochs: int) -> int:
        steps = epochs * steps_per_epoch(self.dataset.train, self.study.batch_size)
        return steps if self.study.max_steps is None else min(steps, self.study.max_steps)


def _begin(states: TrainState, before: Transform, built: Sequence[Transform], tx: Any) -> tuple[TrainState, Transform]:
    """Begin a phase, at step 0: what was there before is frozen, the phase's own transforms follow.

    States come and go as `distillation_loss` has them: the network is the part "student".
    """

    def begin(params: PyTree, model_state: PyTree, tstate: Any, key: Array) -> TrainState:
        views = by_part({"student": chain(freeze(before, tstate), *built)})
        return create({"student": params}, {"student": model_state}, tx, views, key)

    keys = jax.vmap(jax.random.fold_in, (0, None))(states.key, states.step)
    begun = jax.jit(jax.vmap(begin))(states.params, states.model_state, states.tstate, keys)
    # Its `init` is not used again, and views and updates read no state but their own.
    return begun._replace(step=jnp.int32(0)), chain(freeze(before, ()), *built)
