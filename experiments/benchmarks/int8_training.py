"""Measure a training step with int8 weights and activations, against the plain step and Qwix.

    python -m experiments.benchmarks.int8_training [--models mlp cnn] [--rounds 12] [--compile-rounds 3] [--out FILE.md]

W8A8: both operands of every dot and convolution are rounded to int8 at each step (a scale for each output channel of a weight,
one for each example of an activation, found anew each time), multiplied as int8 and summed in int32; gradients are float32 and
go straight through the rounding. Their derivative is that at the rounded operands, or at those before rounding ("unrounded"),
as Qwix has it (PyPI `qwix`, of the extra `bench`; its `QtProvider`; without it installed its row is left out). All steps are
jitted, donate their state, see the same batches and run in turns. Printed: the median time of a step, of its ratio to the plain
step's of the same turn, the processor time from the function to the compiled program and its ratio, and the loss at the end. To
reach: a ratio no higher than Qwix's, and 1.3x of plain to compile.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from experiments.benchmarks.harness import Run, arguments, installed, origin, processor_seconds, publish, yes
from experiments.benchmarks.pruning_step import CNN, MLP
from experiments.common.tables import Lines, markdown_table
from lepton_jax import identity
from lepton_jax.core.timing import against
from lepton_jax.data import Batch
from lepton_jax.quantization import Dynamic, Rule, Uniform, quantize_activations
from lepton_jax.training import LossFn, classification_loss, create, linen_apply, make_train_step

COMPILE_TARGET = 1.3
SHAPES = {"mlp": (784,), "cnn": (28, 28, 1)}
W8A8 = (
    Rule(argument="weight", quantizer=Dynamic(Uniform(8)), free_axes=True),
    Rule(quantizer=Dynamic(Uniform(8)), free_axes=True),
)


def qwix_model(module: nn.Module) -> nn.Module:
    """The peer: the module under Qwix's provider for quantized training, as its documentation shows."""
    import qwix

    rule = qwix.QtRule(module_path=".*", weight_qtype="int8", act_qtype="int8")
    return qwix.quantize_model(module, qwix.QtProvider([rule]))


def losses(module: nn.Module) -> dict[str, LossFn]:
    """The loss under each way of computing."""
    plain = linen_apply(module)
    found = {
        "float32": classification_loss(plain),
        "int8": classification_loss(quantize_activations(plain, W8A8, native=True)),
        "int8, derivative unrounded": classification_loss(
            quantize_activations(plain, W8A8, native=True, derivative="unrounded")
        ),
    }
    if installed("qwix"):
        found["Qwix int8"] = classification_loss(linen_apply(qwix_model(module)))
    return found


def batches(shape: tuple[int, ...], count: int = 4, size: int = 128) -> list[Batch]:
    """Noise about ten centres, so that there is something to learn."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, *shape)).astype(np.float32)
    labels = rng.integers(0, 10, (count, size)).astype(np.int32)
    images = centres[labels] + 2 * rng.normal(size=(count, size, *shape)).astype(np.float32)
    return [Batch(x, y, np.ones(size, bool)) for x, y in zip(images, labels)]


def compiled(make: Callable[[], Any], *args: Any) -> tuple[float, Any]:
    """Trace, lower and compile; return the processor seconds and the program."""
    jax.clear_caches()
    return processor_seconds(lambda: make().lower(*args).compile())


Row = tuple[str, float, float, float, float]
"""(name, seconds a step, ratio to float32, compile seconds, loss at the end)"""


def measure(module: nn.Module, data: list[Batch], rounds: int, compile_rounds: int) -> list[Row]:
    """Return a row for each way of computing."""
    kinds, tx = losses(module), optax.sgd(0.002, momentum=0.9)
    params = jax.jit(module.init)(jax.random.key(0), data[0].images)["params"]
    states: dict[str, Any] = {name: create(params, {}, tx, identity(), jax.random.key(1)) for name in kinds}
    steps = {}
    compiling: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(compile_rounds + 1):
        for name, loss_fn in kinds.items():
            make = partial(make_train_step, loss_fn, tx, identity())
            took, steps[name] = compiled(make, states[name], data[0])
            if number:  # the first round imports and warms up
                compiling[name].append(took)
    runs = {name: Run(step, states[name], data) for name, step in steps.items()}
    taken = against(runs, "float32", rounds=rounds)
    return [
        (name, took / len(data), ratio, statistics.median(compiling[name]), float(runs[name].metrics["loss"]))
        for name, (took, ratio) in taken.items()
    ]


def table(title: str, rows: list[Row]) -> list[str]:
    """The rows of a model as Markdown, and whether the targets are met."""
    cells: Lines = [("", "step ms", "of float32", "compile s", "of float32", "loss at the end")]
    base = rows[0][3]
    for name, seconds, ratio, compiling, loss in rows:
        cells.append(
            (name, f"{seconds * 1e3:.2f}", f"{ratio:.3f}", f"{compiling:.2f}", f"{compiling / base:.2f}", f"{loss:.4f}")
        )
    lines = [f"## {title}", "", *markdown_table(cells)]
    compiling = max(row[3] for row in rows[1:3]) / base
    lines += ["", f"Compile {COMPILE_TARGET}x or less: {yes(compiling <= COMPILE_TARGET)} ({compiling:.2f})."]
    for name, _, ratio, *_ in rows[1:3] if len(rows) > 3 else []:
        lines.append(f"{name}, no slower than Qwix: {yes(ratio <= rows[3][2])} ({ratio:.3f}, {rows[3][2]:.3f}).")
    return [*lines, ""]


def main() -> None:
    """Print one table a model, and write them if asked."""
    options = arguments(
        __doc__,
        out=True,
        models=([*SHAPES], "mlp, cnn"),
        rounds=(12, "turns of four steps; medians are over these"),
        compile_rounds=(3, "turns of compiling"),
    )
    # Compiling is measured: nothing may come from an earlier run.
    jax.config.update("jax_enable_compilation_cache", False)
    names = {"mlp": "MLP, 784-4x1024-10, batch 128", "cnn": "CNN, 32 and 64 channels, 28x28 pixels, batch 128"}
    said = f"int8_training --rounds {options.rounds} --compile-rounds {options.compile_rounds}"
    lines = ["# Training in int8: the time of a step", "", origin(said), ""]
    for name in options.models:
        module = MLP() if name == "mlp" else CNN()
        lines += table(names[name], measure(module, batches(SHAPES[name]), options.rounds, options.compile_rounds))
    publish(lines[:-1], options.out)


if __name__ == "__main__":
    main()
