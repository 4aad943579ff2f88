"""A simulated quantum circuit as the middle layer of a small network, against middle layers that are classical.

Every network is a dense layer to n features, the middle layer, and a dense layer to the classes. "classical" has blocks
``s tanh(W tanh(x) + b)`` of as many parameters as the circuit, "sine" the same with sines, "random" a circuit whose angles are
left as they were drawn, "none" no middle layer but ``tanh(x)``. Rows with shots are trained by exact expectations and tested by
so many measurements of each example. Rows with bits or zeros train the angles under the view of `fake_quant` or `prune`.

The circuit is simulated: its time says nothing of a quantum computer, and no speed is claimed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from experiments.common import members, study
from experiments.common.columns import Column, Reference, plain, tabulate
from experiments.common.config import Adam, Digits
from experiments.common.curves import Curve, Panel, draw
from experiments.common.figures import Drawing
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, accuracies, gain
from experiments.common.study import Cell, Parts
from experiments.common.training_settings import Training
from lepton_jax import chain, fake_quant, identity, prune
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array
from lepton_jax.data import Dataset
from lepton_jax.quantization import Uniform
from lepton_jax.quantum import QuantumLayer
from lepton_jax.training import TrainState, classification_loss, create, linen_apply, make_train_step, stacked

Middle = Literal["quantum", "random", "classical", "sine", "none"]
ANGLES = "*angles"
"""The leaf of a circuit."""


class Frozen(QuantumLayer):
    """A circuit whose angles get no gradient."""

    def param(self, *args: Any, **kwargs: Any) -> Any:
        """Return the parameter as a constant."""
        return jax.lax.stop_gradient(super().param(*args, **kwargs))


class Blocks(nn.Module):
    """Blocks ``s f(W x + b)`` of `n (n + 2)` parameters each, n features in and out."""

    blocks: int
    function: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``[B, n]``."""
        for number in range(self.blocks):
            x = self.function(nn.Dense(x.shape[-1], name=f"mix_{number}")(x))
            x = x * self.param(f"scale_{number}", nn.initializers.ones, (x.shape[-1],))[None]
        return x


class Hybrid(nn.Module):
    """A dense layer, the middle layer, a dense layer."""

    middle: Middle = "quantum"
    qubits: int = 4
    layers: int = 2
    deviation: float = 0.3
    reupload: bool = True
    shots: int | None = None
    classes: int = 10

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return logits ``[B, classes]`` of images ``[B, H, W, C]``."""
        x = jnp.tanh(nn.Dense(self.qubits, name="first")(x.reshape(x.shape[0], -1)))
        blocks = 3 * self.layers // (self.qubits + 2)
        if self.middle in ("quantum", "random"):
            kind = QuantumLayer if self.middle == "quantum" else Frozen
            settings: dict[str, Any] = {"layers": self.layers, "reupload": self.reupload, "shots": self.shots}
            x = kind(**settings, angles_init=nn.initializers.normal(self.deviation), name="middle")(jnp.pi * x)
        elif self.middle == "classical":
            x = Blocks(blocks, jnp.tanh, name="middle")(x)
        elif self.middle == "sine":
            x = Blocks(blocks, jnp.sin, name="middle")(jnp.pi * x)
        return nn.Dense(self.classes, name="last")(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One middle layer."""

    middle: Middle = "quantum"
    """Its kind."""
    layers: int = 2
    """Of the circuit; or as many parameters in classical blocks."""
    deviation: float = 0.3
    """Of the angles at the beginning, in radians."""
    reupload: bool = True
    """Whether every layer of the circuit reads the inputs."""
    shots: int | None = None
    """Measurements an example in the test; None: exact expectations."""
    bits: int | None = None
    """Of the angles; None: float32."""
    sparsity: float = 0.0
    """Of the angles."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "layers", "shots")
        yield from self.at_least(0, "deviation")
        check_fraction(f"Row {self.name!r}: sparsity", self.sparsity)
        if self.middle in ("classical", "sine") and self.layers % 2:
            yield "layers: must be even, so that classical blocks have as many parameters"

    @property
    def settings(self) -> dict[str, Any]:
        """All but the name."""
        fields = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields if name != "name"}

    @property
    def transform(self) -> Transform:
        """The view that the angles are trained under."""
        parts = [prune(self.sparsity, select=ANGLES)] if self.sparsity else []
        parts += [fake_quant(Uniform(bits=self.bits), select=ANGLES)] if self.bits else []
        return chain(*parts) if parts else identity()

    def network(self, qubits: int) -> Hybrid:
        """Return the network that is trained, by exact expectations."""
        same = {name: getattr(self, name) for name in ("middle", "layers", "deviation", "reupload")}
        return Hybrid(qubits=qubits, **same)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantum(study.Study):
    """A table: rows are middle layers, compared with the first classical one."""

    data: Digits
    """The examples."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The middle layers."""
    qubits: int = 4
    """Of the circuits, and features of the others."""
    epochs: int = 30
    """Passes of every row."""
    optimizer: Adam = dataclasses.field(default_factory=lambda: Adam(learning_rate=1e-2))
    """Of every row."""
    batch_size: int = 64
    """Examples a step."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "epochs", "batch_size", "qubits")

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        lines = tabulate(results, COLUMNS, compared(results))
        drawing = Drawing(
            file="accuracy.png", alternative="accuracy of every middle layer", draw=partial(_plot, results=results)
        )
        return [lines, "## Verdict", verdict(results), drawing]


COLUMNS: tuple[Column | str, ...] = (
    "row",
    "accuracy",
    Column("against classical", lambda r, other: "" if other in (None, r) else f"{gain(r, other or r):+.2f}"),
    "best epoch",
    "validation",
    "parameters",
    plain("of the middle", lambda r: f"{r['middle_parameters']}"),
    "non-zeros",
    "seconds a run",
)


def compared(results: Sequence[Result]) -> Reference:
    """Compare every row with the classical middle layer of as many parameters, or else with the first classical one."""
    classical = [result for result in results if result["settings"]["middle"] == "classical"]

    def other(result: Result) -> Result | None:
        same = [one for one in classical if one["settings"]["layers"] == result["settings"]["layers"]]
        return next(iter(same or classical), None)

    return other


def verdict(results: Sequence[Result]) -> str:
    """Say whether a circuit is better than a classical layer of as many parameters, or than none, by the seeds' means.

    Example:
      >>> rows = [("quantum", 0.2), ("classical", 0.1), ("none", 0.2)]
      >>> common = {"settings": {"layers": 2}, "seeds": [0]}
      >>> print(verdict([{**common, "row": name, "settings": {"middle": name, "layers": 2}, "error": [e]} for name, e in rows]))
      quantum: 10.00 points worse than classical, 0.00 points better than none.
    """
    found = {result["row"]: result for result in results}
    said = []
    for result in results:
        if result["settings"]["middle"] != "quantum":
            continue
        others = [one for one in (compared(results)(result), found.get("none"), found.get("random")) if one is not None]
        words = [
            f"{abs(gain(result, one)):.2f} points {'better' if gain(result, one) >= 0 else 'worse'} than {one['row']}"
            for one in others
        ]
        said.append(f"{result['row']}: {', '.join(words) or 'nothing to compare it with'}.")
    return said[0] if len(said) == 1 else "\n".join(f"- {one}" for one in said)


def _plot(path: Path, results: Sequence[Result]) -> None:
    places = [float(place) for place in range(len(results))]
    curve = Curve(label="_", x=places, y=[accuracies(r) for r in results], look={"linestyle": "none", "color": "C0"})
    ticks = {place: result["row"].replace("_", "\n") for place, result in zip(places, results)}
    size = (max(7, 0.75 * len(results)), 4.2)
    draw(path, [Panel(curves=[curve], ticks=ticks, seeds=True)], y="test accuracy (%)", size=size)


class Runner(study.Runner[Quantum]):
    """Trains every seed of a row, and tests it."""

    @cached_property
    def dataset(self) -> Dataset:
        """The examples."""
        return self.study.data.load()

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        row, config = cells[0].row, self.study
        net = row.network(config.qubits)
        loop = Training(
            name=row.name,
            data=config.data,
            model=net,
            epochs=config.epochs,
            batch_size=config.batch_size,
            max_steps=config.max_steps,
        )
        apply, transform = linen_apply(net), row.transform
        tx = config.optimizer.build(loop.steps(self.dataset, config.epochs))
        state = members.start(loop, self.dataset, partial(create, tx=tx, transform=transform), self.seeds)
        step = make_train_step(classification_loss(apply), tx, transform)
        history = History(Measure(apply, self.dataset), transform)
        args = (loop, self.dataset.train, step, state, self.seeds)
        state = members.train(*args, epochs=config.epochs, name=row.name, history=history, run_dir=self.run_dir)
        runs = stacked.apart(state)
        figures = dict(history.figures)
        del figures["reached"]
        if row.shots is not None:
            figures["exact_error"], figures["best_error"] = figures["error"], []
            figures["validation_error"] = []
            figures["error"] = [self.sampled(row, run, seed) for run, seed in zip(runs, self.seeds, strict=True)]
        middle = runs[0].params.get("middle", {})
        counts = {"parameters": runs[0].params, "middle_parameters": middle}
        return [
            {
                **figures,
                **{name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in counts.items()},
                "accuracy": [1 - error for error in figures["error"]],
                "seconds": history.seconds,
            }
        ]

    def sampled(self, row: Row, run: TrainState, seed: int) -> float:
        """Return the test error of one seed by finitely many measurements."""
        net, test = row.network(self.study.qubits).clone(shots=row.shots), self.dataset.test
        params = row.transform.view(run.params, run.tstate)
        logits = jax.jit(net.apply)({"params": params}, jnp.asarray(test.images), rngs={"shots": jax.random.key(seed)})
        return float(np.mean(np.argmax(logits, -1) != test.labels))
