"""Networks in int8 weights and activations, natively, against float32: the time of a batch, and of every convolution and dot.

    python -m experiments.benchmarks.native_int8 --out experiments/results/native_int8.md

Weights in int8 with a scale for each output channel, `ready`; activations in int8 with a calibrated range each, symmetric or
with a zero point; batch norms folded into the weights in both. Both run under `fast_lowering`. One core, processor time, least
of rounds in which all take turns; float32 stands there twice (A/A). `equal` says whether the outputs are those of int8 in XLA's
own convolutions and dots (computed as any integers), bit for bit. Forms of single convolutions: XLA's own in int8, ours, and
float32 as the network has it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.fast_lowering import compiled, least
from experiments.benchmarks.harness import arguments, origin, publish, yes
from experiments.benchmarks.lowering_nets import made
from experiments.common.tables import Lines, markdown_table
from lepton_jax import graph
from lepton_jax.core.paths import flatten, replace
from lepton_jax.leaves import convs, integer_convs
from lepton_jax.leaves.dots import dot
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.leaves.ready import ready
from lepton_jax.quantization import Rule, Static, Uniform, calibrate_activations, quantize, quantize_activations, with_sites

NETS = ("ResNet-20, batch 32", "ResNet-18, 64 px, batch 32")
GOALS = {"ResNet-20, batch 32": 1.0, "ResNet-18, 64 px, batch 32": 0.75}
DOTS = ((1024, 1024), (784, 1024), (1024, 4096), (512, 1000))
"""Inputs and features of dots of one row."""


@contextmanager
def own_convolutions() -> Iterator[dict[Any, Any]]:
    """Convolutions of codes are XLA's own, and are gathered: parameters by shapes."""
    found: dict[Any, Any] = {}

    def own(x: Any, kernel: Any, params: Any, filling: Any) -> Any:
        found.setdefault((x.shape, kernel.shape, params["window_strides"]), params)
        if filling is not None:
            around = list(zip(params["dimension_numbers"].lhs_spec[2:], params["padding"]))
            x = jax.lax.pad(x, filling, [(*dict(around).get(axis, (0, 0)), 0) for axis in range(x.ndim)])
            params = {**params, "padding": ((0, 0),) * len(around)}
        return integer_convs.bound(x, kernel, params)

    before, convs.integers = convs.integers, own
    try:
        yield found
    finally:
        convs.integers = before


def network(name: str, rounds: int, examples: int | None) -> tuple[list[list[Any]], dict[Any, Any]]:
    """Rows of the table, and the convolutions."""
    variables, x, forward, _ = made(name)
    x, rows = x[:examples], []
    folded, floats = graph.fold_batch_norm(forward, variables, x)
    fmt = Uniform(8, channel_axis=-1)
    kernels = {path: quantize(leaf, fmt) for path, leaf in flatten(floats).items() if path.endswith("kernel")}
    calls = {"float32": compiled(graph.fast_lowering(folded), (floats, x))[1]}
    calls["float32 again"] = compiled(graph.fast_lowering(folded), (floats, x))[1]
    equal: dict[str, bool] = {}
    for kind, symmetric in (("int8 with a zero point", False), ("int8, symmetric", True)):
        rule = Rule(quantizer=Static(Uniform(8, symmetric=symmetric)))
        weights = with_sites(ready(replace(floats, kernels)), calibrate_activations(folded, rule, floats, [x]))
        apply = quantize_activations(folded, rule, native=True)
        calls[kind] = compiled(graph.fast_lowering(apply), (weights, x))[1]
        with own_convolutions() as convolutions:
            expected = jax.jit(lambda *given, apply=apply: apply(*given))(weights, x)
        equal[kind] = bool((calls[kind]() == expected).all())
    taken = least(calls, rounds)
    for kind, seconds in taken.items():
        ratio, goal = seconds / taken["float32"], GOALS.get(name) if kind in equal and examples is None else None
        met = "" if goal is None else f"{goal:g}: {yes(ratio <= goal)}"
        same = yes(equal[kind]) if kind in equal else ""
        rows.append(
            [
                f"{name}{'' if examples is None else f', {examples} of it'}",
                kind,
                f"{1e3 * seconds:.2f}",
                f"{ratio:.3f}",
                met,
                same,
            ]
        )
    return rows, convolutions


def operation(name: str, calls: dict[str, Callable[[], Any]], rounds: int) -> list[Any]:
    """A row of one operation: milliseconds and ratios to float32."""
    taken = least(calls, rounds)
    return [name, *(f"{1e3 * s:.3f}" for s in taken.values()), f"{taken['ours'] / taken['float32']:.2f}"]


def integers(*shape: int) -> jax.Array:
    """Random codes."""
    return jnp.asarray(np.random.default_rng(0).integers(-127, 128, shape), jnp.int8)


def convolution(shapes: Any, params: Any, rounds: int) -> list[Any]:
    """A row of one convolution."""
    size, kernel, strides = shapes
    x, weights = integers(*size), integers(*kernel)
    plain = {**params, "preferred_element_type": np.dtype(np.float32)}
    floats = [x.astype(jnp.float32), weights.astype(jnp.float32)]
    calls = {
        "XLA's": compiled(partial(integer_convs.bound, params=params), (x, weights))[1],
        "ours": compiled(lambda x, kernel: integer_convs.integers(x, kernel, params, None), (x, weights))[1],
        "float32": compiled(graph.fast_lowering(lambda x, kernel: integer_convs.bound(x, kernel, plain)), floats)[1],
    }
    name = f"{'x'.join(map(str, size))} * {'x'.join(map(str, kernel))}, stride {strides[0]}"
    return operation(name, calls, rounds)


def row_dot(inputs: int, features: int, rounds: int) -> list[Any]:
    """A row of one dot of one row."""
    x, weights = integers(1, inputs), integers(inputs, features)
    numbers = (((1,), (0,)), ((), ()))
    params = {"dimension_numbers": numbers, "precision": None, "preferred_element_type": None}

    def ours(x: Any, weights: Any) -> Any:
        one = jnp.ones((1, 1), jnp.float32)
        left, right = (Quantized(side, one, (), Uniform(8), "float32") for side in (x, weights))
        return dot(left, right, params)

    plain = partial(jax.lax.dot_general, dimension_numbers=numbers, preferred_element_type=jnp.int32)
    floats = [x.astype(jnp.float32), weights.astype(jnp.float32)]
    calls = {"XLA's": compiled(plain, (x, weights))[1], "ours": compiled(ours, (x, weights))[1]}
    calls["float32"] = compiled(partial(jax.lax.dot_general, dimension_numbers=numbers), floats)[1]
    return operation(f"1x{inputs} * {inputs}x{features}", calls, rounds)


def main() -> None:
    """Measure, print and keep the tables."""
    options = arguments(__doc__, out=True, rounds=(15, "turns"))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    said = origin(f"native_int8 --rounds {options.rounds} --out experiments/results/native_int8.md")
    lines = ["# Networks in int8, natively", "", said, ""]
    lines += ["Times in milliseconds of processor time on one core; ratios to float32 under `fast_lowering`.", ""]
    cells: Lines = [("network", "kind", "ms", "of float32", "to reach", "equal")]
    operations: Lines = [("operation", "XLA's int8", "ours", "float32", "ours of float32")]
    for name in NETS:
        for examples in (None, 1):
            rows, found = network(name, options.rounds, examples)
            cells += [tuple(row) for row in rows]
            operations += [tuple(convolution(shapes, params, 5)) for shapes, params in found.items()]
    operations += [tuple(row_dot(*sizes, 9)) for sizes in DOTS]
    lines += [*markdown_table(cells), "", "## Operations", "", *markdown_table(operations)]
    publish(lines, options.out)


if __name__ == "__main__":
    main()
