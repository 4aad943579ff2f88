"""Measure int8 inference of an MLP in XLA, against float32 and Qwix.

    python -m experiments.benchmarks.int8_inference [--batches 128 1] [--rounds 30] [--out FILE.md]

W8A8: weights in int8, a scale for each output channel, `ready` or as words that every call unpacks; activations rounded to int8
with a scale for each example found anew (dynamic), or one calibrated before (static); multiplied as int8, summed in int32.
Weight-only: packed weights, float32 activations. Qwix (PyPI `qwix`, of the extra `bench`) does the dynamic kind by its
`PtqProvider`; without it installed its row is left out. All programs run in turns in one process. Printed: the median time, of
its ratio to float32's of the same turn, the bytes of the weights, the largest difference of an output from float32's, relative
to the largest output, and how many rows keep their largest output where it is. To reach: 0.65x of float32's time, W8A8 at batch
128.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from experiments.benchmarks.harness import arguments, installed, origin, publish, yes
from experiments.benchmarks.int8_training import batches
from experiments.benchmarks.pruning_step import MLP
from experiments.common.tables import Lines, markdown_table
from lepton_jax.core.paths import flatten, replace
from lepton_jax.core.timing import against
from lepton_jax.leaves.ready import ready
from lepton_jax.native.interpreter import packed
from lepton_jax.quantization import (
    Dynamic,
    Rule,
    Static,
    Uniform,
    calibrate_activations,
    quantize,
    quantize_activations,
    with_sites,
)

TARGET = 0.65
Program = tuple[Callable[..., Any], Any]
"""(a function of variables and inputs, its variables)."""


def packed_in(variables: Any, fmt: Uniform) -> Any:
    """Return variables whose kernels are packed."""
    return replace(variables, {p: quantize(w, fmt) for p, w in flatten(variables).items() if w.ndim == 2})


def qwix_program(module: nn.Module, variables: Any, example: Any) -> Program:
    """The peer: weights and activations in int8 by Qwix's provider for post-training quantization."""
    import qwix

    rule = qwix.QuantizationRule(module_path=".*", weight_qtype="int8", act_qtype="int8")
    quantized = qwix.quantize_model(module, qwix.PtqProvider([rule]))
    shapes = jax.eval_shape(quantized.init, jax.random.key(0), example)["params"]
    return quantized.apply, {"params": qwix.quantize_params(variables["params"], shapes)}


def programs(module: nn.Module, variables: Any, images: Any) -> dict[str, Program]:
    """What is compared, by name."""
    channels = packed_in(variables, Uniform(8, channel_axis=1))
    dynamic = Rule(quantizer=Dynamic(Uniform(8)), free_axes=True)
    static = Rule(quantizer=Static(Uniform(8)))
    sites = calibrate_activations(module.apply, static, variables, [(batch,) for batch in np.split(images, 4)])
    at_hand = ready(channels)
    found = {
        "float32": (module.apply, variables),
        "W8A8 dynamic": (quantize_activations(module.apply, dynamic, native=True), at_hand),
        "W8A8 static": (quantize_activations(module.apply, static, native=True), with_sites(at_hand, sites)),
        "W8A8 static, packed words": (quantize_activations(module.apply, static, native=True), with_sites(channels, sites)),
        "int8 weights": (packed(module.apply), channels),
        "int4 weights, groups of 32": (packed(module.apply), packed_in(variables, Uniform(4, group_size=32))),
    }
    if installed("qwix"):
        found["Qwix W8A8 dynamic"] = qwix_program(module, variables, images[:1])
    return found


def measure(kinds: dict[str, Program], images: Any, rounds: int) -> list[tuple[str, float, float, int, float, float]]:
    """Rows of (name, seconds, ratio to float32, bytes of the weights, largest relative difference, rows that agree)."""
    runs = {name: partial(jax.jit(apply).lower(v, images).compile(), v, images) for name, (apply, v) in kinds.items()}
    outputs = {name: np.asarray(run()) for name, run in runs.items()}
    taken, expected = against(runs, "float32", rounds=rounds), outputs["float32"]
    return [
        (
            name,
            *taken[name],
            sum(leaf.nbytes for leaf in jax.tree.leaves(kinds[name][1])),
            float(np.abs(outputs[name] - expected).max() / np.abs(expected).max()),
            float((outputs[name].argmax(1) == expected.argmax(1)).mean()),
        )
        for name in kinds
    ]


def main() -> None:
    """Print one table a batch size, and write them if asked."""
    options = arguments(__doc__, out=True, batches=([128, 1], "sizes of a batch"), rounds=(30, "turns; medians are over these"))
    module = MLP()
    images = np.concatenate([batch.images for batch in batches((784,))])
    variables = jax.jit(module.init)(jax.random.key(0), images)
    said = origin(f"int8_inference --rounds {options.rounds}")
    lines = ["# Inference in int8: the time of a batch", "", f"{said} MLP, 784-4x1024-10, initial weights."]
    kinds = programs(module, variables, images)
    for size in options.batches:
        rows = measure(kinds, images[:size], options.rounds)
        cells: Lines = [("", "ms", "of float32", "weight MB", "largest difference", "same largest output")]
        for name, seconds, ratio, count, difference, same in rows:
            figures = (f"{seconds * 1e3:.3f}", f"{ratio:.3f}", f"{count / 1e6:.2f}", f"{difference:.4f}", f"{same:.3f}")
            cells.append((name, *figures))
        lines += ["", f"## Batch {size}", "", *markdown_table(cells)]
        if size == options.batches[0]:
            best = min(row[2] for row in rows[1:3])
            lines += ["", f"W8A8 at {TARGET}x or less: {yes(best <= TARGET)}."]
    publish(lines, options.out)


if __name__ == "__main__":
    main()
