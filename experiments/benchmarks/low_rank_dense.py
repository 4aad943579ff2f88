"""Factors against dense weights: forward times, interleaved, and bytes in memory and in a file.

    python -m experiments.benchmarks.low_rank_dense --out experiments/results/low_rank_dense.md

First a dense layer of 1024 x 4096 at a quarter of the rank (256 of 1024): many times in one program, as layers of their own in
one program, and alone, where the cost of a call counts. Then every factorization of a convolution of a
residual network, at about the parameters asked for. Every ratio is printed, good or bad; errors are of random weights, which no
factorization suits: they say that a method does what it does, not what a trained network loses.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.harness import arguments, publish
from lepton_jax import save, unpack
from lepton_jax.core.timing import interleaved
from lepton_jax.lowrank import CpAls, Method, Rank, SpatialSvd, Svd, TrainSvd, Tucker2
from lepton_jax.native import packed

REPEATS, LAYERS = 100, 8
READING = (
    "    python -m experiments.benchmarks.low_rank_dense --out experiments/results/low_rank_dense.md",
    "",
    "A quarter of the rank is 3.2 times fewer bytes and multiplications. Where the same layer runs again and again, as in a",
    "recurrent network or a server, the factors (5 MB) are nearer in the cache than the dense weights (17 MB), and the gain is",
    "larger. Where every layer is read from memory anew, a single row gains less: products of one row are bound by memory, and",
    "the thin ones keep fewer cores reading. A call by itself adds the same dispatch to both.",
)
Apply = Callable[[Any, jax.Array], jax.Array]


def dense_layer(v: Any, x: jax.Array) -> jax.Array:
    """A matrix product."""
    return x @ v["w"]


def convolution(v: Any, x: jax.Array) -> jax.Array:
    """A convolution as residual networks have them."""
    return jax.lax.conv_general_dilated(x, v["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def times(apply: Apply, leaves: Mapping[str, Any], x: jax.Array, rounds: int) -> dict[str, float]:
    """Median seconds of one call with each leaf."""
    runs = {}
    for name, leaf in leaves.items():
        runs[name] = partial(jax.jit(packed(apply) if name != "dense" else apply), {"w": leaf}, x)
    return interleaved(runs, rounds=rounds, warmup=5)


def file_bytes(apply: Apply, leaf: Any, x: jax.Array) -> int:
    """The size of a file that holds the layer."""
    with tempfile.TemporaryDirectory() as folder:
        save(f"{folder}/layer.lepton", apply, {"w": leaf}, x, native=True)
        return os.path.getsize(f"{folder}/layer.lepton")


def memory(leaf: Any) -> int:
    """Bytes of all its arrays."""
    return sum(part.nbytes for part in jax.tree.leaves(leaf))


def largest_rank(method: Method, shape: tuple[int, ...], share: float) -> Rank:
    """The highest rank, the same share of each highest one, whose parameters are no more than a share of the dense ones."""
    highest = method.max_rank(shape)
    tops = (highest,) if isinstance(highest, int) else highest
    found: Rank = 1
    for percent in range(1, 101):
        ranks = tuple(max(1, top * percent // 100) for top in tops)
        rank = ranks[0] if isinstance(highest, int) else ranks
        if method.parameters(shape, rank) <= share * np.prod(shape):
            found = rank
    return found


def repeated(v: Any, x: jax.Array) -> jax.Array:
    """The layer many times in one program: its weights stay in the cache, and a call's own cost is shared."""
    for at in range(REPEATS):
        x = 0.5 * dense_layer(v, x)[:, at : at + x.shape[1]] + x
    return x


def layers(v: Any, x: jax.Array) -> jax.Array:
    """Layers with weights of their own in one program, more than a cache holds: each is read from memory."""
    for weight in v["w"]:
        x = 0.5 * (x @ weight).reshape(x.shape[0], -1, x.shape[1]).sum(1)
    return x


def measure_dense(shape: tuple[int, int], rank: int, batches: list[int], rounds: int) -> list[str]:
    """Lines of the table of the dense layer."""
    draw = np.random.default_rng(0).standard_normal
    weight = jnp.asarray(draw(shape) / np.sqrt(shape[0]), jnp.float32)
    leaves = {"dense": weight, "rank": Svd().factorize(weight, rank)}
    # As many numbers as the layer's own, changed a little, so that they are other arrays.
    stacks = {
        name: [jax.tree.map(partial(jnp.multiply, 1 + at / 100), leaf) for at in range(LAYERS)] for name, leaf in leaves.items()
    }
    example = jnp.ones((1, shape[0]))
    lines = [
        f"Dense {shape[0]} x {shape[1]}, rank {rank} of {min(shape)}; milliseconds for one layer",
        "",
        "| | dense | factors | ratio |",
        "|---|---:|---:|---:|",
    ]
    kinds: tuple[tuple[str, Apply, Mapping[str, Any], int], ...] = (
        (f"{REPEATS} times in one program", repeated, leaves, REPEATS),
        (f"{LAYERS} layers in one program, from memory", layers, stacks, LAYERS),
        ("alone, a call each", dense_layer, leaves, 1),
    )
    for text, apply, given, count in kinds:
        for batch in batches:
            x = jnp.asarray(draw((batch, shape[0])), jnp.float32)
            taken = times(apply, given, x, max(12, rounds // count))
            dense, factors = (1e3 * taken[name] / count for name in ("dense", "rank"))
            lines.append(f"| {text}, batch {batch} | {dense:.3f} | {factors:.3f} | {dense / factors:.2f}x |")
    for text, measure in (("bytes in memory", memory), ("bytes of the file", partial(file_bytes, dense_layer, x=example))):
        stored = [measure(leaf) for leaf in leaves.values()]
        lines.append(f"| {text} | {stored[0]:,} | {stored[1]:,} | {stored[0] / stored[1]:.2f}x |")
    return lines


def measure_convolution(channels: int, size: int, batch: int, share: float, rounds: int) -> list[str]:
    """Lines of the table of one convolution."""
    shape = (3, 3, channels, channels)
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal(shape) / np.sqrt(9 * channels), jnp.float32)
    methods: list[Method] = [Svd(), SpatialSvd(), Tucker2(), CpAls(iterations=10), TrainSvd()]
    ranks = {type(method).__name__: largest_rank(method, shape, share) for method in methods}
    leaves = {"dense": kernel} | {
        type(method).__name__: method.factorize(kernel, ranks[type(method).__name__]) for method in methods
    }
    x = jnp.asarray(np.random.default_rng(1).standard_normal((batch, size, size, channels)), jnp.float32)
    taken = times(convolution, leaves, x, rounds)
    lines = [
        f"Convolution 3 x 3, {channels} to {channels} channels, {size} x {size} positions, batch {batch}, at most "
        f"{share:.0%} of the parameters; dense {1e3 * taken['dense']:.3f} ms",
        "",
        "| method | rank | parameters | ms | faster | fewer bytes | error of random weights |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, rank in ranks.items():
        leaf = leaves[name]
        used = sum(part.size for part in jax.tree.leaves(leaf))
        error = float(jnp.linalg.norm(unpack(leaf) - kernel) / jnp.linalg.norm(kernel))
        text = rank if isinstance(rank, int) else ", ".join(map(str, rank))
        lines.append(
            f"| {name} | {text} | {used:,} | {1e3 * taken[name]:.3f} | {taken['dense'] / taken[name]:.2f}x | "
            f"{memory(kernel) / memory(leaf):.2f}x | {error:.3f} |"
        )
    return lines


def main() -> None:
    """Measure, print, and write if asked."""
    args = arguments(
        __doc__,
        out=True,
        shape=([1024, 4096], "of the dense layer"),
        rank=(256, "of its factors"),
        batches=([1, 32], "sizes of a batch"),
        channels=([64, 256], "of the convolutions"),
        share=(0.25, "of the dense parameters, for the convolutions"),
        rounds=(60, "calls of each; medians are over these"),
    )
    engine = f"JAX {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores, {platform.machine()}, float32"
    lines = ["# Low rank against dense", "", f"Medians of {args.rounds} interleaved calls. {engine}.", "", *READING, ""]
    lines += measure_dense(tuple(args.shape), args.rank, args.batches, args.rounds)
    for channels in args.channels:
        size = 2048 // channels if channels < 256 else 8
        lines += ["", *measure_convolution(channels, min(size, 32), 8, args.share, args.rounds)]
    publish(lines, args.out)


if __name__ == "__main__":
    main()
