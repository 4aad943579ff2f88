"""Criteria and allocations that cut filters of a published ResNet-20 for CIFAR-10, at several cuts, before and after tuning.

Accuracies are in percent, on 1,000 lossless test images: one image is 0.1 points, the standard error of an accuracy about
0.9. `base` is the published network, `from base` the tuned one's difference, `speed-up` dense by remaining
multiply-accumulates. Tuned is on JPEG-compressed training images, others for every seed; the row `dense` is tuned alike.
Criteria look at whole groups of coupled filters; `global` compares them over all groups by one threshold, all other rows cut
the same fraction of every group. The papers' networks are deeper and were tuned for 20 and more epochs on all 50,000 lossless
images; their figures show the form, not the aim. Sizes and times are of the first seed; `difference` is the largest relative
one of masked and shrunk logits.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common import measuring, resnet20, study, unfinished
from experiments.common.columns import COLUMNS, ROW, accuracy, mean, plain, setting, tabulate, time_ratio
from experiments.common.curves import Curve, Panel, draw
from experiments.common.deployed import file_bytes
from experiments.common.figures import Drawing
from experiments.common.results import Result, accuracies
from experiments.common.study import Cell
from experiments.common.tables import Lines
from lepton_jax import identity
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.timing import ratio
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Split
from lepton_jax.graph import cost
from lepton_jax.models import ResNetCifar
from lepton_jax.pruning.channels import (
    BatchNormScale,
    GeometricMedian,
    Importance,
    Norm,
    Plan,
    Random,
    Taylor,
    plan,
    verify,
)
from lepton_jax.training import FitSettings, TrainState, classification_loss, create, cross_entropy, make_train_step

Criterion = Literal["none", "l1", "l2", "taylor", "fpgm", "bn_scale", "random"]
_VERIFIED, _RTOL = 32, 1e-4
"""Test images on which masked and shrunk are compared, and how far apart they may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One way to choose filters."""

    criterion: Criterion
    """What a filter is worth; 'none': nothing is cut, only tuned."""
    ranking: Literal["group", "global"] = "group"
    """Every group of coupled filters loses the same fraction, or the lowest scores of all groups go."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterPruning(study.Study):
    """Rows are criteria and allocations; every one at every cut."""

    passing = ("only", "data")

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The ways to choose."""
    references: Annotated[dict[float, tuple[str, str]], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    """A paper's figure and its source, by the cut that it stands beside."""
    model: Annotated[ResNetCifar, tyro.conf.Suppress] = resnet20.MODEL
    """The published network."""
    data: Path = resnet20.FOLDER
    """Holds `weights/resnet20_cifar10.npz`, `cifar10_subset/` and `cifar10_jpeg/`."""
    fractions: tuple[float, ...] = (0.3, 0.5)
    """Of the multiply-accumulates, to be removed."""
    tune_images: int = 5000
    """JPEG-compressed training images to tune on, others for every seed."""
    epochs: int = 2
    """Passes over them."""
    batch_size: int = 100
    learning_rate: float = 0.01
    """Of SGD with momentum; half a cosine over all epochs."""
    taylor_images: int = 1000
    """Lossless training images for the gradients of the Taylor criterion."""
    latency_batches: tuple[int, ...] = (1, 32)
    latency_rounds: int = 30
    """Interleaved calls of the dense and the smaller network."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "epochs", "batch_size", "taylor_images", "latency_rounds")
        if self.tune_images < self.batch_size:
            yield f"tune_images: must be at least a batch of {self.batch_size}; got {self.tune_images}"
        for fraction in self.fractions:
            check_fraction("fractions", fraction)

    @property
    def cells(self) -> list[Cell]:
        """The rows to run, each with its cuts."""
        cuts = {row: (0.0,) if row.criterion == "none" else self.fractions for row in self.chosen}
        return [_cell(row, fraction) for row, fractions in cuts.items() for fraction in fractions]

    @property
    def steps(self) -> int:
        """Of an epoch of tuning."""
        steps = self.tune_images // self.batch_size
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> list[str | Lines | Drawing]:
        title, times = "accuracy against multiply-accumulates", [time_ratio(f"time, {b}", str(b)) for b in self.latency_batches]
        drawing = Drawing(file="accuracy.png", alternative=title, draw=partial(plot, results=results))
        return [tabulate(results, ACCURACIES), drawing, "## Sizes and times", tabulate(results, (*SIZES, *times, *CHECKS))]


def _cell(row: Row, fraction: float) -> Cell:
    settings = {"criterion": row.criterion, "ranking": row.ranking, "fraction": fraction}
    return Cell(row=row, name=row.name, settings=settings, label=f"{row.name}-{100 * fraction:g}")


def _change(result: Result) -> str:
    return f"{statistics.mean(accuracies(result)) - 100 * (1 - result['dense_error']):+.1f}"


CUT = setting("MACs cut", "fraction", lambda fraction: f"{100 * fraction:g} %")
ACCURACIES = (
    ROW._replace(title="criterion"),
    CUT,
    plain("base", lambda r: f"{100 * (1 - r['dense_error']):.1f}"),
    accuracy("after the cut", "cut_error", 1),
    accuracy("tuned", digits=1),
    accuracy("best by test images", "best_error", 1),
    plain("from base", _change),
    plain("speed-up", lambda r: f"{r['dense_macs'] / r['macs']:.2f}x"),
    plain("reference", lambda r: f"{r['reference']} ({r['source']})" if r["reference"] else ""),
)
SIZES = (ROW._replace(title="criterion"), CUT, *(COLUMNS[name] for name in ("parameters", "MACs", "bytes")))
CHECKS = (mean("difference", "difference", ".0e"), plain("seconds a run", lambda r: f"{r['seconds'] / len(r['seeds']):.0f}"))


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw accuracy against multiply-accumulates, after the cut and after tuning, a line a row."""
    panels, base = [], {"published": 100 * (1 - results[0]["dense_error"])}
    uncut = [statistics.mean(accuracies(result)) for result in results if not result["settings"]["fraction"]]
    tuned = {**dict(zip(["dense, tuned alike"], uncut)), **base}
    for name, title, levels in (("cut_error", "after the cut", base), ("error", "after tuning", tuned)):
        curves = []
        for row in dict.fromkeys(result["row"] for result in results if result["settings"]["fraction"]):
            cells = sorted((r for r in results if r["row"] == row), key=lambda result: result["macs"])
            x, y = [100 * cell["macs"] / cell["dense_macs"] for cell in cells], [accuracies(cell, name) for cell in cells]
            curves.append(Curve(label=row, x=x, y=y))
        panels.append(Panel(curves=curves, title=title, levels=levels, y_scale="error"))
    draw(path, panels, x="multiply-accumulates (% of dense)", y="test accuracy (%)", size=(5, 4.6))


class Errors:
    """Measures the error after every epoch."""

    def __init__(self, error: Callable[[TrainState], float]) -> None:
        self._error = error
        self.epochs: list[dict[str, Any]] = []

    def __call__(self, state: TrainState) -> dict[str, Any]:
        return {"error": self._error(state)}


class Network:
    """The published network cut by a plan; its functions are compiled once for all seeds that share it.

    Args:
      config: the study.
      made: what is removed.
      variables: parameters and batch statistics of the whole network.
      difference: the largest one of masked and shrunk outputs, as verified.

    Attributes:
      variables: of the smaller network, before tuning.
      predict: ``(variables, images) -> logits``.
    """

    def __init__(self, config: FilterPruning, made: Plan, variables: PyTree, difference: float) -> None:
        self.config, self.difference = config, difference
        self.variables = jax.jit(made.shrink)(variables)  # leaf by leaf it would be dozens of small programs
        self.predict: Callable[[PyTree, Array], Array] = jax.jit(made.rewrite(config.model.apply))
        self._learn = made.rewrite(partial(_train_mode, config.model))
        self._tx = resnet20.momentum(config.learning_rate, config.epochs * config.steps)
        self._step = make_train_step(classification_loss(self.apply), self._tx, identity())

    def error(self, variables: PyTree, split: Split) -> float:
        """Return the fraction of images classified wrongly."""
        return 1 - resnet20.count_right(self.predict, variables, split) / len(split)

    def tune(self, train: Split, test: Split, seed: int, name: str, run_dir: Path) -> tuple[PyTree, list[float]]:
        """Train from the cut on; return the variables, and the errors on test images after every epoch."""
        params, rest, config = self.variables["params"], {"batch_stats": self.variables["batch_stats"]}, self.config
        state = create(params, rest, self._tx, identity(), jax.random.key(seed))
        history = Errors(lambda state: self.error(_variables(state), test))
        batch_at = resnet20.tuning_batches(train, steps=config.steps, batch_size=config.batch_size, seed=seed)
        args = (state, self._step, batch_at, FitSettings.by_epochs(config.epochs, config.steps))
        state = unfinished.train(*args, name=name, seeds=[seed], history=history, run_dir=run_dir)
        return _variables(state), [figures["error"] for figures in history.epochs]

    def apply(self, params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None) -> tuple[Any, PyTree]:
        """Run the smaller network, as the library's loops have models."""
        variables = {"params": params, **model_state}
        return self._learn(variables, inputs) if train else (self.predict(variables, inputs), model_state)


def _variables(state: TrainState) -> PyTree:
    return {"params": state.params, **state.model_state}


def _train_mode(model: ResNetCifar, variables: PyTree, images: Array) -> Any:
    """Logits, and updated batch statistics."""
    return model.apply(variables, images, train=True, mutable=["batch_stats"])


class Runner(study.Runner[FilterPruning]):
    """Cuts, tunes and evaluates every seed; sizes and times are the first one's."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._images: dict[int, Split] = {}

    @cached_property
    def splits(self) -> tuple[Split, Split]:
        """Lossless training and test images."""
        return resnet20.lossless_splits(self.study.data)

    @cached_property
    def variables(self) -> PyTree:
        """Of the published network."""
        return resnet20.load_variables(self.study.data, self.study.model)

    @cached_property
    def dense(self) -> Callable[[PyTree, Array], Array]:
        """The published network, compiled."""
        return jax.jit(self.study.model.apply)

    @cached_property
    def published(self) -> Result:
        """Figures of the published network: its error, and the multiply-accumulates of one image through it."""
        test = self.splits[1]
        error = 1 - resnet20.count_right(self.dense, self.variables, test) / len(test)
        return {"dense_error": error, "dense_macs": cost(self.study.model.apply, self.variables, test.images[:1]).macs}

    @cached_property
    def gradients(self) -> PyTree:
        """Of the mean loss over training images, in evaluation mode."""

        def loss(params: PyTree, images: Array, labels: Array) -> Array:
            logits: Any = self.study.model.apply({**self.variables, "params": params}, images)
            return jnp.mean(cross_entropy(logits, labels))

        step, size = jax.jit(jax.grad(loss)), self.study.batch_size
        some = self.splits[0].take(np.arange(self.study.taylor_images))
        parts = [
            step(self.variables["params"], some.images[i : i + size], some.labels[i : i + size])
            for i in range(0, len(some), size)
        ]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)

    def images(self, seed: int) -> Split:
        """Return what a seed is tuned on, decoded once."""
        if seed not in self._images:
            self._images[seed] = resnet20.jpeg_split(self.study.data, self.study.tune_images, seed)
        return self._images[seed]

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        cell, test, begun = cells[0], self.splits[1], time.perf_counter()
        figure, source = self.study.references.get(cell.settings["fraction"], ("", ""))
        # All criteria but one choose the same filters for every seed.
        alike = [] if cell.row.criterion == "random" else [self._network(cell, self.seeds[0])] * len(self.seeds)
        networks = alike or [self._network(cell, seed) for seed in self.seeds]
        runs = [
            network.tune(self.images(seed), test, seed, f"{cell.label}, seed {seed}", self.run_dir)
            for network, seed in zip(networks, self.seeds)
        ]
        result = {
            **self.published,
            "cut_error": [network.error(network.variables, test) for network in networks],
            "error": [errors[-1] for _, errors in runs],
            "best_error": [min(errors) for _, errors in runs],
            "nonzeros": [measuring.nonzeros(jax.tree.leaves(jax.device_get(tuned["params"]))) for tuned, _ in runs],
            **self._costs(cell, networks[0], runs[0][0]),
            "difference": max(network.difference for network in networks),
            "seconds": time.perf_counter() - begun,
        }
        return [{**result, "reference": figure, "source": source}]

    def _costs(self, cell: Cell, network: Network, tuned: PyTree) -> Result:
        """Numbers, multiply-accumulates, the file's bytes without its program, and times over the dense network's."""
        test, rounds = self.splits[1].images, self.study.latency_rounds

        def time_over_dense(batch: int) -> float:
            held = jax.device_put(test[:batch])
            small, dense = partial(network.predict, network.variables, held), partial(self.dense, self.variables, held)
            return ratio(small, dense, rounds=rounds)

        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(tuned["params"])),
            "macs": cost(network.predict, tuned, test[:1]).macs,
            "file_bytes": file_bytes(network.apply, tuned, test, self.path(cell, "files", "lepton")),
            "latency_ratio": {str(batch): time_over_dense(batch) for batch in self.study.latency_batches},
        }

    def _network(self, cell: Cell, seed: int) -> Network:
        apply, test, row = self.study.model.apply, self.splits[1].images, cell.row
        options = {"fraction": cell.settings["fraction"], "of": "macs", "ranking": row.ranking}
        made = plan(apply, self.variables, test[:1], criterion=self._importance(row.criterion, seed), **options)
        found = verify(made, apply, self.variables, test[:_VERIFIED], rtol=_RTOL, gradients=False)
        return Network(self.study, made, self.variables, found.worst)

    def _importance(self, criterion: Criterion, seed: int) -> Importance:
        match criterion:
            case "l2":
                return Norm(order=2)
            case "taylor":
                return Taylor(gradients=self.gradients)
            case "fpgm":
                return GeometricMedian()
            case "bn_scale":
                return BatchNormScale()
            case "random":
                return Random(key=jax.random.key(seed))
            case "l1" | "none":
                return Norm(order=1)
