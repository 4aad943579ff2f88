"""Bytes of pruned and clustered weights: our coders against the paper's and against general compressors.

    python -m experiments.benchmarks.artifact_size

Synthetic weights stand for a trained LeNet-300-100: each hidden unit of the first layer looks at a spot of its own in the
image, a third of the units is dead, and neighbouring weights of a unit have like values. ``paper`` is Han 2016's coding: gaps
of at most 5 bits (8 in convolutions) with padding zeros, gaps and values both Huffman-coded. ``packed`` is the plain packed
stream (2- or 3-bit codes), the input of the general compressors.
"""

from __future__ import annotations

import heapq
import lzma
import time

import numpy as np
import zstandard

from lepton_jax.artifact import rans, symbols
from lepton_jax.artifact.sparse_index import Hints
from lepton_jax.artifact.streams import Reader, Writer


def huffman_bits(stream: np.ndarray) -> int:
    """Total bits of a stream under its own Huffman code, the table left out."""
    heap = sorted(np.unique(stream, return_counts=True)[1].tolist())
    total = heap[0] if len(heap) == 1 else 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


def paper_bytes(codes: np.ndarray, gap_bits: int = 5) -> int:
    """Bytes of Han 2016's coding: gaps of `gap_bits` with padding zeros, then Huffman codes of gaps and values."""
    flat = codes.reshape(-1)
    gaps = np.diff(np.flatnonzero(flat), prepend=-1) - 1
    longest = 2**gap_bits
    padding = gaps // longest
    all_gaps = np.concatenate([gaps % longest, np.full(int(padding.sum()), longest - 1)])
    values = np.concatenate([flat[flat > 0], np.zeros(int(padding.sum()), flat.dtype)])
    return (huffman_bits(all_gaps) + huffman_bits(values) + 7) // 8


def entropy_bytes(codes: np.ndarray) -> float:
    """Order-0 entropy of the codes, zeros included: the bound of any coder that ignores neighbours."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


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


def later_layer(rng: np.random.Generator, alive: np.ndarray, columns: int, nonzeros: int, centroids: int) -> np.ndarray:
    """Codes of a layer without neighbourhoods, whose dead rows are the dead units of the layer before."""
    score = rng.gumbel(size=(len(alive), columns)) + rng.normal(size=(1, columns)) + rng.normal(size=(len(alive), 1))
    score[~alive] = -np.inf
    mask = score >= np.partition(score.reshape(-1), -nonzeros)[-nonzeros]
    return np.where(mask, rng.integers(1, centroids + 1, mask.shape), 0).astype(np.uint8)


def row(name: str, codes: np.ndarray, alphabet: int, hints: Hints) -> np.ndarray:
    """Print one tensor's bytes and processor times, and return them: ours, paper, zstd, xz, entropy."""
    start = time.process_time()
    writer = symbols.encode(codes.reshape(-1), alphabet, codes.shape, hints)
    encoded = time.process_time()
    decoded = symbols.decode(Reader(bytes(writer.data)), alphabet, codes.shape, hints)
    ended = time.process_time()
    if not np.array_equal(decoded, codes.reshape(-1)):
        raise AssertionError(f"{name}: the decoded codes differ")
    hints.remember((codes != 0).any(axis=0))
    packed = bytes(symbols.pack(codes.reshape(-1), alphabet))
    zstd = len(zstandard.ZstdCompressor(19).compress(packed))
    xz = len(lzma.compress(packed, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME))
    figures = np.array([len(writer), paper_bytes(codes), zstd, xz, entropy_bytes(codes)])
    cells = "".join(f"{figure:9.0f}" for figure in figures)
    print(f"{name:28}{np.count_nonzero(codes):8}{cells}{encoded - start:9.2f}{ended - encoded:9.2f}")
    return figures


def speed(count: int = 10_000_000) -> None:
    """Print how fast long 4-bit streams are coded, against zstd."""
    rng = np.random.default_rng(0)
    values = (rng.normal(size=count) * 2 + 8).round().clip(0, 15).astype(np.uint8)
    table, writer = rans.frequencies(np.bincount(values, minlength=16)), Writer()
    start = time.process_time()
    rans.encode(writer, values, table)
    encoded = time.process_time()
    rans.decode(Reader(bytes(writer.data)), count, table, "values")
    ended = time.process_time()
    packed = bytes(symbols.pack(values, 16))
    middle = time.process_time()
    zstd = len(zstandard.ZstdCompressor(19).compress(packed))
    print(f"\n{count} symbols of 4 bits: entropy {entropy_bytes(values):.0f} bytes")
    print(f"  ours {len(writer)} bytes, encoded in {encoded - start:.2f} s, decoded in {ended - encoded:.2f} s")
    print(f"  zstd -19 of the packed stream {zstd} bytes, {time.process_time() - middle:.2f} s")


def main() -> None:
    """Print the tables."""
    print(f"{'tensor':28}{'nonzero':>8}{'ours':>9}{'paper':>9}{'zstd-19':>9}{'xz -9':>9}{'entropy':>9}{'enc s':>9}{'dec s':>9}")
    for centroids in (4, 8):
        rng, hints = np.random.default_rng(0), Hints()
        first = first_layer(rng, centroids)
        second = later_layer(rng, (first != 0).any(axis=0), 100, 950, centroids)
        third = later_layer(rng, (second != 0).any(axis=0), 10, 150, centroids)
        layers = (("784x300", first), ("300x100", second), ("100x10", third))
        rows = [row(f"{name}, {centroids} centroids", codes, centroids + 1, hints) for name, codes in layers]
        total = np.sum(rows, axis=0)
        print(f"{'all':36}" + "".join(f"{figure:9.0f}" for figure in total))
        print(f"{'ours over':36}" + "".join(f"{total[0] / figure:9.2f}" for figure in total))
    speed()


if __name__ == "__main__":
    main()
