"""Bytes of weights in every number format: in a file and in memory, against float32.

    python -m experiments.benchmarks.quantized_size                  # a normal matrix of 1024 x 1024
    python -m experiments.benchmarks.quantized_size WEIGHTS.npz      # and the weights of a ResNet-20, kernels in OIHW

Columns: ``file``: all bytes of the `.lepton` file but the program's (codes, scales, zero points, manifest, checksums);
``memory``: all arrays of the packed leaves; ``smaller``: float32 bytes over these; ``error``: mean squared error over the mean
square of the weights. What a format does not fit stays float32 and counts as such. With Qwix installed (the bench extra), its
arrays in memory stand beside.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.tables import provenance, revision
from lepton_jax import account, save
from lepton_jax.core import paths
from lepton_jax.core.files import write_text
from lepton_jax.core.packed import unpack
from lepton_jax.core.typing import PyTree
from lepton_jax.formats import layout
from lepton_jax.interchange import load_resnet20
from lepton_jax.quantization import Binary, Float8, Format, NormalFloat4, Ternary, Uniform, mxfp4, mxfp8, quantize

FORMATS: tuple[Format, ...] = (
    Uniform(16, channel_axis=-1),
    Uniform(8, channel_axis=-1),
    Uniform(8, False, channel_axis=-1),
    Uniform(8, group_size=32, scale_dtype="float16"),
    *(Uniform(bits, channel_axis=-1) for bits in (6, 4, 3, 2)),
    *(Uniform(bits, group_size=32, scale_dtype="float16") for bits in (4, 3, 2)),
    Uniform(4, False, group_size=32, scale_dtype="float16"),
    Float8(channel_axis=-1),
    Float8("float8_e5m2", channel_axis=-1),
    NormalFloat4(scale_dtype="float16"),
    mxfp4(),
    mxfp8(),
    Ternary(channel_axis=-1),
    Binary(channel_axis=-1),
)


class Row(NamedTuple):
    """Bytes of a tree in one format.

    Attributes:
      name: the format.
      file: bytes of its file without the program.
      memory: bytes of its arrays.
      error: relative squared error of the weights that were quantized.
    """

    name: str
    file: int
    memory: int
    error: float


def nbytes(tree: PyTree) -> int:
    """Bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def quantized(tree: PyTree, fmt: Format) -> PyTree:
    """Quantize the matrices that the format fits."""
    leaves = paths.select(tree, paths.matrices)
    fits = {path: leaf for path, leaf in leaves.items() if layout.problem(leaf.shape, fmt) is None}
    return paths.replace(tree, jax.jit(lambda chosen: {path: quantize(leaf, fmt) for path, leaf in chosen.items()})(fits))


def measure(tree: PyTree, fmt: Format | None, folder: Path) -> Row:
    """Write a tree in one format (None: as it is) and count."""
    packed = tree if fmt is None else quantized(tree, fmt)
    save(folder / "m.lepton", lambda variables, x: x, packed, jnp.ones((1, 1)))
    found = account(folder / "m.lepton")
    seen = paths.select(unpack(packed), paths.matrices)
    pairs = [
        (np.asarray(leaf, np.float64), np.asarray(seen[path])) for path, leaf in paths.select(tree, paths.matrices).items()
    ]
    error = sum(np.sum((x - y) ** 2) for x, y in pairs) / sum(np.sum(x**2) for x, _ in pairs)
    return Row("float32" if fmt is None else name_of(fmt), found.total - found.program, nbytes(packed), float(error))


def name_of(fmt: Format) -> str:
    """The format's name and granularity."""
    if fmt.group_size is not None:
        return f"{fmt.name}, groups of {fmt.group_size} ({fmt.scale_dtype})"
    return fmt.name if fmt.channel_axis is None else f"{fmt.name}, channels"


def qwix_bytes(tree: PyTree) -> Iterator[tuple[str, int]]:
    """Bytes in memory of the same weights in Qwix's arrays, in what fits them all; nothing if it is not installed."""
    try:
        qarray: Any = importlib.import_module("qwix._src.core.qarray")
    except ImportError:
        return
    for name, qtype, tiles in (("int8, channels", "int8", None), ("int4, groups of 32", "int4", {0: 32})):
        leaves = paths.select(tree, paths.matrices).values()
        if any(leaf.shape[axis] % size for leaf in leaves for axis, size in (tiles or {}).items()):
            continue  # its tiles must divide the axis
        hows = [qarray.HowToQuantize(qtype=qtype, channelwise_axes=(leaf.ndim - 1,), tiled_axes=tiles or {}) for leaf in leaves]
        yield name, sum(nbytes(qarray.quantize(leaf, how)) for leaf, how in zip(leaves, hows))


def report(title: str, tree: PyTree, formats: tuple[Format, ...]) -> list[str]:
    """Measure all formats and return the table's lines."""
    dense = nbytes(tree)
    lines = [title, f"{'format':42s} {'file':>10s} {'smaller':>8s} {'memory':>10s} {'smaller':>8s} {'error':>10s}"]
    with tempfile.TemporaryDirectory() as folder:
        for fmt in (None, *formats):
            row = measure(tree, fmt, Path(folder))
            ratios = (f"{row.file:10d} {dense / row.file:7.2f}x", f"{row.memory:10d} {dense / row.memory:7.2f}x")
            lines.append(f"{row.name:42s} {ratios[0]} {ratios[1]} {row.error:10.3g}")
    lines += [f"{'qwix ' + name:42s} {'':19s} {total:10d} {dense / total:7.2f}x" for name, total in qwix_bytes(tree)]
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", type=Path, help="weights of a ResNet-20 for CIFAR-10, .npz")
    parser.add_argument("--side", type=int, default=1024, help="of the random matrix")
    parser.add_argument("--only", type=int, default=len(FORMATS), help="so many formats")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    arguments = parser.parse_args()
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(arguments.side,) * 2), jnp.float32)
    formats = FORMATS[: arguments.only]
    lines = report(f"normal matrix, {arguments.side} x {arguments.side}", {"w": matrix}, formats)
    if arguments.weights is not None:
        tree = jax.tree.map(jnp.asarray, load_resnet20(arguments.weights))
        lines += ["", *report("ResNet-20", tree, formats)]
    print("\n".join(lines))
    if arguments.out:
        origin = provenance({revision()}, "benchmarks.quantized_size")
        write_text(arguments.out, "\n".join(["# Bytes of weights in every format", "", "```", *lines, "```", "", origin, ""]))


if __name__ == "__main__":
    main()
