"""What batch-norm folding gains: ResNet-20 folded against plain jit with the same variables.

    python -m experiments.benchmarks.fold_batch_norm

Prints interleaved medians and their ratios for batches of 1 and 64, the same for processor time, which other programs on
the machine disturb less, and the largest difference of the outputs.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.timing import interleaved
from lepton_jax.graph import fold_batch_norm
from lepton_jax.models import ResNetCifar


def trained_like(variables):
    """Statistics, scales and biases that differ by channel, as after training."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jnp.abs(jax.random.normal(k, x.shape)) if x.ndim == 1 else x for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(tree, moved)


def main(rounds: int = 40) -> None:
    """Measure both batch sizes."""
    model = ResNetCifar()
    variables = trained_like(jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 32, 32, 3))))
    folded, new = fold_batch_norm(model.apply, variables, jnp.ones((1, 32, 32, 3)))
    plain, fast = jax.jit(model.apply), jax.jit(folded)
    for batch in (1, 64):
        x = jax.random.normal(jax.random.key(2), (batch, 32, 32, 3))
        expected, out = np.asarray(plain(variables, x)), np.asarray(fast(new, x))
        difference = np.abs(out - expected).max() / np.abs(expected).max()
        functions = {"plain": partial(plain, variables, x), "folded": partial(fast, new, x)}
        seconds = interleaved(functions, rounds=rounds)
        of_processor = interleaved(functions, rounds=rounds, warmup=0, clock=time.process_time)
        ratio = of_processor["plain"] / of_processor["folded"]
        print(
            f"batch {batch}: plain {1e3 * seconds['plain']:.2f} ms, folded {1e3 * seconds['folded']:.2f} ms, "
            f"{seconds['plain'] / seconds['folded']:.2f} times as fast (by processor time {ratio:.2f}); "
            f"largest relative difference {difference:.1e}"
        )


if __name__ == "__main__":
    main()
