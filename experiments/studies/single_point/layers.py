"""Layers and units of the papers' net, before and after their graphs are optimised, on XLA and on ONNX Runtime."""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lepton_jax import Model, deploy, graph, stages
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.deploy import Gate
from lepton_jax.models import CNN

Call = Callable[..., Any]
Piece = tuple[Call, PyTree, tuple[Any, ...]]
"""A function, its variables, its inputs."""
ENGINES = ("XLA", "ONNX Runtime")
CONVOLUTION, POOL, DENSE = "convolution", "pool", "dense"


class Convolution(nn.Module):
    """A convolution of 3 x 3, batch norm, a relu, as in `CNN`."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``[B, H, W, width]``."""
        x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-5)(x))


def pool(_: PyTree, x: Array) -> Array:
    """Take the largest of 2 x 2, as in `CNN`."""
    return nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")


def dense(kernel: Array, x: Array) -> Array:
    """Multiply by a matrix."""
    return x.reshape(x.shape[0], -1) @ kernel


def images(seed: int, count: int) -> Array:
    """Noise of the shape of the papers' images, as far as times go."""
    return jnp.asarray(np.random.default_rng(seed).random((count, 28, 28, 1)), jnp.float32)


def drawn(net: Any, seed: int, x: Array) -> PyTree:
    """Variables of a module, its statistics, scales and biases different by channel, as after training."""
    leaves, tree = jax.tree.flatten(jax.jit(net.init)(jax.random.key(seed), x))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [
        leaf + 0.1 * jnp.abs(jax.random.normal(k, leaf.shape)) if leaf.ndim == 1 else leaf for k, leaf in zip(keys, leaves)
    ]
    return jax.tree.unflatten(tree, moved)


def layers(net: CNN, seed: int, count: int) -> dict[str, Piece]:
    """Each layer of the net by itself, at what the layers before it give."""
    x, found = images(seed, count), dict[str, Piece]()
    for number, width in enumerate(net.features, 1):
        module = Convolution(width)
        variables = drawn(module, seed, x)
        found[f"{CONVOLUTION} {number}"] = (module.apply, variables, (x,))
        x = jax.jit(module.apply)(variables, x)
        found[f"{POOL} {number}"] = (pool, {}, (x,))
        x = pool({}, x)
    features = int(np.prod(x.shape[1:]))
    kernel = jax.random.normal(jax.random.key(seed), (features, net.classes)) / features**0.5
    found[DENSE] = (dense, kernel, (x,))
    return found


def derivatives(piece: Piece) -> Piece:
    """The derivatives of a smooth function of a piece's output, by its variables and its inputs."""
    call, variables, inputs = piece

    def step(variables: PyTree, *inputs: Any) -> Any:
        return jax.grad(lambda v, given: jnp.sum(jnp.sin(call(v, *given))), (0, 1))(variables, inputs)

    return step, variables, inputs


def units(net: CNN, seed: int, size: int, count: int) -> list[Piece]:
    """The net in units, each at what the ones before it give."""
    x = images(seed, size)
    variables = drawn(net, seed, x)
    plan, carried, found = stages.plan(net.apply, variables, x, count=count), (x,), list[Piece]()
    for unit, part in zip(plan.stages(net.apply), plan.split(variables)):
        found.append((unit, part, carried))
        carried = jax.jit(unit)(part, *carried)
    return found


def folded(piece: Piece) -> Piece:
    """A piece with its batch norms folded."""
    call, variables, inputs = piece
    return (*graph.fold_batch_norm(call, variables, *inputs), inputs)


def lowered(piece: Piece) -> Piece:
    """A piece whose slow operations are done otherwise."""
    call, variables, inputs = piece
    return graph.fast_lowering(call), variables, inputs


def optimised(piece: Piece) -> Piece:
    """A piece after both."""
    return lowered(folded(piece))


def compiled(piece: Piece) -> Any:
    """XLA's program of a piece, which takes variables and inputs."""
    call, variables, inputs = piece
    return jax.jit(call).lower(variables, *inputs).compile()


def peak_bytes(program: Any) -> int:
    """Bytes of a compiled program's arguments, results, and of what it takes beside."""
    found = program.memory_analysis()
    return 0 if found is None else found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def on_xla(pieces: Sequence[Piece]) -> tuple[Callable[[], Any], int]:
    """Pieces one behind another as a call, and the bytes of the largest one's program."""
    made = [(compiled(piece), piece[1]) for piece in pieces]
    first = pieces[0][2]

    def run() -> Any:
        carried: Any = first
        for program, variables in made:
            carried = program(variables, *carried)
        return carried

    return run, max(peak_bytes(program) for program, _ in made)


def on_engine(pieces: Sequence[Piece], *, fold: bool, optimized: bool) -> Callable[[], Any]:
    """Pieces one behind another as files that ONNX Runtime runs, with one thread."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (call, variables, inputs) in enumerate(pieces):
            path = Path(folder) / f"{number}.onnx"
            deploy.save(Model(call, variables, inputs), path, fold=fold)
            runs.append(deploy.runner(path, optimized=optimized))
    first = [np.asarray(one) for one in pieces[0][2]]

    def run() -> Any:
        carried = first
        for one in runs:
            carried = one(*carried)
        return carried

    return run


def is_engine_there() -> bool:
    """Whether ONNX Runtime and what writes its files are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def ways(engine: str, pieces: Sequence[Piece], *, eval_mode: bool) -> dict[str, tuple[Callable[[], Any], int]]:
    """Calls of pieces before and after optimisation, each with the bytes of its largest program, 0 if unknown."""
    if engine == "XLA":
        found = {"before": on_xla(pieces)}
        if eval_mode:
            found["halfway"] = on_xla([*map(folded, pieces)])
        found["after"] = on_xla([*map(optimised if eval_mode else lowered, pieces)])
        return found
    made = {"before": (False, False), "halfway": (False, True), "after": (True, True)}
    return {name: (on_engine(pieces, fold=fold, optimized=full), 0) for name, (fold, full) in made.items()}


def gated(calls: Mapping[str, Callable[[], Any]], rounds: int, tries: int) -> Gate:
    """Measure by `deploy.gate`, again while the first is more than 5 % apart from itself; the try that is least so counts."""
    best = deploy.gate(calls, rounds)
    for _ in range(tries - 1):
        if best.is_trusted:
            break
        best = min(best, deploy.gate(calls, rounds), key=lambda one: abs(one.again[0] - 1))
    return best


def gains(found: Gate, names: Sequence[str]) -> dict[str, float]:
    """What results hold of a gate: the first's milliseconds, the others' ratios with their intervals, A/A."""
    first = next(iter(found.ratios))
    said = {"before_ms": 1e3 * found.seconds[first], "again": found.again[0]}
    for name in names:
        if name in found.ratios:
            ratio, low, high = found.ratios[name]
            said |= {f"{name}_ratio": ratio, f"{name}_low": low, f"{name}_high": high}
    return said


def measure_layer(
    net: CNN, seed: int, count: int, layer: str, way: str, engine: str, rounds: int, tries: int
) -> dict[str, float]:
    """Times of one layer; see `gains`."""
    piece = layers(net, seed, count)[layer]
    piece = piece if way == "forward" else derivatives(piece)
    calls = {name: run for name, (run, _) in ways(engine, [piece], eval_mode=way == "forward").items()}
    return gains(gated(calls, rounds, tries), ("halfway", "after"))


def measure_units(
    net: CNN, seed: int, size: int, counts: Sequence[int], engine: str, rounds: int, tries: int
) -> list[dict[str, float]]:
    """Times and bytes of the net in so many units, all against the whole one before optimisation."""
    calls, sizes = dict[str, Callable[[], Any]](), dict[str, int]()
    for count in counts:
        pieces = units(net, seed, size, count)
        for name, (run, most) in ways(engine, pieces, eval_mode=True).items():
            calls[f"{count} {name}"], sizes[f"{count} {name}"] = run, most
    found, first = gated(calls, rounds, tries), f"{counts[0]} before"
    said = []
    for count in counts:
        own: dict[str, float] = {"again": found.again[0]}
        for name in ("before", "halfway", "after"):
            label = f"{count} {name}"
            if label in calls:
                own |= {f"{name}_ms": 1e3 * found.seconds[label], f"{name}_time": 1 / found.ratios[label][0]}
                own |= {f"{name}_bytes": sizes[label], f"{name}_memory": sizes[label] / sizes[first]} if sizes[first] else {}
        said.append(own)
    return said
