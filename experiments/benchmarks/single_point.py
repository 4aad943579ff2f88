"""The single-point technique against its papers' figures: layers optimised, a net in units, branches, and a net at the edge.

    python -m experiments.benchmarks.single_point --data DATA --out experiments/results/single_point.md

The net is the papers': 3 convolutions, 3 pools, 1 dense layer. Times are least processor times of rounds in which all take
turns, the plain program twice (A/A); gains are of `fast_lowering`, alone and in units. Memory is what XLA says of arguments,
results and what is beside them; of units, the largest one's. Branches on two devices are timed by the clock, since that is what
they could gain. DATA holds `weights/resnet20_cifar10.npz` (trained by others) and `cifar10_subset`; without it the part at the
edge is left out.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.fast_lowering import compiled, least
from experiments.benchmarks.harness import arguments, origin, publish
from lepton_jax import graph, stages
from lepton_jax.core.timing import interleaved
from lepton_jax.data.cifar10 import load_cifar10_subset, standardize
from lepton_jax.interchange import load_resnet20
from lepton_jax.models import ResNetCifar
from lepton_jax.stages import edge

CLAIMS = {"convolution": "+50 %", "pool": "+30 %", "dense": "+40 %"}
TRUST = "The plain program against itself (A/A) shows how far to trust a row: a gain within that distance is none."
WIDTHS = ((3, 32), (32, 64), (64, 64))
Call = Callable[..., Any]


def convolution(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Convolve 3x3, and a relu."""
    return jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))


def pool(_: Any, x: jax.Array) -> jax.Array:
    """Take the largest of 2x2."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def dense(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Multiply by a matrix."""
    return x.reshape(x.shape[0], -1) @ kernel


def whole(v: Any, x: jax.Array) -> jax.Array:
    """Apply the papers' net."""
    for kernel in v["convolutions"]:
        x = pool(None, convolution(kernel, x))
    return dense(v["dense"], x)


def drawn() -> tuple[Any, jax.Array]:
    """Variables and a batch of 32 images."""
    rng = np.random.default_rng(0)
    kernels = [jnp.asarray(rng.normal(size=(3, 3, *pair)) / 9, jnp.float32) for pair in WIDTHS]
    v = {"convolutions": kernels, "dense": jnp.asarray(rng.normal(size=(1024, 10)) / 32, jnp.float32)}
    return v, jnp.asarray(rng.normal(size=(32, 32, 32, 3)), jnp.float32)


def gain(call: Call, operands: Any, rounds: int) -> tuple[float, float, float]:
    """Milliseconds plain, and how many times faster the mended program is; and of the plain one again (A/A)."""
    kinds = {"plain": call, "mended": graph.fast_lowering(call), "again": call}
    taken = least({name: compiled(one, operands)[1] for name, one in kinds.items()}, rounds)
    return 1e3 * taken["plain"], taken["plain"] / taken["mended"], taken["plain"] / taken["again"]


def layer_rows(rounds: int) -> list[str]:
    """Each layer by itself, forwards and with its derivatives."""
    v, x = drawn()
    rows, cases = [], list[tuple[str, Call, Any, jax.Array]]()
    for kernel in v["convolutions"]:
        cases.append(("convolution", convolution, kernel, x))
        x = convolution(kernel, x)
        cases.append(("pool", pool, jnp.zeros(()), x))
        x = pool(None, x)
    cases.append(("dense", dense, v["dense"], x))
    for kind, call, kernel, given in cases:

        def step(kernel: jax.Array, given: jax.Array, call: Call = call) -> Any:
            return jax.grad(lambda k, g: jnp.sum(jnp.sin(call(k, g))), (0, 1))(kernel, given)

        for what, function in (("forward", call), ("derivatives", step)):
            plain, faster, again = gain(function, (kernel, given), rounds)
            shape = "x".join(map(str, given.shape))
            rows.append(f"| {kind} | {shape} | {what} | {plain:.3f} | {faster - 1:+.0%} | {CLAIMS[kind]} | {again:.3f} |")
    return rows


def unit_rows(rounds: int) -> list[str]:
    """The net whole and in units, plain and mended."""
    v, x = drawn()
    calls, memory = {}, {}
    for label, change in (("plain", lambda one: one), ("mended", graph.fast_lowering)):
        lowered = jax.jit(change(whole)).lower(v, x).compile()
        calls[f"whole, {label}"] = lambda run=lowered: run(v, x)
        memory[f"whole, {label}"] = peak_bytes(lowered)
        for count in (2, 3):
            plan, carried, units = stages.plan(whole, v, x, count=count), (x,), []
            for unit, part in zip(plan.stages(whole), plan.split(v)):
                run = jax.jit(change(unit)).lower(part, *carried).compile()
                units.append((run, part))
                carried = run(part, *carried)
            name = f"{count} units, {label}"
            memory[name] = max(peak_bytes(run) for run, _ in units)
            calls[name] = lambda units=units: chained(units, x)
    calls["whole, plain, again"], memory["whole, plain, again"] = calls["whole, plain"], memory["whole, plain"]
    taken = least(calls, rounds)
    base, most = taken["whole, plain"], memory["whole, plain"]
    less = {name: f"{size / most - 1:+.0%}" if most else "" for name, size in memory.items()}
    return [
        f"| {name} | {1e3 * one:.3f} | {one / base - 1:+.0%} | {memory[name]:,} | {less[name]} |" for name, one in taken.items()
    ]


def peak_bytes(program: Any) -> int:
    """Bytes of a compiled program's arguments, results, and of what it takes beside."""
    found = program.memory_analysis()
    return 0 if found is None else found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def chained(units: list[Any], x: jax.Array) -> Any:
    """Run units one after another."""
    carried: Any = (x,)
    for run, part in units:
        carried = run(part, *carried)
    return carried


def branch_rows(rounds: int) -> list[str]:
    """Four independent branches in one program, and side by side on two devices."""
    rng, devices, rows = np.random.default_rng(1), jax.devices()[:2], []
    towers = {
        "4 towers of 3 convolutions": (convolution, (3, 3, 32, 32), (8, 28, 28, 32)),
        "4 perceptrons of 3 layers": (lambda w, x: jax.nn.relu(x @ w), (512, 512), (64, 512)),
    }
    for name, (layer, shape, size) in towers.items():
        v = [[jnp.asarray(rng.normal(size=shape) / 20, jnp.float32) for _ in range(3)] for _ in range(4)]
        x = jnp.asarray(rng.normal(size=size), jnp.float32)

        def tower(ws: Any, x: jax.Array, layer: Call = layer) -> jax.Array:
            for w in ws:
                x = layer(w, x)
            return x

        run, one = jax.jit(partial(every, tower)), jax.jit(tower)
        placed = [jax.device_put((ws, x), devices[n % len(devices)]) for n, ws in enumerate(v)]
        calls = {
            "whole": partial(run, v, x),
            "devices": partial(on_devices, one, placed),
            "again": partial(run, v, x),
        }
        taken = interleaved(calls, rounds=4 * rounds)
        ratios = [taken["whole"] / taken[other] for other in ("devices", "again")]
        rows.append(f"| {name} | {1e3 * taken['whole']:.2f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x |")
    return rows


def every(tower: Call, v: Any, x: jax.Array) -> list[Any]:
    """Run all branches on the same input."""
    return [tower(ws, x) for ws in v]


def on_devices(tower: Call, placed: list[Any]) -> list[Any]:
    """Run each branch where its arrays are."""
    return [tower(*given) for given in placed]


def edge_rows(data: Path, images: int) -> list[str]:
    """Accuracy of a published ResNet-20 against bytes on the wire, over cuts and bits."""
    v, found = load_resnet20(data / "weights" / "resnet20_cifar10.npz"), load_cifar10_subset(data / "cifar10_subset")
    net = ResNetCifar(depth=20, features=16, shortcut="pad")
    x, labels = jnp.asarray(standardize(found.test.images[:images])), found.test.labels[:images]
    known = jnp.asarray(standardize(found.train.images[:200]))
    right = float((np.asarray(jax.jit(net.apply)(v, x)).argmax(1) == labels).mean())
    rows = [f"| none: float | | {4 * 3072:,} | | | {100 * right:.1f} |"]
    plan = stages.plan(net.apply, v, x[:32], count=5)
    for place in range(1, len(plan)):
        for bits in (2, 3, 4):
            cut = edge.cut_at(plan, place, net.apply, v, known, wire=edge.Wire(bits=bits))
            sent = cut.send(x)
            values = [np.asarray(value) for value in cut.edge(x)]
            floor = sum(edge.entropy_bytes(coder.codes(value)) for coder, value in zip(cut.coders, values)) / images
            raw, single = sum(value.nbytes for value in values) // images, sum(map(len, cut.send(x[:1])))
            size = sum(map(len, sent)) / images
            right = float((np.asarray(cut.receive(sent)).argmax(1) == labels).mean())
            share = sum(facts.macs for facts in plan.stages_of[:place]) / sum(facts.macs for facts in plan.stages_of)
            rows.append(
                f"| {place}: {share:.0%} of the work | {bits} | {raw:,} | {size:,.0f} ({single:,} alone) | "
                f"{size / floor:.2f} | {100 * right:.1f} |"
            )
    return rows


def main() -> None:
    """Measure all parts."""
    given = arguments(
        __doc__,
        out=True,
        rounds=(5, "of every timing"),
        data=("", "the folder of weights and images"),
        images=(1000, "to test"),
    )
    lines = [
        "# Single point",
        "",
        origin("single_point --rounds 12 --data DATA"),
        "",
        TRUST,
        "",
        "## Layers, before and after `fast_lowering`",
        "",
    ]
    lines += [
        "| layer | input | what | plain, ms | gain | claimed | A/A |",
        "|---|---|---|---|---|---|---|",
        *layer_rows(given.rounds),
    ]
    lines += ["", "## Whole and in units (claimed: time -20 %, memory -30 %)", ""]
    lines += ["| program | ms | time | bytes | memory |", "|---|---|---|---|---|", *unit_rows(given.rounds)]
    lines += ["", "## Independent branches on two devices of this machine, by the clock", ""]
    lines += ["| branches | whole, ms | gain on devices | A/A |", "|---|---|---|---|", *branch_rows(given.rounds)]
    if given.data:
        lines += ["", f"## ResNet-20 at the edge: {given.images} CIFAR-10 test images", ""]
        lines += [
            "| cut after | bits | bytes raw | bytes coded, an image | of the entropy | right, % |",
            "|---|---|---|---|---|---|",
        ]
        lines += edge_rows(Path(given.data), given.images)
    publish(lines, given.out)


if __name__ == "__main__":
    main()
