"""A study: methods that make a network sparse, each at several sparsities, all from the same seeds and for the same cost."""

import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import members
from experiments.common.config import Adam, Momentum
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, save_result
from experiments.common.rows import check_rows, chosen
from experiments.common.tables import revision
from experiments.common.training_settings import Training
from experiments.studies.sparsity.mask_finders import MaskFinder
from experiments.studies.sparsity.methods import Dense, Scene, SparseMethod
from lepton_jax import identity
from lepton_jax.core.errors import check_fraction, collect
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Dataset
from lepton_jax.pruning.sparse_training import FixedMasksState
from lepton_jax.training import (
    TrainState,
    TrainStep,
    classification_loss,
    create,
    cross_entropy,
    linen_apply,
    make_train_step,
    stacked,
)

_SCENE_BATCH = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One method of a study."""

    name: str
    """Of the row."""
    method: SparseMethod
    """What makes the network sparse; its sparsity is set by the study."""
    optimizer: Adam | Momentum = dataclasses.field(default_factory=Adam)
    """Begins anew after the dense epochs."""
    dense_epochs: int = 0
    """How many of the study's epochs are dense training before the method begins."""
    panel: str = ""
    """Which part of the figure it is drawn in; by default every one."""

    def __post_init__(self) -> None:
        with collect(f"Row {self.name!r}") as problems:
            if not self.name.replace("-", "_").isidentifier():
                problems.append("name: must be a word, since it names files")
            if not self.dense_epochs >= 0:
                problems.append(f"dense_epochs: must be 0 or more; got {self.dense_epochs}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Training):
    """A table: rows are methods, columns sparsities."""

    rows: tuple[Row, ...]
    """The methods."""
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    """Fractions of the kernels' weights that are removed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        with collect(f"Study {self.name!r}") as problems:
            check_rows(problems, [row.name for row in self.rows], self.only)
            for row in self.rows:
                if row.dense_epochs >= self.epochs:
                    problems.append(f"row {row.name}: dense_epochs must leave epochs of {self.epochs}; got {row.dense_epochs}")
        for sparsity in self.sparsities:
            check_fraction("sparsities", sparsity)

    def levels(self, row: Row) -> tuple[float, ...]:
        """The sparsities of a row."""
        return (0.0,) if isinstance(row.method, Dense) else self.sparsities


class Runner:
    """Runs a study's rows.

    Args:
      study: the settings.
      seeds: of the runs.
      run_dir: gets a JSON file for each finished cell, which is not run again.
      dataset: loaded; by default what the study names.
    """

    def __init__(self, study: Study, seeds: Sequence[int], run_dir: Path, dataset: Dataset | None = None) -> None:
        self.study, self.seeds, self.run_dir = study, tuple(seeds), run_dir
        self.dataset = study.data.load() if dataset is None else dataset
        self.measure = Measure(linen_apply(study.model), self.dataset)
        self._apply = linen_apply(study.model)
        self._loss = classification_loss(self._apply)
        self._programs: dict[Any, TrainStep] = {}
        self._dense: dict[tuple[int, Adam | Momentum], TrainState] = {}
        self._unmasked: dict[tuple[int, Adam | Momentum], TrainState] = {}

    def run(self) -> list[Result]:
        """Run what is missing; return all results, in the order of the study."""
        results = []
        for row in chosen(self.study.rows, self.study.only):
            levels = self.study.levels(row)
            for group in [levels] if row.method.stacks else [(level,) for level in levels]:
                missing = [level for level in group if not self._path(row, level).exists()]
                if missing:
                    self._run_group(row, missing)
            results += [json.loads(self._path(row, level).read_text()) for level in levels]
        return results

    def _path(self, row: Row, sparsity: float, folder: str = "rows", ending: str = "json") -> Path:
        return self.run_dir / folder / f"{row.name}-{100 * sparsity:g}.{ending}"

    def _run_group(self, row: Row, levels: Sequence[float]) -> None:
        """Train all seeds of some sparsities in one program, and write their results."""
        begun = time.perf_counter()
        state, transform, figures = self.train(row, levels)
        seconds, size = (time.perf_counter() - begun) / len(levels), len(self.seeds)
        for number, level in enumerate(levels):
            mine = slice(number * size, (number + 1) * size)
            runs = [stacked.member(state, place) for place in range(mine.start, mine.stop)]
            path = self._path(row, level, "files", "lepton") if self.study.files else None
            dense, rounds = self.measure.network(stacked.member(self._before(row), 0)), self.study.latency_rounds
            result = {
                "row": row.name,
                "panel": row.panel,
                "sparsity": level,
                "seeds": list(self.seeds),
                **{name: values[mine] for name, values in figures.items()},
                **self.measure.costs(transform, runs, dense=dense, rounds=rounds, path=path),
            }
            save_result(self._path(row, level), {**result, "seconds": seconds, "revision": revision()})

    def train(self, row: Row, levels: Sequence[float]) -> tuple[TrainState, Transform, dict[str, list[float]]]:
        """Train every seed at every sparsity.

        Returns:
          The stacked states, sparsity by sparsity; their transform; their figures, in the same order.
        """
        epochs = self.study.epochs - row.dense_epochs
        steps = self.study.steps(self.dataset, epochs)
        scene = self._scene(steps)
        methods = [dataclasses.replace(row.method, sparsity=level) for level in levels]
        tx = methods[0].wrap(row.optimizer.build(steps))
        states = [self._begin(row, method, scene, tx) for method in methods]
        # Whatever differs between members is in their states, so any one's transform steps and views them all. It is the same
        # one whichever of them are missing, down to the roundings of its schedule.
        canonical = self.study.levels(row)[0] if row.method.stacks else levels[0]
        transform = dataclasses.replace(row.method, sparsity=canonical).build(scene, jax.random.key(0))
        step = self._step(row, steps, tx, transform)
        name = f"{row.name} {', '.join(f'{100 * level:g}' for level in levels)} %"
        args = (self.study, self.dataset.train, step, stacked.stack(states), self.seeds * len(levels))
        history = History(self.measure, transform)
        state = members.train(
            *args, epochs=epochs, first_epoch=row.dense_epochs, name=name, history=history, run_dir=self.run_dir
        )
        return state, transform, history.figures

    def _begin(self, row: Row, method: SparseMethod, scene: Scene, tx: optax.GradientTransformation) -> TrainState:
        """Return the stacked states of every seed at step 0 of a method."""
        before = self._before(row)

        def begin(params: PyTree, model_state: PyTree, key: Array) -> TrainState:
            key, method_key = jax.random.split(key)
            return create(params, model_state, tx, method.build(scene, method_key), key)

        if not isinstance(method, MaskFinder):
            return stacked.restart(before, begin)
        wanted = (row.dense_epochs, row.optimizer)
        if wanted not in self._unmasked:
            self._unmasked[wanted] = stacked.restart(before, begin)
        state = self._unmasked[wanted]
        find = partial(method.masks, scene) if method.in_rounds else jax.jit(partial(method.masks, scene))
        runs = stacked.apart(state)
        masks = [jax.device_get(find(run.params, jax.random.fold_in(run.key, 0))) for run in runs]
        return state._replace(tstate=FixedMasksState(jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *masks)))

    def _step(self, row: Row, steps: int, tx: optax.GradientTransformation, transform: Transform) -> TrainStep:
        """Return the training step, the same one where nothing that is compiled differs."""
        program = (transform.view, transform.update, row.optimizer, steps, type(row.method).wrap)
        if program not in self._programs:
            self._programs[program] = make_train_step(self._loss, tx, transform)
        return self._programs[program]

    def _scene(self, steps: int) -> Scene:
        """What a method may look at before training."""
        some = self.dataset.train.take(np.arange(min(_SCENE_BATCH, len(self.dataset.train))))

        def outputs(params: PyTree, inputs: Array) -> Array:
            return self._apply(params, {}, inputs, train=False, key=None)[0]

        def loss(params: PyTree, temperature: float) -> Array:
            return jnp.mean(cross_entropy(outputs(params, jnp.asarray(some.images)) / temperature, jnp.asarray(some.labels)))

        def fresh(key: Array) -> PyTree:
            return members.initial(self.study, self.dataset, key)[0]

        return Scene(steps=steps, apply=outputs, loss=loss, fresh=fresh, inputs=jnp.asarray(some.images[:1]))

    def _before(self, row: Row) -> TrainState:
        """Return every seed's network as a row's method finds it: new, or after its dense epochs; once for all such rows."""
        wanted = (row.dense_epochs, row.optimizer)
        if wanted not in self._dense:
            if row.dense_epochs:
                args, name = (self.study, self.dataset, row.optimizer, self.seeds), f"dense before {row.name}"
                state = members.trained(*args, epochs=row.dense_epochs, name=name, run_dir=self.run_dir)
            else:
                begin = partial(create, tx=row.optimizer.build(1), transform=identity())
                state = members.start(self.study, self.dataset, begin, self.seeds)
            self._dense[wanted] = state
        return self._dense[wanted]
