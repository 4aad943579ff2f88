"""A study of bits: networks trained in float32, then fine-tuned with their weights and activations rounded."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.common import members
from experiments.common.config import Adam, Momentum
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, kept
from experiments.common.rows import check_rows, chosen
from experiments.common.training_settings import Training
from experiments.studies.qat.methods import QatMethod, StraightThrough
from lepton_jax import chain, identity
from lepton_jax.core import paths
from lepton_jax.core.errors import collect
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Dataset
from lepton_jax.distillation import by_part
from lepton_jax.graph import trace, weight_uses
from lepton_jax.models import ResNet, ResNetCifar, load_torch_resnet
from lepton_jax.quantization import Rule, Static, Uniform, calibrate_activations, quantize_activations
from lepton_jax.training import ModelApply, TrainState, classification_loss, create, linen_apply, make_train_step, stacked

PLAIN = "float32"
"""The row that is fine-tuned without rounding, the reference of all others."""
_CALIBRATION = 500
"""Images a batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One way to round a trained network, and fine-tune it so."""

    name: str
    """Of the method; the same at all bits."""
    bits: int
    """Of weights and activations, of all layers but the first and the last."""
    method: QatMethod = dataclasses.field(default_factory=StraightThrough)
    """How they are rounded in those layers."""
    edge_bits: int = 8
    """Of the first and the last layer, by ranges as they are."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name == PLAIN:
            raise ValueError(f"Row: name must be a word other than {PLAIN!r}, since it names files; got {self.name!r}.")
        for bits in (self.bits, self.edge_bits):  # refused here, not after the networks are trained
            Uniform(bits)

    @property
    def label(self) -> str:
        """Unique in a study."""
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
class Study(Training):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        with collect(f"Study {self.name!r}") as problems:
            labels = [row.label for row in self.rows]
            if not labels or len(set(labels)) < len(labels):
                problems.append(f"rows: at least one, no name and bits twice; got {labels}")
            check_rows(problems, list(dict.fromkeys(row.name for row in self.rows)), self.only)
            if not self.calibration_batches >= 1:
                problems.append(f"calibration_batches: must be at least 1; got {self.calibration_batches}")
            if (self.float_epochs >= 1) == (self.weights is not None):
                problems.append(f"either float_epochs or weights; got {self.float_epochs} and {self.weights}")
            if self.weights is not None and not isinstance(self.model, ResNet | ResNetCifar):
                problems.append(f"weights: are read for residual networks only; the model is a {type(self.model).__name__}")


class Runner:
    """Runs a study's rows.

    Args:
      study: the settings.
      seeds: of the runs; a seed's rows all begin at its network in float32.
      run_dir: gets a JSON file for each finished row, which is not run again.
      dataset: loaded; by default what the study names.
    """

    def __init__(self, study: Study, seeds: Sequence[int], run_dir: Path, dataset: Dataset | None = None) -> None:
        self.study, self.seeds, self.run_dir = study, tuple(seeds), run_dir
        self.dataset = study.data.load() if dataset is None else dataset
        self._apply = linen_apply(study.model)

    def run(self) -> list[Result]:
        """Run what is missing; return all results, those in float32 first."""
        rows: list[Row | None] = [None, *chosen(self.study.rows, self.study.only)]
        return [kept(self._path(row), functools.partial(self._row, row)) for row in rows]

    def _path(self, row: Row | None, folder: str = "rows", ending: str = "json") -> Path:
        return self.run_dir / folder / f"{PLAIN if row is None else row.label}.{ending}"

    @functools.cached_property
    def before(self) -> TrainState:
        """Every seed's network in float32, trained, or the published one; the stacked states."""
        study = self.study
        if study.weights is not None and isinstance(study.model, ResNet | ResNetCifar):
            variables = jax.tree.map(jnp.asarray, dict(load_torch_resnet(study.weights, study.model)))
            keys = jnp.stack([jax.random.key(seed) for seed in self.seeds])
            begin = functools.partial(create, variables.pop("params"), variables, optax.identity(), identity())
            return jax.jit(jax.vmap(begin))(keys)._replace(step=jnp.int32(0))
        args, name = (study, self.dataset, study.float_optimizer, self.seeds), "float32 beforehand"
        return members.trained(*args, epochs=study.float_epochs, name=name, run_dir=self.run_dir)

    def _row(self, row: Row | None) -> Result:
        """Fine-tune all seeds of a row; return its figures."""
        before = stacked.member(self.before, 0)
        begun = time.perf_counter()
        state, apply, transform, figures = self.train(row)
        seconds = time.perf_counter() - begun
        path = self._path(row, "files", "lepton") if self.study.files else None
        dense, rounds = Measure(self._apply, self.dataset).network(before), self.study.latency_rounds
        costs = Measure(apply, self.dataset).costs(transform, stacked.apart(state), dense=dense, rounds=rounds, path=path)
        about = {"row": PLAIN, "bits": None} if row is None else {"row": row.name, "bits": row.bits}
        size = sum(leaf.size for leaf in jax.tree.leaves(before.params))  # ranges of activations are no parameters
        return {**about, **figures, **costs, "parameters": size, "seeds": list(self.seeds), "seconds": seconds}

    def train(self, row: Row | None) -> tuple[TrainState, ModelApply, Transform, dict[str, Any]]:
        """Fine-tune every seed.

        Returns:
          The stacked states, with the parameters ``{"net": the model's own, "sites": what quantizers of activations keep}``;
          the rounded model; the view of its parameters; the figures.
        """
        study, before = self.study, self.before
        runs = stacked.apart(before)
        layers = self._layers(runs[0])
        rules = () if row is None else _rules(row, layers)
        sites = [self._calibrated(run, rules) for run in runs]
        both = {"net": before.params, "sites": jax.tree.map(lambda *each: jnp.stack(each), *sites)}
        transform = by_part({"net": identity() if row is None else _weights(row, layers)})
        tx = study.optimizer.build(study.steps(self.dataset, study.epochs))
        apply = with_rules(self._apply, rules)
        # A copy: the steps donate what they are given, and the next row begins at the same networks.
        state = stacked.restart(before._replace(params=both), functools.partial(create, tx=tx, transform=transform))
        step = make_train_step(classification_loss(apply), tx, transform)
        args = (study, self.dataset.train, step, state, self.seeds)
        name = PLAIN if row is None else row.label
        history = History(Measure(apply, self.dataset), transform)
        state = members.train(
            *args, epochs=study.epochs, first_epoch=study.float_epochs, name=name, history=history, run_dir=self.run_dir
        )
        return state, apply, transform, history.figures

    def _layers(self, run: TrainState) -> list[Layer]:
        """Return the layers in the order in which they run."""
        variables, images = _variables(run), jnp.asarray(self.dataset.train.images[:1])
        kernels = [f"params/{path}" for path in paths.select(run.params, paths.matrices)]
        uses = weight_uses(trace(_evaluated(self._apply), variables, images), kernels)
        # In an affine format, what is never negative has its zero at the lowest integer.
        affine = Rule(quantizer=Static(Uniform(symmetric=False)))
        sites = calibrate_activations(_evaluated(self._apply), affine, variables, self._batches())
        return [
            Layer(path=path.removeprefix("params/"), operation=name, signed=bool(sites[name]["lhs"]["zero_point"].max() > 0))
            for path, [use, *_] in uses.items()
            for name in [use.name]
        ]

    def _calibrated(self, run: TrainState, rules: tuple[Rule, ...]) -> PyTree:
        return calibrate_activations(_evaluated(self._apply), rules, _variables(run), self._batches()) if rules else {}

    def _batches(self) -> list[Array]:
        images = self.dataset.train.images[: _CALIBRATION * self.study.calibration_batches]
        count = min(self.study.calibration_batches, max(len(images) // _CALIBRATION, 1))
        return [jnp.asarray(some) for some in np.array_split(images, count)]


def with_rules(apply: ModelApply, rules: tuple[Rule, ...]) -> ModelApply:
    """Return a model of the parameters ``{"net": ..., "sites": ...}`` with operands rounded as the rules say."""

    def rounded(params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None) -> tuple[Array, PyTree]:
        def plain(variables: PyTree, inputs: Any) -> tuple[Array, PyTree]:
            return apply(variables["params"], variables["state"], inputs, train=train, key=key)

        variables = {"params": params["net"], "state": model_state, "quantization": params["sites"]}
        if not rules:
            return plain(variables, inputs)
        return quantize_activations(plain, rules)(variables, inputs)

    return rounded


def _rules(row: Row, layers: Sequence[Layer]) -> tuple[Rule, ...]:
    """Return a rule for each layer."""
    edges = (layers[0], layers[-1])

    def rule(layer: Layer) -> Rule:
        method, bits = (StraightThrough(), row.edge_bits) if layer in edges else (row.method, row.bits)
        return Rule(names=(layer.operation,), quantizer=method.activations(bits, layer.signed))

    return tuple(rule(layer) for layer in layers)


def _weights(row: Row, layers: Sequence[Layer]) -> Transform:
    """Return the view of the weights."""
    edges = StraightThrough().weights(row.edge_bits, (layers[0].path, layers[-1].path))
    inner = tuple(layer.path for layer in layers[1:-1])
    return chain(edges, row.method.weights(row.bits, inner)) if inner else edges


def _variables(run: TrainState) -> PyTree:
    return {"params": run.params, "state": run.model_state}


def _evaluated(apply: ModelApply) -> Any:
    def evaluated(variables: PyTree, inputs: Any) -> Array:
        return apply(variables["params"], variables["state"], inputs, train=False, key=None)[0]

    return evaluated
