"""Few bits in training: networks trained in float32, then fine-tuned with their weights and activations rounded.

Every seed's network, published or trained in float32 beforehand, is trained for the same epochs in every row, the one in
float32 too. `gap` is the mean over seeds of the difference from that. Weights of kernels and inputs of dots and convolutions
are rounded; the first and the last layer have 8 bits, biases and norms stay float32.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common import members, study
from experiments.common.columns import COSTS, ROW, accuracy, across, change, reference, setting, tabulate
from experiments.common.config import Adam, Momentum
from experiments.common.curves import Panel, by_row, draw
from experiments.common.figures import Drawing
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, accuracies
from experiments.common.study import Cell, Parts
from experiments.common.tables import Lines
from experiments.common.training_study import TrainingRunner, TrainingStudy
from lepton_jax import chain, fake_quant, identity
from lepton_jax import quantization as q
from lepton_jax.core import paths
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.distillation import by_part
from lepton_jax.graph import trace, weight_uses
from lepton_jax.models import ResNet, ResNetCifar
from lepton_jax.training import ModelApply, TrainState, classification_loss, create, make_train_step, stacked

PLAIN = "float32"
"""The row that is fine-tuned without rounding, the reference of all others."""
_CALIBRATION = 500
"""Images a batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QatMethod:
    """How the weights and the inputs of a layer are rounded, at any number of bits."""

    weights: Callable[..., Transform]
    """Of bits and ``select``."""
    activations: q.ActivationQuantizer
    """Its bits, and whether it is signed, are set for each layer."""

    def quantizer(self, bits: int, signed: bool) -> q.ActivationQuantizer:
        """Return the quantizer of the inputs of a layer."""
        whole: Any = self.activations
        names = [field.name for field in dataclasses.fields(whole)]
        at: Any = whole.format if "format" in names else whole
        # An affine format is signed by its zero point, and q.DoReFa's inputs are in [0, 1].
        sign = {"signed": signed} if hasattr(at, "signed") and getattr(at, "symmetric", True) else {}
        at = dataclasses.replace(at, bits=bits, **sign)
        return dataclasses.replace(whole, format=at) if "format" in names else at


METHODS = {
    # Ranges of the weights as they are, calibrated ranges of activations (Jacob et al. 2018).
    "straight_through": QatMethod(weights=fake_quant, activations=q.Static(q.Uniform(), q.Mse())),
    # Trained steps, of weights and activations (Esser et al. 2020).
    "lsq": QatMethod(weights=q.lsq, activations=q.LearnedStep(q.Uniform(), q.TwiceMean())),
    # Trained steps of weights, trained steps and offsets of activations (Bhalgat et al. 2020).
    "lsq_plus": QatMethod(
        weights=partial(q.lsq, calibration=q.Mse()), activations=q.LearnedStep(q.Uniform(symmetric=False), q.Mse())
    ),
    # Trained clipping of activations, weights squashed by tanh (Choi et al. 2018); weights keep their size.
    "pact": QatMethod(weights=partial(q.dorefa, scale="kept"), activations=q.Pact(calibration=q.Mse())),
    # Activations in [0, 1], weights squashed by tanh (Zhou et al. 2016); weights keep their size.
    "dorefa": QatMethod(weights=partial(q.dorefa, scale="kept"), activations=q.DoReFa()),
}
EDGES = METHODS["straight_through"]
"""Of the first and the last layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One way to round a trained network, and fine-tune it so; rows of one name differ in their bits."""

    reserved = (PLAIN,)

    bits: int
    """Of weights and activations, of all layers but the first and the last."""
    method: QatMethod = EDGES
    """How they are rounded in those layers."""
    edge_bits: int = 8
    """Of the first and the last layer, by ranges as they are."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for bits in (self.bits, self.edge_bits):  # refused here, not after the networks are trained
            q.Uniform(bits)

    @property
    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits}

    @property
    def label(self) -> str:
        return f"{self.name}-{self.bits}bit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A dot or convolution with a weight."""

    path: str
    """Of the weight."""
    operation: str
    """Its name."""
    signed: bool
    """Whether what it is applied to is ever negative."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QatBits(TrainingStudy):
    """A table: rows are methods, columns bits; `epochs` are those of the fine-tuning."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The ways to round."""
    weights: Path | None = None
    """A file of published weights to begin at; None: train in float32 beforehand."""
    float_epochs: int = 0
    """Passes in float32 beforehand."""
    float_optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of those."""
    optimizer: Adam | Momentum = dataclasses.field(default_factory=Adam)
    """Of the fine-tuning: weights, steps and heights."""
    calibration_batches: int = 4
    """Batches of 500 training images on which ranges of activations are found."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "calibration_batches")
        if (self.float_epochs >= 1) == (self.weights is not None):
            yield f"either float_epochs or weights; got {self.float_epochs} and {self.weights}"
        if self.weights is not None and not isinstance(self.model, ResNet | ResNetCifar):
            yield f"weights: are read for residual networks only; the model is a {type(self.model).__name__}"

    @property
    def cells(self) -> list[Cell]:
        """The row in float32 first."""
        return [Cell(row=None, name=PLAIN, settings={"bits": None}, label=PLAIN), *super().cells]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        drawing = Drawing(file="accuracy.png", alternative="accuracy against bits", draw=partial(plot, results=results))
        return [accuracies_by_bits(results), drawing, "## Validation and cost", tabulate(results, VALIDATION)]


VALIDATION = (ROW._replace(title="method"), setting("bits", "bits", lambda bits: str(bits or 32)), "accuracy", *COSTS)


def accuracies_by_bits(results: Sequence[Result]) -> Lines:
    """Return the cells: a line a method, two columns for each number of bits, most first; the result in float32 has none."""
    rounded = [result for result in results if result["row"] != PLAIN]
    levels = sorted({result["settings"]["bits"] for result in rounded}, reverse=True)
    columns = (accuracy("W{0}A{0}"), change("gap"))
    return across(rounded, "bits", columns, levels=levels, compare=reference(results, PLAIN))


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw every method's accuracy against the bits, each seed a dot."""
    plain, *rounded = results
    levels = sorted({result["settings"]["bits"] for result in rounded}, reverse=True)
    rows = list(dict.fromkeys(result["row"] for result in rounded))

    def place(result: Result) -> float:
        return levels.index(result["settings"]["bits"]) + 0.06 * (rows.index(result["row"]) - (len(rows) - 1) / 2)

    curves = by_row(sorted(rounded, key=lambda result: -result["settings"]["bits"]), place)
    ticks = {float(number): f"W{bits}A{bits}" for number, bits in enumerate(levels)}
    panel = Panel(curves=curves, levels={PLAIN: statistics.mean(accuracies(plain))}, ticks=ticks, seeds=True, y_scale="error")
    draw(path, [panel], x="bits of weights and activations", y="test accuracy (%)")


class Runner(TrainingRunner[QatBits]):
    """Fine-tunes every row; a seed's rows all begin at its network in float32."""

    @functools.cached_property
    def before(self) -> TrainState:
        """Every seed's network in float32, trained, or the published one; the stacked states."""
        config = self.study
        if config.weights is not None and isinstance(config.model, ResNet | ResNetCifar):
            return members.published(config.weights, config.model, self.seeds)
        return self.trained(config.float_optimizer, config.float_epochs, "float32 beforehand")

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        before = stacked.member(self.before, 0)
        state, _, history = self.tune(cells[0].row)
        size = sum(leaf.size for leaf in jax.tree.leaves(before.params))  # ranges of activations are no parameters
        return [self.figures(cells[0], history, state, self.measured.network(before), parameters=size)]

    def tune(self, row: Row | None) -> tuple[TrainState, ModelApply, History]:
        """Fine-tune every seed.

        Returns:
          The stacked states, with the parameters ``{"net": the model's own, "sites": what quantizers of activations keep}``;
          the rounded model; the history, which has the view of its parameters.
        """
        config, before = self.study, self.before
        runs = stacked.apart(before)
        layers = self._layers(runs[0])
        rules = () if row is None else _rules(row, layers)
        sites = [self._calibrated(run, rules) for run in runs]
        both = {"net": before.params, "sites": jax.tree.map(lambda *each: jnp.stack(each), *sites)}
        transform = by_part({"net": identity() if row is None else _weights(row, layers)})
        tx = config.optimizer.build(config.steps(self.dataset, config.epochs))
        apply = with_rules(self.apply, rules)
        # A copy: the steps donate what they are given, and the next row begins at the same networks.
        state = stacked.restart(before._replace(params=both), partial(create, tx=tx, transform=transform))
        step = make_train_step(classification_loss(apply), tx, transform)
        history = History(Measure(apply, self.dataset), transform)
        epochs = range(config.float_epochs, config.float_epochs + config.epochs)
        return self.train(step, state, epochs, PLAIN if row is None else row.label, history), apply, history

    def _layers(self, run: TrainState) -> list[Layer]:
        """Return the layers in the order in which they run."""
        variables, images = _variables(run), jnp.asarray(self.dataset.train.images[:1])
        kernels = [f"params/{path}" for path in paths.select(run.params, paths.matrices)]
        uses = weight_uses(trace(_evaluated(self.apply), variables, images), kernels)
        # In an affine format, what is never negative has its zero at the lowest integer.
        affine = q.Rule(quantizer=q.Static(q.Uniform(symmetric=False)))
        sites = q.calibrate_activations(_evaluated(self.apply), affine, variables, self._batches())
        return [
            Layer(path=path.removeprefix("params/"), operation=name, signed=bool(sites[name]["lhs"]["zero_point"].max() > 0))
            for path, [use, *_] in uses.items()
            for name in [use.name]
        ]

    def _calibrated(self, run: TrainState, rules: tuple[q.Rule, ...]) -> PyTree:
        return q.calibrate_activations(_evaluated(self.apply), rules, _variables(run), self._batches()) if rules else {}

    def _batches(self) -> list[Array]:
        images = self.dataset.train.images[: _CALIBRATION * self.study.calibration_batches]
        count = min(self.study.calibration_batches, max(len(images) // _CALIBRATION, 1))
        return [jnp.asarray(some) for some in np.array_split(images, count)]


def with_rules(apply: ModelApply, rules: tuple[q.Rule, ...]) -> ModelApply:
    """Return a model of the parameters ``{"net": ..., "sites": ...}`` with operands rounded as the rules say."""

    def rounded(params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None) -> tuple[Array, PyTree]:
        def plain(variables: PyTree, inputs: Any) -> tuple[Array, PyTree]:
            return apply(variables["params"], variables["state"], inputs, train=train, key=key)

        variables = {"params": params["net"], "state": model_state, "quantization": params["sites"]}
        if not rules:
            return plain(variables, inputs)
        return q.quantize_activations(plain, rules)(variables, inputs)

    return rounded


def _rules(row: Row, layers: Sequence[Layer]) -> tuple[q.Rule, ...]:
    """Return a rule for each layer."""
    edges = (layers[0], layers[-1])

    def rule(layer: Layer) -> q.Rule:
        method, bits = (EDGES, row.edge_bits) if layer in edges else (row.method, row.bits)
        return q.Rule(names=(layer.operation,), quantizer=method.quantizer(bits, layer.signed))

    return tuple(rule(layer) for layer in layers)


def _weights(row: Row, layers: Sequence[Layer]) -> Transform:
    """Return the view of the weights."""
    edges = EDGES.weights(row.edge_bits, select=(layers[0].path, layers[-1].path))
    inner = tuple(layer.path for layer in layers[1:-1])
    return chain(edges, row.method.weights(row.bits, select=inner)) if inner else edges


def _variables(run: TrainState) -> PyTree:
    return {"params": run.params, "state": run.model_state}


def _evaluated(apply: ModelApply) -> Any:
    def evaluated(variables: PyTree, inputs: Any) -> Array:
        return apply(variables["params"], variables["state"], inputs, train=False, key=None)[0]

    return evaluated
