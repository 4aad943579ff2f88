"""The coded size in the loss, on and off, at equal bytes of the file.

`estimate`: bytes of the kernels, by `entropy_bits`, without contexts; `bytes`: means over the seeds, biases in float32. The
error without the penalty at the same bytes is read between the pruned rows, linear in log bytes; '-': beyond them.
"""

import dataclasses
import statistics
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.columns import ROW, Column, mean, plain, setting, tabulate
from experiments.common.config import Adam
from experiments.common.figures import accuracy_by_bytes
from experiments.common.measuring import History, packed_variables
from experiments.common.methods import stretch
from experiments.common.results import Result, spread
from experiments.common.study import Cell, Parts
from experiments.common.training_study import TrainingRunner, TrainingStudy
from lepton_jax import chain, fake_quant, prune
from lepton_jax.core import schedules
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.quantization import Uniform, entropy_bits
from lepton_jax.training import TrainState, TrainStep, classification_loss, create, make_train_step, stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Training with the coded size in the loss, or without."""

    rate: float = 0.0
    """Loss a bit; 0: without."""
    bits: int
    """Of the weights."""
    sparsity: float = 0.0
    """Of magnitude pruning."""

    @property
    def kind(self) -> str:
        """Which rows it belongs to."""
        return "on" if self.rate else "off, pruned" if self.sparsity else "off"

    @property
    def name(self) -> str:
        """What it is of its kind."""
        many = f"{100 * self.sparsity:g} % zero" if self.sparsity else f"{self.bits} bits"
        return f"rate {self.rate:g}" if self.rate else many

    @property
    def label(self) -> str:
        """Names files."""
        return f"{self.kind}, {self.name}".replace(", ", "-").replace(" ", "_").replace("%", "percent")

    @property
    def settings(self) -> dict[str, Any]:
        """What columns read."""
        return {"kind": self.kind, "rate": self.rate}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyTraining(TrainingStudy):
    """The settings; `epochs` are those after the dense ones."""

    dense_epochs: int = 2
    """Before, without quantization."""
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of both phases."""
    bits: int = 4
    """Of the weights, wherever it is not said."""
    rates: tuple[float, ...] = (3e-7, 1e-6, 3e-6, 1e-5, 3e-5)
    """Loss a bit."""
    fewer_bits: tuple[int, ...] = (3, 2)
    """Rows without penalty."""
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    """Rows of magnitude pruning without penalty."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "dense_epochs")
        if not all(0 < rate < 1 for rate in self.rates):
            yield f"rates: must be in (0, 1), loss a bit; got {self.rates}"
        for bits in (self.bits, *self.fewer_bits):
            Uniform(bits=bits)
        for sparsity in self.sparsities:
            check_fraction("EntropyTraining: sparsities", sparsity)

    def check_rows(self) -> Iterator[str]:
        """They follow from the rates, bits and sparsities."""
        known = [row.name for row in self.comparison]
        yield from (f"only: there is no row {name!r}; there are {', '.join(known)}" for name in self.only if name not in known)

    @property
    def comparison(self) -> list[Row]:
        """With the penalty, without it, at fewer bits, pruned."""
        on = [Row(rate=rate, bits=self.bits) for rate in self.rates]
        off = [Row(bits=bits) for bits in (self.bits, *self.fewer_bits)]
        return [*on, *off, *(Row(bits=self.bits, sparsity=sparsity) for sparsity in self.sparsities)]

    @property
    def cells(self) -> list[Cell]:
        rows = [row for row in self.comparison if not self.only or row.name in self.only]
        return [Cell(row=row, name=row.name, settings=row.settings, label=row.label) for row in rows]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        equal = at_equal_bytes(results) if self.files and self.sparsities else {}
        return [tabulate(results, columns(equal)), *accuracy_by_bytes(results, series="penalty {kind}")]


def columns(equal: dict[str, float]) -> tuple[Column | str, ...]:
    """Return the columns of the table, one of them the error without the penalty at the bytes of each row that has it."""

    def without(result: Result) -> str:
        return f"{100 * equal[result['row']]:.2f}" if result["row"] in equal else "-"

    return (
        setting("penalty", "kind"),
        ROW,
        plain("error %", lambda result: spread([100 * error for error in result["error"]])),
        plain("pruned, no penalty, same bytes: error %", without),
        plain("zero %", lambda result: f"{100 * statistics.mean(result['reached']):.1f}"),
        mean("estimate", "estimate"),
        "bytes",
    )


class Runner(TrainingRunner[EntropyTraining]):
    """Trains all rows that differ in their rates alone in one program."""

    @cached_property
    def _steps(self) -> int:
        return self.study.steps(self.dataset, self.study.epochs)

    def together(self, cell: Cell) -> Hashable:
        return "on" if cell.row.rate else cell.label

    @cached_property
    def dense(self) -> TrainState:
        """What all rows begin at; the stacked states."""
        return self.trained(self.study.optimizer, self.study.dense_epochs, "dense")

    def _transform(self, row: Row) -> Transform:
        quantized = fake_quant(Uniform(row.bits))
        if not row.sparsity:
            return quantized
        rise = schedules.polynomial(row.sparsity, *stretch(0, 0.5, self._steps))
        return chain(prune(rise, interval=20), quantized)

    def _make_step(self, transform: Transform, bits: int | None) -> TrainStep:
        """Return a step whose loss reads the rate from the state, so that all rates share one program."""
        answers = classification_loss(self.apply)

        def loss(params: PyTree, model_state: PyTree, batch: Any, key: Array) -> tuple[Array, Any]:
            value, (_, metrics) = answers(params, {}, batch, key)
            if bits is not None:
                value += model_state["rate"] * entropy_bits(params, Uniform(bits=bits))
            return value, (model_state, metrics)

        return make_train_step(loss, self.study.optimizer.build(self._steps), transform)

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        """Train one run a rate and seed, all in one program."""
        config, rows = self.study, [cell.row for cell in cells]
        transform, tx = self._transform(rows[0]), config.optimizer.build(self._steps)

        def begin(rate: float) -> TrainState:
            def one(params: PyTree, model_state: PyTree, *, key: Array) -> TrainState:
                return create(params, {"rate": jnp.float32(rate)}, tx, transform, key)

            return stacked.restart(jax.tree.map(jnp.copy, self.dense), one)

        state = stacked.stack([begin(row.rate) for row in rows])
        step = self._make_step(transform, rows[0].bits if rows[0].rate else None)
        history = History(self.measured, transform, seen=_without_rate)
        epochs = range(config.dense_epochs, config.dense_epochs + config.epochs)
        name = f"{rows[0].kind}, {', '.join(row.name for row in rows)}"
        state = self.train(step, state, epochs, name, history, seeds=self.seeds * len(rows))
        runs, seconds, size = [_without_rate(run) for run in stacked.apart(state)], history.seconds, len(self.seeds)
        results = []
        for place, cell in enumerate(cells):
            mine = slice(place * size, (place + 1) * size)
            figures: Result = {figure: values[mine] for figure, values in history.figures.items()}
            views = [transform.view(run.params, run.tstate) for run in runs[mine]]
            figures["estimate"] = [float(entropy_bits(view, Uniform(bits=cell.row.bits))) / 8 for view in views]
            if config.files:
                path, packed = self.path(cell, "files", "lepton"), [packed_variables(transform, run) for run in runs[mine]]
                figures["file_bytes"] = [self.measured.file_bytes(one, path) for one in packed]
            results.append({**figures, "seconds": seconds / len(cells)})
        return results


def _without_rate(state: TrainState) -> TrainState:
    return state._replace(model_state={})


def at_equal_bytes(rows: Sequence[Result]) -> dict[str, float]:
    """Return, for each row with the penalty, the error without it at its bytes: between the pruned rows, log bytes linear.

    Example:
      >>> pruned, on = {"kind": "off, pruned"}, {"kind": "on"}
      >>> off = [{"settings": pruned, "error": [e], "file_bytes": [b]} for e, b in ((0.02, 1000), (0.04, 100))]
      >>> round(at_equal_bytes([*off, {"settings": on, "row": "r", "error": [0.01], "file_bytes": [316]}])["r"], 3)
      0.03
    """
    off = sorted(
        (statistics.mean(r["file_bytes"]), statistics.mean(r["error"])) for r in rows if r["settings"]["kind"] == "off, pruned"
    )
    sizes, errors = (list(column) for column in zip(*off))
    on = {r["row"]: statistics.mean(r["file_bytes"]) for r in rows if r["settings"]["kind"] == "on"}
    return {
        name: float(np.interp(np.log(size), np.log(sizes), errors))
        for name, size in on.items()
        if sizes[0] <= size <= sizes[-1]
    }
