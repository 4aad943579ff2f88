"""The coded size in the loss, on and off: settings, runs, table and figure."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import members
from experiments.common.config import Adam
from experiments.common.figures import accuracy_against, point
from experiments.common.measuring import History, Measure, packed_variables
from experiments.common.results import Result, kept, save_report, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.common.training_settings import Training
from lepton_jax import chain, fake_quant, prune
from lepton_jax.core import schedules
from lepton_jax.core.errors import check_fraction, collect
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Dataset
from lepton_jax.quantization import Uniform, entropy_bits
from lepton_jax.training import TrainState, TrainStep, classification_loss, create, linen_apply, make_train_step, stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyTraining(Training):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        with collect(f"EntropyTraining {self.name!r}") as problems:
            if not self.dense_epochs >= 1:
                problems.append(f"dense_epochs: must be at least 1; got {self.dense_epochs}")
            if not all(0 < rate < 1 for rate in self.rates):
                problems.append(f"rates: must be in (0, 1), loss a bit; got {self.rates}")
        for bits in (self.bits, *self.fewer_bits):
            Uniform(bits=bits)
        for sparsity in self.sparsities:
            check_fraction("EntropyTraining: sparsities", sparsity)


class Comparison:
    """All rows, every seed.

    Args:
      config: the settings.
      seeds: of the runs.
      run_dir: gets the files.
      dataset: loaded.
    """

    def __init__(self, config: EntropyTraining, seeds: Sequence[int], run_dir: Path, dataset: Dataset) -> None:
        self.config, self.seeds, self.run_dir, self.dataset = config, tuple(seeds), run_dir, dataset
        self._measure = Measure(linen_apply(config.model), dataset)
        self._steps = config.steps(dataset, config.epochs)

    def run(self) -> list[Result]:
        """Train and measure what is missing; return all rows."""
        config, quantized = self.config, fake_quant(bits=self.config.bits)
        groups = [("on", quantized, config.bits, {f"rate {rate:g}": rate for rate in config.rates})]
        groups += [("off", quantized, config.bits, {f"{config.bits} bits": 0.0})]
        groups += [("off", fake_quant(bits=bits), bits, {f"{bits} bits": 0.0}) for bits in config.fewer_bits]
        for sparsity in config.sparsities:
            rise = schedules.polynomial(sparsity, 0, max(int(0.5 * self._steps), 1))
            transform = chain(prune(rise, interval=20), quantized)
            groups += [("off, pruned", transform, config.bits, {f"{100 * sparsity:g} % zero": 0.0})]
        rows: list[Result] = []
        for group in groups:
            kind, *_, rates = group
            found = kept(self._path("rows", f"{kind}, {', '.join(rates)}", "json"), partial(self._group, *group))
            rows += [{**row, "revision": found["revision"]} for row in found["rows"]]
        return rows

    def _path(self, folder: str, name: str, ending: str) -> Path:
        return self.run_dir / folder / f"{name.replace(', ', '-').replace(' ', '_').replace('%', 'percent')}.{ending}"

    @cached_property
    def dense(self) -> TrainState:
        """What all rows begin at; the stacked states."""
        args, epochs = (self.config, self.dataset, self.config.optimizer, self.seeds), self.config.dense_epochs
        return members.trained(*args, epochs=epochs, name="dense", run_dir=self.run_dir)

    def _make_step(self, transform: Transform, bits: int | None) -> TrainStep:
        """Return a step whose loss reads the rate from the state, so that all rates share one program."""
        answers = classification_loss(linen_apply(self.config.model))

        def loss(params: PyTree, model_state: PyTree, batch: Any, key: Array) -> tuple[Array, Any]:
            value, (_, metrics) = answers(params, {}, batch, key)
            if bits is not None:
                value += model_state["rate"] * entropy_bits(params, Uniform(bits=bits))
            return value, (model_state, metrics)

        return make_train_step(loss, self.config.optimizer.build(self._steps), transform)

    def _group(self, kind: str, transform: Transform, bits: int, rates: dict[str, float]) -> Result:
        """Train and measure one run a rate and seed, all in one program; return a row a rate."""
        config, tx = self.config, self.config.optimizer.build(self._steps)

        def begin(rate: float) -> TrainState:
            def one(params: PyTree, model_state: PyTree, *, key: Array) -> TrainState:
                return create(params, {"rate": jnp.float32(rate)}, tx, transform, key)

            return stacked.restart(jax.tree.map(jnp.copy, self.dense), one)

        state = stacked.stack([begin(rate) for rate in rates.values()])
        step = self._make_step(transform, bits if any(rates.values()) else None)
        begun, seeds = time.perf_counter(), self.seeds * len(rates)
        history = History(self._measure, transform, seen=lambda state: state._replace(model_state={}))  # the rate is there
        state = members.train(
            *(config, self.dataset.train, step, state, seeds),
            epochs=config.epochs,
            first_epoch=config.dense_epochs,
            name=f"{kind}, {', '.join(rates)}",
            history=history,
            run_dir=self.run_dir,
        )
        seconds = (time.perf_counter() - begun) / len(rates)
        runs = [run._replace(model_state={}) for run in stacked.apart(state)]
        rows = []
        for place, (name, rate) in enumerate(rates.items()):
            mine = slice(place * len(self.seeds), (place + 1) * len(self.seeds))
            figures = {figure: values[mine] for figure, values in history.figures.items()}
            views = [transform.view(run.params, run.tstate) for run in runs[mine]]
            row: Result = {"kind": kind, "row": name, "rate": rate, "seeds": list(self.seeds), "seconds": seconds, **figures}
            row["estimate"] = [float(entropy_bits(view, Uniform(bits=bits))) / 8 for view in views]
            if config.files:
                path = self._path("files", f"{kind}, {name}", "lepton")
                row["file_bytes"] = [self._measure.file_bytes(packed_variables(transform, run), path) for run in runs[mine]]
            rows.append(row)
        return {"rows": rows}


def at_equal_bytes(rows: list[Result]) -> dict[str, float]:
    """Return, for each row with the penalty, the error without it at its bytes: between the pruned rows, log bytes linear.

    Example:
      >>> off = [{"kind": "off, pruned", "error": [e], "file_bytes": [b]} for e, b in ((0.02, 1000), (0.04, 100))]
      >>> round(at_equal_bytes([*off, {"kind": "on", "row": "r", "error": [0.01], "file_bytes": [316]}])["r"], 3)
      0.03
    """
    off = sorted((statistics.mean(r["file_bytes"]), statistics.mean(r["error"])) for r in rows if r["kind"] == "off, pruned")
    sizes, errors = (list(column) for column in zip(*off))
    on = {r["row"]: statistics.mean(r["file_bytes"]) for r in rows if r["kind"] == "on"}
    return {
        name: float(np.interp(np.log(size), np.log(sizes), errors))
        for name, size in on.items()
        if sizes[0] <= size <= sizes[-1]
    }


def write(run_dir: Path, config: EntropyTraining, rows: list[Result]) -> None:
    """Write `summary.json`, the table and the figure, and print the table."""
    equal = at_equal_bytes(rows) if config.files and config.sparsities else {}
    lines: list[tuple[str, ...]] = [
        (
            "penalty",
            "row",
            "error %",
            "pruned, no penalty, same bytes: error %",
            "zero %",
            "estimate",
            "file bytes",
        )
    ]
    for row in rows:
        errors = [100 * error for error in row["error"]]
        other = f"{100 * equal[row['row']]:.2f}" if row["row"] in equal else "-"
        size = f"{statistics.mean(row['file_bytes']):,.0f}" if "file_bytes" in row else "-"
        sizes = (f"{100 * statistics.mean(row['reached']):.1f}", f"{statistics.mean(row['estimate']):,.0f}", size)
        lines.append((row["kind"], row["row"], spread(errors), other, *sizes))
    text = "\n".join(
        [
            f"# {config.name}: the coded size in the loss\n",
            *markdown_table(lines),
            "",
            f"Means of {len(rows[0]['error'])} seeds, test split, last epoch. `estimate`: bytes of the kernels, by "
            "`entropy_bits`, without contexts; `file bytes`: all of the `.lepton` file but its program, biases in float32. "
            "The column in the middle is read between the pruned rows, linear in log bytes; '-': beyond them.\n",
            "![accuracy against bytes](entropy_training.png)\n" if config.files else "",
            provenance({row["revision"] for row in rows}, "entropy_training"),
        ]
    )
    save_report(run_dir / "entropy_training.md", config.name, [text], rows)
    if config.files:
        plot(run_dir / "entropy_training.png", rows)
    print("\n".join(aligned(lines)))


def plot(path: Path, rows: list[Result]) -> None:
    """Draw accuracy against bytes of the file."""
    points = [point(row, "file_bytes", series=f"penalty {row['kind']}", label=row["row"]) for row in rows]
    accuracy_against(path, points, cost="bytes of the file without its program")
