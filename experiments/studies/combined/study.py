"""A study of combinations: every row is a fine-tuning of the same dense networks, for the same number of epochs."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

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
from experiments.studies.combined.techniques import TECHNIQUES, Settings, Technique
from lepton_jax import chain, freeze, identity
from lepton_jax.core.errors import collect
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Dataset
from lepton_jax.distillation import (
    Distill,
    LogitTerm,
    Outputs,
    as_teacher,
    by_part,
    distillation_loss,
    part,
    soft_targets,
    teach,
)
from lepton_jax.training import TrainState, create, linen_apply, make_train_step, stacked

DENSE = "dense"
"""The row that is fine-tuned without any technique."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
        with collect(f"Study {self.name!r}") as problems:
            check_rows(problems, [row.label for row in self.rows], self.only)
            if not self.dense_epochs >= 1:
                problems.append(f"dense_epochs: must be at least 1; got {self.dense_epochs}")
            for row in self.rows:
                if self.epochs % len(row.phases):
                    problems.append(f"row {row.label}: {len(row.phases)} phases must share {self.epochs} epochs equally")
            if not self.scan:
                problems.append("scan: an epoch is always one program here; leave it True")


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
        return [
            kept(self._path(row), functools.partial(self._row, row))
            for row in chosen(self.study.rows, self.study.only, name=attrgetter("label"))
        ]

    def _path(self, row: Row, folder: str = "rows", ending: str = "json") -> Path:
        return self.run_dir / folder / f"{row.label}.{ending}"

    @functools.cached_property
    def before(self) -> TrainState:
        """Every seed's dense network; the stacked states."""
        return self._trained(self.study.model, DENSE)

    @functools.cached_property
    def taught(self) -> Outputs:
        """The logits of every seed's teacher for all training images, ``[seeds, N, classes]``."""
        state, apply = self._trained(self.study.teacher, "teacher"), linen_apply(self.study.teacher)
        outputs = [teach(as_teacher(apply, run))(self.dataset.train.images) for run in stacked.apart(state)]
        return jax.tree.map(lambda *each: jnp.stack(each), *outputs)

    @functools.cached_property
    def untaught(self) -> Outputs:
        """Zeros in their place, which no loss reads."""
        return Outputs(jnp.zeros((len(self.seeds), len(self.dataset.train), self.dataset.num_classes)), {})

    def _trained(self, model: nn.Module, name: str) -> TrainState:
        study = dataclasses.replace(self.study, model=model)
        args, name = (study, self.dataset, study.dense_optimizer, self.seeds), f"{name} beforehand"
        return members.trained(*args, epochs=study.dense_epochs, name=name, run_dir=self.run_dir)

    def _row(self, row: Row) -> Result:
        """Fine-tune all seeds of a row; return its figures."""
        before = stacked.member(self.before, 0)
        answers = self.taught if any("distil" in phase for phase in row.phases) else self.untaught
        begun = time.perf_counter()
        state, transform, figures = self.tune(row, answers)
        seconds = time.perf_counter() - begun
        path = self._path(row, "files", "lepton") if self.study.files else None
        dense, rounds = self._measure.network(before), self.study.latency_rounds
        costs = self._measure.costs(transform, stacked.apart(state), dense=dense, rounds=rounds, path=path)
        about = {"row": row.label, "phases": [list(phase) for phase in row.phases], "seeds": list(self.seeds)}
        return {**about, **figures, **costs, "seconds": seconds}

    def tune(self, row: Row, answers: Outputs) -> tuple[TrainState, Transform, dict[str, Any]]:
        """Fine-tune every seed, phase after phase.

        Returns:
          The stacked states; the view of all phases; the figures, ``best_error`` that of the last phase.
        """
        transform, state, figures = identity(), self.before, {}
        epochs = self.study.epochs // len(row.phases)
        steps = self.study.steps(self.dataset, epochs)
        for number, phase in enumerate(row.phases):
            built = [made for name in phase if (made := self.study.techniques.build(name, steps)) is not None]
            tx = self.study.optimizer.build(steps)
            state, transform = _begin(state, transform, built, tx)
            step = make_train_step(self._loss(phase), tx, by_part({"student": transform}))
            history = History(self._measure, transform, seen=_student)
            state = _student(
                members.train(
                    *(self.study, self.dataset.train, step, state, self.seeds),
                    answers=answers,
                    epochs=epochs,
                    first_epoch=self.study.dense_epochs + number * epochs,
                    name=f"{row.label}, {number + 1} of {len(row.phases)}",
                    history=history,
                    run_dir=self.run_dir,
                )
            )
            figures = history.figures
        return state, transform, figures

    def _loss(self, phase: Sequence[Technique]) -> Any:
        if "distil" not in phase:
            return distillation_loss(self._apply, Distill())
        settings = self.study.techniques
        term = LogitTerm(loss=functools.partial(soft_targets, temperature=settings.temperature), weight=settings.soft)
        return distillation_loss(self._apply, Distill(terms=(term,), label_weight=1 - settings.soft))


def _student(state: TrainState) -> TrainState:
    return part(state, "student")


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
