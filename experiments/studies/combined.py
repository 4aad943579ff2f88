"""Techniques alone, in pairs, all together and in other orders: every row is a fine-tuning of the same dense networks.

Phases share the epochs equally. prune: of all kernels (or of their factors), by magnitude; quantize: a scale a column;
low_rank: ranks by a share of the multiplications; cast: parameters in bfloat16; distil: part of the loss by a larger
network's answers. Techniques of one phase are views in the order of their names; `then` separates phases, and what an
earlier one did stays. The best epoch is one of the last phase.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn
from matplotlib.figure import Figure

from experiments.common.columns import reference, smaller, tabulate, times_smaller
from experiments.common.config import Adam
from experiments.common.figures import Drawing, accuracy_by_bytes, save_figure
from experiments.common.measuring import History
from experiments.common.names import readable
from experiments.common.results import Result, accuracies, gain
from experiments.common.study import Cell, Parts
from experiments.common.techniques import TECHNIQUES, Settings, Technique
from experiments.common.training_study import TrainingRunner, TrainingStudy
from lepton_jax import chain, distillation, freeze, identity
from lepton_jax.core.errors import collect
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.distillation import Distill, LogitTerm, Outputs, as_teacher, by_part, distillation_loss, soft_targets, teach
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
    def name(self) -> str:
        """Unique in a study: techniques of a phase are joined by a plus."""
        return "-then-".join("+".join(phase) for phase in self.phases) or DENSE

    @property
    def label(self) -> str:
        """Names files."""
        return self.name

    @property
    def settings(self) -> dict[str, Any]:
        """The techniques by phase."""
        return {"phases": [list(phase) for phase in self.phases]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combined(TrainingStudy):
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

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "dense_epochs")
        for row in self.rows:
            if self.epochs % len(row.phases):
                yield f"row {row.name}: {len(row.phases)} phases must share {self.epochs} epochs equally"
        if not self.scan:
            yield "scan: an epoch is always one program here; leave it True"

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        pairs = partial(plot_pairs, results=results)
        return [
            tabulate(results, COLUMNS, reference(results, DENSE)),
            Drawing(file="pairs.png", alternative="change of accuracy and bytes of every pair", draw=pairs),
            *accuracy_by_bytes(results),
            "## What combining gives",
            "\n".join(f"- {note}" for note in pair_notes(results)) or "No pair was run with both of its techniques.",
            "## Order",
            "\n".join(f"- {note}" for note in order_notes(results)) or "No combination was run in two orders.",
        ]


COLUMNS = (
    *("row", "accuracy", "change", smaller("smaller", 1)),
    *("best epoch", "non-zeros", "bytes", "MACs", "time, 1", "time, 128"),
)


def in_one_phase(results: Sequence[Result]) -> dict[frozenset[str], Result]:
    """Return the results of one phase by their techniques; of two orders of the same ones, the first.

    Example:
      >>> found = in_one_phase([{"settings": {"phases": phases}} for phases in ([[]], [["a", "b"]], [["a"], ["b"]])])
      >>> [sorted(names) for names in found]
      [[], ['a', 'b']]
    """
    found: dict[frozenset[str], Result] = {}
    for result in results:
        first, *others = result["settings"]["phases"]
        if not others:
            found.setdefault(frozenset(first), result)
    return found


def pair_notes(results: Sequence[Result]) -> list[str]:
    """Say of every pair whether it has a smaller file than both of its techniques, and what that costs in accuracy."""
    cells, notes = in_one_phase(results), []
    for names, pair in cells.items():
        alone = [cells[frozenset({name})] for name in sorted(names) if frozenset({name}) in cells]
        if len(names) != 2 or len(alone) != 2 or "file_bytes" not in pair:
            continue
        smallest = min(alone, key=lambda result: result["file_bytes"])
        ratio, points = times_smaller(pair, smallest) or 1.0, gain(pair, smallest)
        best = max(alone, key=lambda result: statistics.mean(accuracies(result)))
        words = "smaller than either" if ratio > 1.02 else "no smaller than the smaller one"
        notes.append(
            f"`{pair['row']}`: {words} ({ratio:.2f}x of `{smallest['row']}`), {points:+.2f} points against that, "
            f"{gain(pair, best):+.2f} against `{best['row']}`, the more accurate one."
        )
    return notes


def order_notes(results: Sequence[Result]) -> list[str]:
    """Compare rows of the same techniques in other orders with the first of them."""
    groups: dict[frozenset[str], list[Result]] = {}
    for result in results:
        groups.setdefault(frozenset(name for phase in result["settings"]["phases"] for name in phase), []).append(result)
    notes = []
    for first, *others in groups.values():
        for other in others:
            bytes_too = f", {other['file_bytes']:,} against {first['file_bytes']:,} bytes" if "file_bytes" in other else ""
            notes.append(f"`{other['row']}`: {gain(other, first):+.2f} points against `{first['row']}`{bytes_too}.")
    return notes


def plot_pairs(path: Path, results: Sequence[Result]) -> None:
    """Draw two matrices of techniques: change of accuracy against dense, and bytes; on the diagonal, each alone."""
    cells = in_one_phase(results)
    names = [name for key in cells if len(key) == 1 for name in key]
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if names and frozenset() in cells:
        dense = cells[frozenset()]
        _matrix(left, names, cells, lambda cell: gain(cell, dense), "{:+.2f}", "accuracy against dense (points)", "RdYlGn")
        _matrix(right, names, cells, lambda cell: cell.get("file_bytes", np.nan) / 1000, "{:.3g}", "kilobytes", "viridis_r")
    save_figure(figure, path)


def _matrix(
    axis: Any, names: Sequence[str], cells: Mapping[frozenset[str], Result], value: Any, form: str, title: str, colors: str
) -> None:
    pairs = [[cells.get(frozenset({a, b})) for b in names] for a in names]
    values = np.array([[np.nan if cell is None else value(cell) for cell in line] for line in pairs])
    axis.imshow(np.log(values) if colors == "viridis_r" else values, cmap=colors, alpha=0.75)
    for (line, column), number in np.ndenumerate(values):
        if np.isfinite(number):
            axis.text(column, line, form.format(number), ha="center", va="center", fontsize=11)
    axis.set_xticks(range(len(names)), [readable(name) for name in names])
    axis.set_yticks(range(len(names)), [readable(name) for name in names])
    axis.set_title(f"{title}; on the diagonal, alone")


class Runner(TrainingRunner[Combined]):
    """Fine-tunes every row; a seed's rows all begin at its dense network."""

    @cached_property
    def before(self) -> TrainState:
        """Every seed's dense network; the stacked states."""
        return self.trained(self.study.dense_optimizer, self.study.dense_epochs, f"{DENSE} beforehand")

    @cached_property
    def taught(self) -> Outputs:
        """The logits of every seed's teacher for all training images, ``[seeds, N, classes]``."""
        config, apply = self.study, linen_apply(self.study.teacher)
        state = self.trained(config.dense_optimizer, config.dense_epochs, "teacher beforehand", model=config.teacher)
        outputs = [teach(as_teacher(apply, run))(self.dataset.train.images) for run in stacked.apart(state)]
        return jax.tree.map(lambda *each: jnp.stack(each), *outputs)

    @cached_property
    def untaught(self) -> Outputs:
        """Zeros in their place, which no loss reads."""
        return Outputs(jnp.zeros((len(self.seeds), len(self.dataset.train), self.dataset.num_classes)), {})

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        row = cells[0].row
        dense = self.measured.network(stacked.member(self.before, 0))
        answers = self.taught if any("distil" in phase for phase in row.phases) else self.untaught
        begun = time.perf_counter()
        state, history = self.tune(row, answers)
        return [self.figures(cells[0], history, state, dense, seconds=time.perf_counter() - begun)]

    def tune(self, row: Row, answers: Outputs) -> tuple[TrainState, History]:
        """Fine-tune every seed, phase after phase; return the stacked states, and the last phase's history."""
        config, transform, state = self.study, identity(), self.before
        epochs = config.epochs // len(row.phases)
        steps = config.steps(self.dataset, epochs)
        for number, phase in enumerate(row.phases):
            built = [made for name in phase if (made := config.techniques.build(name, steps)) is not None]
            tx = config.optimizer.build(steps)
            state, transform = _begin(state, transform, built, tx)
            step = make_train_step(self._loss(phase), tx, by_part({"student": transform}))
            history = History(self.measured, transform, seen=_student)
            first = config.dense_epochs + number * epochs
            name = f"{row.name}, {number + 1} of {len(row.phases)}"
            state = _student(self.train(step, state, range(first, first + epochs), name, history, answers=answers))
        return state, history

    def _loss(self, phase: Sequence[Technique]) -> Any:
        if "distil" not in phase:
            return distillation_loss(self.apply, Distill())
        settings = self.study.techniques
        term = LogitTerm(loss=partial(soft_targets, temperature=settings.temperature), weight=settings.soft)
        return distillation_loss(self.apply, Distill(terms=(term,), label_weight=1 - settings.soft))


def _student(state: TrainState) -> TrainState:
    return distillation.part(state, "student")


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
