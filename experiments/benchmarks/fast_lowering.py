"""What `fast_lowering` gains: whole networks and single operations, forward and in a training step, against plain jit.

    python -m experiments.benchmarks.fast_lowering --out experiments/results/fast_lowering.md

One core, processor time, least of rounds in which all take turns; the plain program stands there twice (A/A). `compile` is the
processor time of compiling, plain and mended. onnxruntime, where it is installed, runs the same architecture with batch norms
folded, in the same rounds. `largest difference` is of any output, over that output's largest value (or, if that is more, a
millionth of all outputs' largest: where the true derivative is zero, as of a bias before a batch norm, it says nothing).
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.harness import arguments, installed, origin, publish, yes
from experiments.benchmarks.lowering_nets import NETS, made
from experiments.benchmarks.lowering_onnx import WRITERS, session
from lepton_jax import graph
from lepton_jax.graph import _compat
from lepton_jax.graph.lowering import DEFAULT
from lepton_jax.graph.lowering.choose import site_of

GOALS = {
    ("ResNet-18, 64 px, batch 32", "forward"): 14.0,
    ("ResNet-18, 64 px, batch 32", "step"): 7.0,
    ("MobileNet, 64 px, batch 32", "forward"): 3.8,
    ("MobileNet, 64 px, batch 32", "step"): 4.0,
    ("ConvNeXt, 64 px, batch 16", "forward"): 4.0,
    ("ConvNeXt, 64 px, batch 16", "step"): 3.0,
    ("audio, 4096 samples, batch 8", "forward"): 5.0,
    ("audio, 4096 samples, batch 8", "step"): 3.5,
}
"""How many times faster; every other network at least 0.97 times."""


def compiled(function: Callable[..., Any], operands: Any) -> tuple[float, Callable[[], Any]]:
    """The processor seconds of compiling, tracing included, and a call."""
    start = time.process_time()
    run = jax.jit(function).lower(*operands).compile()
    return time.process_time() - start, partial(run, *operands)


def least(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least processor seconds of each call, in turns, in every second round in the opposite order."""
    times: dict[str, float] = {name: float("inf") for name in calls}
    repeats = {}
    for name, call in calls.items():
        start = time.process_time()
        jax.block_until_ready(call())
        repeats[name] = max(1, min(20, int(0.02 / max(time.process_time() - start, 1e-5))))
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            start = time.process_time()
            for _ in range(repeats[name]):
                out = calls[name]()
            jax.block_until_ready(out)
            times[name] = min(times[name], (time.process_time() - start) / repeats[name])
    return times


def difference(ours: Any, theirs: Any) -> float:
    """The largest of any output, over that output's largest value."""
    leaves = [(np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)) if np.size(a)]
    top = max(float(np.abs(b).max()) for _, b in leaves)
    return max(float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-6 * top, 1e-30) for a, b in leaves)


def net_row(name: str, kind: str, rounds: int) -> str:
    """Measure one network."""
    variables, x, forward, step = made(name)
    function = forward if kind == "forward" else step
    calls, compiling = {}, {}
    for label, one in {"plain": function, "mended": graph.fast_lowering(function), "plain again": function}.items():
        compiling[label], calls[label] = compiled(one, (variables, x))
    error = difference(calls["mended"](), calls["plain"]())
    if kind == "forward" and name in WRITERS and installed("onnxruntime") and installed("onnx"):
        calls["onnxruntime"] = session(name, x.shape)
    taken = least(calls, rounds)
    fired = len(graph.explain_lowering(function, variables, x).changed)
    gain, goal = taken["plain"] / taken["mended"], GOALS.get((name, kind), 0.97)
    engine = f"{1e3 * taken['onnxruntime']:.1f}" if "onnxruntime" in taken else ""
    compile_time = f"{compiling['plain']:.1f} -> {compiling['mended']:.1f} s ({compiling['mended'] / compiling['plain']:.2f}x)"
    cells = [name, kind, fired, f"{1e3 * taken['plain']:.2f}", f"{1e3 * taken['mended']:.2f}", f"{gain:.2f}x"]
    cells += [
        f"{goal:g}x: {yes(gain >= goal)}",
        f"{taken['plain'] / taken['plain again']:.3f}",
        engine,
        compile_time,
        f"{error:.0e}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def operation_rows(names: list[str], rounds: int) -> list[str]:
    """Measure every distinct operation that is done otherwise, of the networks' training steps."""
    jax.clear_caches()
    rules = {rule.name: rule for rule in DEFAULT}
    seen: dict[Any, str] = {}
    direct: dict[Any, Callable[..., Any]] = {}
    for name in names:
        variables, x, _, step = made(name)
        for one in graph.explain_lowering(step, variables, x).changed:
            seen.setdefault(one.site, one.form)
        for eqn in graph.trace(step, variables, x).equations():
            if (site := site_of(eqn)) in seen:
                direct[site] = partial(_compat.bind, eqn.raw)
    rows = []
    for site, form in seen.items():
        rng = np.random.default_rng(0)
        operands = [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in site.shapes]
        calls = {"plain": compiled(lambda *xs, bind=direct[site]: bind(xs)[0], operands)[1]}
        calls["mended"] = compiled(partial(rules[form].form, site), operands)[1]
        error = difference(calls["mended"](), calls["plain"]())
        taken = least(calls, rounds)
        shapes = " * ".join("x".join(map(str, shape)) for shape in site.shapes)
        gain = taken["plain"] / taken["mended"]
        rows.append(
            (
                form,
                f"| {form} | {shapes} -> {'x'.join(map(str, site.result))} | {1e3 * taken['plain']:.3f} "
                f"| {1e3 * taken['mended']:.3f} | {gain:.1f}x | {error:.0e} |",
            )
        )
    order = list(rules)
    return [row for _, row in sorted(rows, key=lambda pair: order.index(pair[0]))]


def main() -> None:
    """Measure, print and keep the tables."""
    options = arguments(__doc__, out=True, only=("", "the beginning of a network's name"), rounds=(7, "turns"))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    names = [name for name in NETS if name.startswith(options.only)]
    lines = [
        "# Fast lowering",
        "",
        origin(f"fast_lowering --rounds {options.rounds} --out experiments/results/fast_lowering.md"),
        "",
    ]
    lines += ["Times in milliseconds of processor time on one core.", "", "## Networks", ""]
    head = ["network", "what", "operations mended", "plain", "mended", "gain", "goal met", "A/A", "onnxruntime", "compile"]
    head.append("largest difference")
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in names:
        for kind in ("forward", "step"):
            lines.append(net_row(name, kind, options.rounds))
            print(lines[-1], flush=True)
    lines += ["", "## Operations", "", "All distinct ones that are done otherwise in these networks' training steps.", ""]
    lines += ["| form | shapes | plain | mended | gain | largest difference |", "|---|---|---|---|---|---|"]
    lines += operation_rows(names, 3)
    publish(lines, options.out)


if __name__ == "__main__":
    main()
