"""Measure the threshold of many scores against sorting them, and one threshold common to 100 million weights.

    python -m experiments.benchmarks.threshold [--rounds 7] [--millions 100]

The masks must be identical to those of a stable sort, ties included; if one is not, that is an error. Of the global threshold
are printed: its time, the temporary memory that the compiled program asks for, and the peak memory of the process.
"""

import resource
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.harness import arguments
from lepton_jax.core.timing import interleaved
from lepton_jax.pruning import keep_count, top, top_of_all

SPARSITY, TARGET, LEAVES = 0.8, 20, 10


def sorted_mask(scores: Any) -> Any:
    """The mask by a stable sort."""
    keep = keep_count(scores.size, SPARSITY)
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    return jnp.zeros(scores.size, bool).at[order[:keep]].set(True).reshape(scores.shape)


def cases() -> dict[str, np.ndarray]:
    """Scores of 1024 x 1024 weights of several kinds."""
    rng, shape = np.random.default_rng(0), (1024, 1024)
    sizes = np.abs(rng.normal(size=shape))
    kinds = {
        "normal": sizes,
        "heavy tails": np.abs(rng.standard_cauchy(shape)),
        "rows of other scale": sizes * np.exp(np.arange(1024) / 100)[:, None],
        "70 % are zero": np.where(sizes > np.quantile(sizes, 0.7), sizes, 0),
        "50 values": rng.integers(0, 50, shape),
        "all equal": np.ones(shape),
    }
    return {name: kind.astype(np.float32) for name, kind in kinds.items()}


def compare(rounds: int) -> None:
    """Print the times of the threshold and of the sort."""
    ours, sort = jax.jit(lambda scores: top(scores, SPARSITY)), jax.jit(sorted_mask)
    print(f"1024 x 1024 scores at {SPARSITY:.0%}; to reach: {TARGET} times as fast, masks identical")
    print(f"{'scores':22} {'sort':>10} {'threshold':>10} {'ratio':>7}")
    for name, scores in cases().items():
        on_device = jnp.asarray(scores)
        if not bool(jnp.array_equal(ours(on_device), sort(on_device))):
            raise AssertionError(f"{name}: the masks differ")
        times = interleaved({"ours": partial(ours, on_device), "sort": partial(sort, on_device)}, rounds=rounds, warmup=1)
        ratio = times["sort"] / times["ours"]
        print(f"{name:22} {times['sort'] * 1e3:7.1f} ms {times['ours'] * 1e3:7.2f} ms {ratio:7.1f}", flush=True)


def peak() -> float:
    """Return the peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def global_threshold(millions: int) -> None:
    """Print time and peak memory of one threshold for all weights; first, so that no earlier peak hides it."""
    size = millions * 1_000_000 // LEAVES
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.standard_normal((size // 1000, 1000), np.float32)) for _ in range(LEAVES)]
    total = sum(w.size for w in weights)
    select = jax.jit(lambda weights: top_of_all([jnp.abs(w) for w in weights], keep_count(total, SPARSITY)))
    start = time.perf_counter()
    compiled = select.lower(weights).compile()
    compiling = time.perf_counter() - start
    held, analysis = peak(), compiled.memory_analysis()
    temporary = analysis.temp_size_in_bytes / 2**20 if analysis is not None else float("nan")
    start = time.perf_counter()
    masks = jax.block_until_ready(compiled(weights))
    took = time.perf_counter() - start
    kept = sum(int(jnp.sum(mask)) for mask in masks)
    print(f"\none threshold for {total:,} weights in {LEAVES} leaves at {SPARSITY:.0%}")
    print(f"{took:.2f} s, compiled in {compiling:.2f} s; kept {kept:,}, exactly {keep_count(total, SPARSITY):,}")
    print(f"the scores are {total * 4 / 2**20:.0f} MB, the masks {total / 2**20:.0f} MB")
    print(f"temporary memory of the program {temporary:.0f} MB; peak of the process {peak():.0f} MB, before it {held:.0f} MB")
    if kept != keep_count(total, SPARSITY):
        raise AssertionError("the count is not exact")


def main() -> None:
    """Measure both."""
    options = arguments(__doc__, rounds=(7, "calls of each"), millions=(100, "weights under one threshold"))
    jax.config.update("jax_enable_compilation_cache", False)
    global_threshold(options.millions)
    compare(options.rounds)


if __name__ == "__main__":
    main()
