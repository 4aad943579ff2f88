"""Methods that make a network sparse, each at several sparsities, all from the same seeds and for the same cost.

Every method has the same epochs, dense ones included; columns are sparsities of the kernels: those asked for, and under
`sparsity` those counted in the trained network.
"""

import dataclasses
import statistics
import time
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.common import members, study
from experiments.common.columns import ROW, accuracy, across, plain, setting, tabulate
from experiments.common.config import Adam, Momentum
from experiments.common.curves import Panel, by_row, draw
from experiments.common.figures import Drawing
from experiments.common.mask_finders import MaskFinder, Scene
from experiments.common.measuring import History
from experiments.common.results import Result, accuracies
from experiments.common.sparse_methods import Dense, SparseMethod
from experiments.common.study import Cell, Parts
from experiments.common.tables import Lines
from experiments.common.training_study import TrainingRunner, TrainingStudy
from lepton_jax import identity
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.pruning.sparse_training import FixedMasksState
from lepton_jax.training import TrainState, TrainStep, classification_loss, create, cross_entropy, make_train_step, stacked

_SCENE_BATCH = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One method of a study."""

    method: SparseMethod
    """What makes the network sparse; its sparsity is set by the study."""
    optimizer: Adam | Momentum = dataclasses.field(default_factory=Adam)
    """Begins anew after the dense epochs."""
    dense_epochs: int = 0
    """How many of the study's epochs are dense training before the method begins."""
    panel: str = ""
    """Which part of the figure it is drawn in; by default every one."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(0, "dense_epochs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparsity(TrainingStudy):
    """A table: rows are methods, columns sparsities."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The methods."""
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    """Fractions of the kernels' weights that are removed."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for row in self.rows:
            if row.dense_epochs >= self.epochs:
                yield f"row {row.name}: dense_epochs must leave epochs of {self.epochs}; got {row.dense_epochs}"
        for sparsity in self.sparsities:
            check_fraction("sparsities", sparsity)

    def levels(self, row: Row) -> tuple[float, ...]:
        """The sparsities of a row."""
        return (0.0,) if isinstance(row.method, Dense) else self.sparsities

    @property
    def cells(self) -> list[Cell]:
        """Every method at every sparsity."""
        return [cell(row, level, panel=row.panel) for row in self.chosen for level in self.levels(row)]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        return report(results)


def cell(row: Row | str, sparsity: float, digits: str = "g", **settings: Any) -> Cell:
    """Return the cell of a row, or of a name, at a sparsity."""
    name = row if isinstance(row, str) else row.name
    return Cell(row=row, name=name, settings={**settings, "sparsity": sparsity}, label=f"{name}-{100 * sparsity:{digits}}")


class Runner(TrainingRunner[Sparsity]):
    """Trains a row's seeds at all its sparsities in one program, if it can."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self._programs: dict[Any, TrainStep] = {}
        self._begun: dict[Any, TrainState] = {}

    def together(self, cell: Cell) -> Hashable:
        return cell.name if cell.row.method.stacks else cell.label

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        begun, row = time.perf_counter(), cells[0].row
        state, history = self.fit(row, [cell.settings["sparsity"] for cell in cells])
        seconds, size = (time.perf_counter() - begun) / len(cells), len(self.seeds)
        dense, results = self.measured.network(stacked.member(self._before(row), 0)), []
        for number, one in enumerate(cells):
            mine = slice(number * size, (number + 1) * size)
            runs = [stacked.member(state, place) for place in range(mine.start, mine.stop)]
            figures = {name: values[mine] for name, values in history.figures.items()}
            results.append(self.figures(one, history, runs, dense, **figures, seconds=seconds))
        return results

    def fit(self, row: Row, levels: Sequence[float]) -> tuple[TrainState, History]:
        """Train every seed at every sparsity; return the stacked states, sparsity by sparsity, and their history."""
        epochs = range(row.dense_epochs, self.study.epochs)
        steps = self.study.steps(self.dataset, len(epochs))
        methods = [dataclasses.replace(row.method, sparsity=level) for level in levels]
        tx = methods[0].wrap(row.optimizer.build(steps))
        states = [self._begin(row, method, steps, tx) for method in methods]
        # Whatever differs between members is in their states, so any one's transform steps and views them all. It is the same
        # one whichever of them are missing, down to the roundings of its schedule.
        canonical = self.study.levels(row)[0] if row.method.stacks else levels[0]
        transform = dataclasses.replace(row.method, sparsity=canonical).build(steps, jax.random.key(0))
        step = self._step(row, steps, tx, transform)
        name = f"{row.name} {', '.join(f'{100 * level:g}' for level in levels)} %"
        history = History(self.measured, transform)
        seeds = self.seeds * len(levels)
        return self.train(step, stacked.stack(states), epochs, name, history, seeds=seeds), history

    def _begin(self, row: Row, method: SparseMethod, steps: int, tx: optax.GradientTransformation) -> TrainState:
        """Return the stacked states of every seed at step 0 of a method."""

        def begin(params: PyTree, model_state: PyTree, key: Array) -> TrainState:
            key, method_key = jax.random.split(key)
            return create(params, model_state, tx, method.build(steps, method_key), key)

        if not isinstance(method, MaskFinder):
            return stacked.restart(self._before(row), begin)
        wanted = ("unmasked", row.dense_epochs, row.optimizer)
        if wanted not in self._begun:
            self._begun[wanted] = stacked.restart(self._before(row), begin)
        state = self._begun[wanted]
        find: Any = partial(method.masks, self.scene)
        find = find if method.in_rounds else jax.jit(find)
        masks = [jax.device_get(find(run.params, jax.random.fold_in(run.key, 0))) for run in stacked.apart(state)]
        return state._replace(tstate=FixedMasksState(jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *masks)))

    def _step(self, row: Row, steps: int, tx: optax.GradientTransformation, transform: Transform) -> TrainStep:
        """Return the training step, the same one where nothing that is compiled differs."""
        program = (transform.view, transform.update, row.optimizer, steps, type(row.method).wrap)
        if program not in self._programs:
            self._programs[program] = make_train_step(classification_loss(self.apply), tx, transform)
        return self._programs[program]

    @cached_property
    def scene(self) -> Scene:
        """What masks may be found by before training."""
        some = self.dataset.train.take(np.arange(min(_SCENE_BATCH, len(self.dataset.train))))

        def outputs(params: PyTree, inputs: Array) -> Array:
            return self.apply(params, {}, inputs, train=False, key=None)[0]

        def loss(params: PyTree, temperature: float) -> Array:
            return jnp.mean(cross_entropy(outputs(params, jnp.asarray(some.images)) / temperature, jnp.asarray(some.labels)))

        def fresh(key: Array) -> PyTree:
            return members.initial(self.study, self.dataset, key)[0]

        return Scene(apply=outputs, loss=loss, fresh=fresh, inputs=jnp.asarray(some.images[:1]))

    def _before(self, row: Row) -> TrainState:
        """Return every seed's network as a row's method finds it: new, or after its dense epochs; once for all such rows."""
        wanted = ("dense", row.dense_epochs, row.optimizer)
        if wanted not in self._begun:
            if row.dense_epochs:
                state = self.trained(row.optimizer, row.dense_epochs, f"dense before {row.name}")
            else:
                begin = partial(create, tx=row.optimizer.build(1), transform=identity())
                state = members.start(self.study, self.dataset, begin, self.seeds)
            self._begun[wanted] = state
        return self._begun[wanted]


def report(results: Sequence[Result]) -> Parts:
    """Return the parts of the report: accuracies by sparsity, their figure, and sizes; "dense" is the reference."""
    drawing = Drawing(file="accuracy.png", alternative="accuracy against sparsity", draw=partial(plot, results=results))
    return [accuracies_by_sparsity(results), drawing, "## Sizes", tabulate(results, SIZES)]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g} %"


SIZES = (
    ROW._replace(title="method"),
    setting("asked", "sparsity", _percent),
    plain("sparsity", lambda result: f"{100 * statistics.mean(result['reached']):.2f} %"),
    *("non-zeros", "bytes", "validation", "best epoch", "time, 1", "time, 128", "seconds a run"),
)


def accuracies_by_sparsity(results: Sequence[Result]) -> Lines:
    """Return the cells: a line a row, a column a sparsity; the dense network stands in the column of 0 %."""
    levels = sorted({result["settings"]["sparsity"] for result in results})
    return across(results, "sparsity", (accuracy("{}"),), levels=levels, show=_percent)


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw accuracy against the sparsity reached, one line a row; rows that name a panel are in it alone, others in all."""
    dense = {result["row"]: statistics.mean(accuracies(result)) for result in results if result["row"] == "dense"}
    sparse = [result for result in results if result["row"] != "dense"]
    ticks = {1 - level: f"{100 * level:.3g}" for level in sorted({result["settings"]["sparsity"] for result in sparse})}
    about: dict[str, Any] = {"levels": dense, "ticks": ticks, "x_scale": "log", "falling": True, "y_scale": "error"}
    panels = []
    for title in dict.fromkeys(r["settings"].get("panel") for r in sparse if r["settings"].get("panel")) or [""]:
        mine = [result for result in sparse if result["settings"].get("panel", "") in ("", title)]
        panels.append(Panel(curves=by_row(mine, lambda result: 1 - statistics.mean(result["reached"])), title=title, **about))
    draw(
        path,
        panels,
        x="sparsity of the kernels (%), by the logarithm of what is left",
        y="test accuracy (%), by the logarithm of the error",
        size=(9, 6.5) if len(panels) == 1 else (5, 3.8),
        shared=True,
    )
