"""Bytes of pruned and clustered weights: our coders against the paper's and against general compressors.

    python -m experiments.benchmarks.artifact_size            # synthetic weights in the shapes of every reference model
    python -m experiments.benchmarks.artifact_size RUN_FOLDER  # the `.lepton` files of a run

Synthetic weights: kernels keep the shares of 'Deep compression', rows and columns have unlike densities; the first layer of
LeNet-300-100 looks at spots of the image and a third of its units is dead. Columns, in bytes:

* ``ours``: all tensors as they lie in a file (tables, codebooks, biases and scales too).
* ``paper``: Han 2016's coding of the same weights: gaps of 5 bits (8 in convolutions) with padding zeros, gaps and values each
  Huffman-coded, the Huffman tables not counted; tables of values and scales at 4 bytes an
  entry.
* ``zstd-19``, ``xz -9e``: of the packed leaves as they are in memory, which hold 2 to 8 bits a weight.
* ``entropy``: of the codes without contexts, see `lepton_jax.leaves.figures.Figures`.

For a file there is also ``file``: all its bytes but the program's, ``whole``: all its bytes, both as the file was written, and
``coded today``: all its bytes but the program's if it were written now.
"""

from __future__ import annotations

import argparse
import heapq
import lzma
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import zstandard

from lepton_jax import load
from lepton_jax.artifact import leaves
from lepton_jax.coding.bit_packing import pack_bits
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader
from lepton_jax.core.packed import is_packed
from lepton_jax.core.typing import PyTree
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.figures import figures
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.models import CNN, LeNet5, LeNet300, ResNet, ResNetCifar, Transformer
from lepton_jax.quantization import Uniform, quantize

COLUMNS = ("ours", "paper", "zstd-19", "xz -9e", "entropy")


def huffman_bits(stream: np.ndarray) -> int:
    """Total bits of a stream under its own Huffman code, the table left out."""
    heap = sorted(np.unique(stream, return_counts=True)[1].tolist())
    total = heap[0] if len(heap) == 1 else 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


def paper_bytes(dense: np.ndarray) -> float:
    """Bytes of Han 2016's coding of an array with few distinct values: gaps with padding zeros, then Huffman codes of both."""
    flat = dense.reshape(-1)
    longest = 2 ** (8 if dense.ndim > 2 else 5)
    gaps = np.diff(np.flatnonzero(flat), prepend=-1) - 1
    padding = gaps // longest
    all_gaps = np.concatenate([gaps % longest, np.full(int(padding.sum()), longest - 1)])
    values = np.concatenate([flat[flat != 0], np.zeros(int(padding.sum()), flat.dtype)])
    return (huffman_bits(all_gaps) + huffman_bits(values)) / 8


def paper_leaf(leaf: Any) -> float:
    """The paper's bytes of a leaf: coded as above, with four bytes for each entry of its table or for its scale."""
    if not is_packed(leaf):
        return min(np.asarray(leaf).nbytes, figures(leaf).packed_bytes)
    dense = np.asarray(leaf.unpack()).astype(np.float32)
    tables = sum(np.asarray(child).size for child in jax.tree.leaves(leaf)[1:])
    return paper_bytes(dense) + 4 * tables


def general_bytes(tree: PyTree) -> tuple[int, int]:
    """Bytes of the packed leaves under zstd and xz."""
    data = b"".join(np.asarray(array).tobytes() for array in jax.tree.leaves(tree))
    return len(zstandard.ZstdCompressor(19).compress(data)), len(
        lzma.compress(data, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
    )


def coded_leaves(tree: PyTree) -> Iterator[Any]:
    """The leaves as a file stores them: those of a factored one apart."""
    for leaf in jax.tree.leaves(tree, is_leaf=is_packed):
        if isinstance(leaf, LowRank):
            yield from coded_leaves((leaf.u, leaf.v))
        else:
            yield leaf


def row(name: str, tree: PyTree) -> dict[str, float]:
    """Print one model's bytes and processor times, and return its bytes by column."""
    hints, again, total, ours, seconds = Hints(), Hints(), [], 0, [0.0, 0.0]
    for leaf in coded_leaves(tree):
        start = time.process_time()
        spec, data = leaves.encode(leaf, hints)
        encoded = time.process_time()
        back = leaves.decode(Reader(data), spec, 1 << 30, again)
        seconds = [seconds[0] + encoded - start, seconds[1] + time.process_time() - encoded]
        if not all(map(np.array_equal, jax.tree.leaves(back), jax.tree.leaves(leaf))):
            raise AssertionError(f"{name}: a leaf of {spec.text} came back different")
        ours += len(data)
        total.append((figures(leaf), leaf.size))
    counted = [figure for figure, _ in total]
    cells = dict(zip(COLUMNS, (ours, sum(map(paper_leaf, coded_leaves(tree))), *general_bytes(tree), 0.0)))
    cells["entropy"] = sum(figure.entropy_bytes for figure in counted)
    shares = "".join(f"{ours / cells[column]:9.3f}" for column in COLUMNS[1:4])
    numbers = "".join(f"{cells[column]:10.0f}" for column in COLUMNS)
    weights, nonzeros = sum(size for _, size in total), sum(figure.nonzeros for figure in counted)
    print(f"{name:26}{weights:10}{nonzeros:9}{numbers}{shares}{seconds[0]:8.2f}{seconds[1]:8.2f}", flush=True)
    return cells


def first_layer(rng: np.random.Generator, centroids: int, side: int = 28, units: int = 300, nonzeros: int = 3400) -> np.ndarray:
    """Codes (0: pruned) of a first layer whose units look at spots of the image."""
    y, x = np.mgrid[:side, :side].reshape(2, -1, 1)
    cy, cx = rng.uniform(5, side - 5, (2, 1, units))
    width = rng.uniform(2, 12, units)[None, :]
    score = -((y - cy) ** 2 + (x - cx) ** 2) / width + 1.5 * rng.gumbel(size=(side * side, units))
    score[:, rng.random(units) < 0.33] = -np.inf
    mask = score >= np.partition(score.reshape(-1), -nonzeros)[-nonzeros]
    angle = rng.uniform(0, 2 * np.pi, (1, units))
    field = np.sin(((y - cy) * np.sin(angle) + (x - cx) * np.cos(angle)) * 0.8) + 0.5 * rng.normal(size=mask.shape)
    edges = np.quantile(field[mask], np.arange(1, centroids) / centroids)
    return np.where(mask, np.searchsorted(edges, field) + 1, 0).astype(np.uint8)


def pruned_codes(rng: np.random.Generator, shape: tuple[int, ...], density: float, centroids: int) -> np.ndarray:
    """Codes of the largest of weights whose rows and columns have scales of their own."""
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    scale = rng.lognormal(0, 0.35, (rows, 1)) * rng.lognormal(0, 0.35, (1, columns))
    weights = rng.normal(size=(rows, columns)) * scale
    mask = np.abs(weights) >= np.quantile(np.abs(weights), 1 - density)
    edges = np.quantile(weights[mask], np.arange(1, centroids) / centroids)
    return np.where(mask, np.searchsorted(edges, weights) + 1, 0).astype(np.uint8).reshape(shape)


def codebook(rng: np.random.Generator, codes: np.ndarray, centroids: int) -> CodebookArray:
    """The leaf of these codes, with a table of halves."""
    bits = centroids.bit_length()
    table = np.sort(rng.normal(size=centroids)).astype(np.float16).astype(np.float32)
    return CodebookArray(jnp.asarray(pack_bits(codes.reshape(-1), bits)), jnp.asarray(table), bits, codes.shape, "float32")


def compressed(rng: np.random.Generator, module: Any, example: Any, density: float, centroids: int) -> PyTree:
    """Variables of a model's shapes, never computed: kernels pruned and clustered, vectors in 8 bits, statistics float32."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)

    def leaf(path: Any, struct: Any) -> Any:
        if struct.ndim >= 2:
            if struct.shape == (784, 300):
                return codebook(rng, first_layer(rng, centroids), centroids)
            share = min(1.0, density * (4 if struct.size < 4000 else 1))
            return codebook(rng, pruned_codes(rng, struct.shape, share, centroids), centroids)
        values = jnp.asarray(rng.normal(size=struct.shape) * 0.1, jnp.float32)
        return values if "batch_stats" in jax.tree_util.keystr(path) or not struct.ndim else quantize(values, Uniform(bits=8))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def models() -> Iterator[tuple[str, PyTree]]:
    """The reference models with synthetic compressed weights."""
    rng = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    color = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    photo = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    text = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    yield "LeNet300, 4 values", compressed(rng, LeNet300(), image, 0.08, 4)
    yield "LeNet300, 15 values", compressed(rng, LeNet300(), image, 0.08, 15)
    yield "LeNet5, 8 values", compressed(rng, LeNet5(), image, 0.08, 8)
    yield "CNN, 15 values", compressed(rng, CNN(), color, 0.2, 15)
    yield "ResNetCifar-20, 15 values", compressed(rng, ResNetCifar(), color, 0.3, 15)
    yield "ResNet-18 x1/2, 15 values", compressed(rng, ResNet(features=32), photo, 0.2, 15)
    yield "Transformer, 15 values", compressed(rng, Transformer(vocabulary=512), text, 0.25, 15)


def files(folder: Path) -> None:
    """Print every file under a folder, as coded today and as it was written."""
    for path in sorted(folder.rglob("*.lepton")):
        model = load(path)
        account = model.account()
        cells = row("/".join(path.relative_to(folder).parts)[-25:], model.packed)
        written = account.total - account.program
        today = written - sum(tensor.total for tensor in account.tensors) + cells["ours"]
        print(
            f"    file {written}, {written / cells['paper']:.3f} of paper; whole {account.total}, "
            f"{account.total / cells['paper']:.3f}; coded today {today:.0f}, {today / cells['paper']:.3f}"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a folder with .lepton files; none: synthetic weights")
    folder = parser.parse_args().folder
    over = "".join(f"{'/' + column:>9}" for column in COLUMNS[1:4])
    print(
        f"{'model':26}{'weights':>10}{'nonzero':>9}" + "".join(f"{c:>10}" for c in COLUMNS) + f"{over}{'enc s':>8}{'dec s':>8}"
    )
    if folder is not None:
        files(folder)
        return
    for name, tree in models():
        row(name, tree)


if __name__ == "__main__":
    main()
