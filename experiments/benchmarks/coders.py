"""Speed and size of each coder on long streams, on one core, against zstd; time and memory of loading a file.

    python -m experiments.benchmarks.coders                  # ten million symbols
    python -m experiments.benchmarks.coders --count 1000000

Two streams: 4-bit codes of weights (normal, rounded), and a mask of the largest tenth of weights whose rows and columns have
scales of their own. ``bound`` is the entropy without contexts; an adaptive model can go below it. zstd works on the packed
stream (4 bits a code, one bit a position). Times are processor times of one thread. ``memory`` is the most that decoding
takes, in bytes an element, the output counted.
"""

from __future__ import annotations

import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import zstandard

from experiments.benchmarks.harness import arguments
from lepton_jax.artifact import container, load, save
from lepton_jax.artifact.reading import read_manifest, read_tensors
from lepton_jax.coding import gaps, huffman, mask_classes, mask_rows, rans
from lepton_jax.coding.bit_packing import pack_bits, unpack_bits
from lepton_jax.coding.rangecoder import Decoder, Encoder
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.coding.symbols import entropy
from lepton_jax.core.limits import Allowance
from lepton_jax.core.timing import interleaved
from lepton_jax.leaves.codebook import CodebookArray


def bound(symbols: np.ndarray) -> float:
    """The bytes of the entropy without contexts."""
    return symbols.size * entropy(np.bincount(symbols)) / 8


def row(name: str, data: Any, encode: Callable[[], bytes], decode: Callable[[bytes], Any], zstd_bytes: int | None) -> None:
    """Print one coder's bytes, speeds and memory."""
    start = time.process_time()
    stored = encode()
    encoded = time.process_time()
    back = decode(stored)
    ended = time.process_time()
    if not np.array_equal(back, data):
        raise AssertionError(f"{name}: what was decoded differs")
    del back
    tracemalloc.start()
    decode(stored)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    million, over = data.size / 1e6, f"{len(stored) / zstd_bytes:8.3f}" if zstd_bytes else " " * 8
    speeds = f"{million / (encoded - start):10.2f}{million / (ended - encoded):10.2f}"
    print(
        f"  {name:18}{len(stored):10}{len(stored) / bound(data.reshape(-1)):9.4f}{over}{speeds}{peak / data.size:9.2f}",
        flush=True,
    )


def head(what: str, data: np.ndarray) -> None:
    """Print the columns' names."""
    print(f"\n{data.size} {what}, bound {bound(data.reshape(-1)):.0f} bytes")
    print(f"  {'coder':18}{'bytes':>10}{'/bound':>9}{'/zstd':>8}{'enc M/s':>10}{'dec M/s':>10}{'memory':>9}")


def zstd_row(data: np.ndarray, width: int, level: int) -> int:
    """Print zstd's row, and return its bytes."""
    flat = data.reshape(-1)

    def encode() -> bytes:
        return zstandard.ZstdCompressor(level).compress(pack_bits(flat, width).tobytes())

    def decode(stored: bytes) -> np.ndarray:
        words = np.frombuffer(zstandard.ZstdDecompressor().decompress(stored), np.uint8)
        return unpack_bits(words, width, data.size).reshape(data.shape)

    row(f"zstd -{level}, packed", data, encode, decode, None)
    return len(encode())


def symbols_table(count: int) -> None:
    """Print the coders of values."""
    values = (np.random.default_rng(0).normal(size=count) * 2 + 8).round().clip(0, 15).astype(np.uint8)
    counts = np.bincount(values, minlength=16)
    head("codes of 4 bits", values)
    zstd_row(values, 4, 3)
    best = zstd_row(values, 4, 19)

    def huffman_stream() -> bytes:
        writer = Writer()
        huffman.encode(writer, values, counts)
        return bytes(writer.data)

    def rans_stream() -> bytes:
        writer, table = Writer(), rans.frequencies(counts)
        rans.write_table(writer, table)
        rans.encode(writer, values, table)
        return bytes(writer.data)

    def rans_back(stored: bytes) -> np.ndarray:
        reader = Reader(stored)
        return rans.decode(reader, count, rans.read_table(reader, 16), "values")

    row(
        "packed bits",
        values,
        lambda: pack_bits(values, 4).tobytes(),
        lambda s: unpack_bits(np.frombuffer(s, np.uint8), 4, count),
        best,
    )
    row("huffman", values, huffman_stream, lambda stored: huffman.decode(Reader(stored), count, 16, "values"), best)
    row("rans", values, rans_stream, rans_back, best)


def mask_table(count: int, columns: int = 2000) -> None:
    """Print the coders of positions."""
    rng = np.random.default_rng(1)
    shape = (count // columns, columns)
    scale = rng.lognormal(0, 0.35, (shape[0], 1)) * rng.lognormal(0, 0.35, (1, columns))
    weights = np.abs(rng.normal(size=shape).astype(np.float32)) * scale.astype(np.float32)
    mask = weights >= np.quantile(weights[::7], 0.9)
    del weights, scale
    hints = ([2] * shape[0], [2] * columns)
    head("positions, a tenth of them kept", mask.view(np.uint8))
    zstd_row(mask.view(np.uint8), 1, 3)
    best = zstd_row(mask.view(np.uint8), 1, 19)

    def stream(encode: Callable[[Writer, np.ndarray], None]) -> Callable[[], bytes]:
        def run() -> bytes:
            writer = Writer()
            encode(writer, mask)
            return bytes(writer.data)

        return run

    def adaptive() -> bytes:
        coder = Encoder()
        mask_rows.code_mask(coder, mask, shape, 1, hints, True)
        return coder.finish()

    data = mask.view(np.uint8)
    row("gaps", data, stream(gaps.encode_flat), lambda stored: gaps.decode_flat(Reader(stored), shape), best)
    row("lists", data, stream(gaps.encode_rows), lambda stored: gaps.decode_rows(Reader(stored), shape), best)
    row("classes", data, stream(mask_classes.encode), lambda stored: mask_classes.decode(Reader(stored), shape), best)
    row("rows, adaptive", data, adaptive, lambda s: mask_rows.code_mask(Decoder(s), None, shape, 1, hints, True), best)


def decode(path: str) -> None:
    """Do what nothing can spare: read the file, and decode its streams."""
    data = container.read(path)
    parsed = container.parse(data, path)
    read_tensors(parsed, read_manifest(parsed, path), path, Allowance(len(data), 1 << 40))


def loading(count: int) -> None:
    """Print what loading a file of one pruned and clustered matrix takes, against its dense size."""
    rng = np.random.default_rng(2)
    shape = (count // 1000, 1000)
    codes = np.where(rng.random(shape) < 0.1, rng.integers(1, 16, shape), 0).astype(np.uint8)
    leaf = CodebookArray(jnp.asarray(pack_bits(codes.reshape(-1), 4)), jnp.arange(15.0), 4, shape, "float32")
    del codes
    with tempfile.TemporaryDirectory() as folder:
        save(f"{folder}/m.lepton", lambda v, x: x @ v["w"], {"w": leaf}, jnp.ones((1, shape[0])))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        load(f"{folder}/m.lepton")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        start = time.process_time()
        model = load(f"{folder}/m.lepton")
        loaded = time.process_time()
        jax.block_until_ready(model.variables)
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        full = time.process_time() - loaded
        times = interleaved(
            {
                "load": lambda: load(f"{folder}/m.lepton").variables,
                "decode": lambda: decode(f"{folder}/m.lepton"),
                "copy": np.asarray(model.variables["w"]).copy,
            },
            rounds=3,
            warmup=1,
        )
    dense, packed = 4 * leaf.size, int(leaf.index.nbytes)
    print(f"\nloading {leaf.size} weights: {dense} bytes dense, {packed} packed")
    print(f"  to packed leaves {loaded - start:.2f} s, to dense arrays {full:.2f} s more")
    print(f"  load to dense / (decode + one copy): {times['load'] / (times['decode'] + times['copy']):.2f} (to reach: 2)")
    print(f"  at most {peak} bytes at once until packed, {peak / dense:.2f} of the dense tensor's; the process grew by {grown}")


def main() -> None:
    """Print the tables."""
    count = arguments(__doc__, count=(10_000_000, "symbols a stream")).count
    symbols_table(count)
    mask_table(count)
    loading(count // 5)


if __name__ == "__main__":
    main()
