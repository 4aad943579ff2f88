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

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from experiments.benchmarks.int8_training import batches
from experiments.benchmarks.pruning_step import MLP
from experiments.common.tables import revision
from lepton_jax.core.paths import flatten, replace
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
    if importlib.util.find_spec("qwix"):
        found["Qwix W8A8 dynamic"] = qwix_program(module, variables, images[:1])
    return found


def measure(kinds: dict[str, Program], images: Any, rounds: int) -> list[tuple[str, float, float, int, float, float]]:
    """Rows of (name, seconds, ratio to float32, bytes of the weights, largest relative difference, rows that agree)."""
    compiled, outputs = {}, {}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for name, (apply, variables) in kinds.items():
        compiled[name] = jax.jit(apply).lower(variables, images).compile()
        outputs[name] = np.asarray(compiled[name](variables, images))
    for number in range(rounds + 1):
        for name in sorted(kinds, reverse=number % 2 == 0):
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](kinds[name][1], images))
            if number:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    base, expected = np.array(times["float32"]), outputs["float32"]
    return [
        (
            name,
            statistics.median(times[name]),
            float(np.median(np.array(times[name]) / base)),
            sum(leaf.nbytes for leaf in jax.tree.leaves(kinds[name][1])),
            float(np.abs(outputs[name] - expected).max() / np.abs(expected).max()),
            float((outputs[name].argmax(1) == expected.argmax(1)).mean()),
        )
        for name in kinds
    ]


def main() -> None:
    """Print one table a batch size, and write them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1])
    parser.add_argument("--rounds", type=int, default=30, help="turns; medians are over these")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    options = parser.parse_args()
    module = MLP()
    images = np.concatenate([batch.images for batch in batches((784,))])
    variables = jax.jit(module.init)(jax.random.key(0), images)
    lines = [
        "# Inference in int8: the time of a batch",
        "",
        f"`python -m experiments.benchmarks.int8_inference --rounds {options.rounds}`, jax {jax.__version__} on "
        f"{jax.devices()[0].platform}, revision {revision()}. MLP, 784-4x1024-10, initial weights.",
    ]
    kinds = programs(module, variables, images)
    for size in options.batches:
        rows = measure(kinds, images[:size], options.rounds)
        lines += ["", f"## Batch {size}", "", "| | ms | of float32 | weight MB | largest difference | same largest output |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, seconds, ratio, count, difference, same in rows:
            lines.append(f"| {name} | {seconds * 1e3:.3f} | {ratio:.3f} | {count / 1e6:.2f} | {difference:.4f} | {same:.3f} |")
        if size == options.batches[0]:
            best = min(row[2] for row in rows[1:3])
            lines += ["", f"W8A8 at {TARGET}x or less: {'yes' if best <= TARGET else 'NO'}."]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
