"""Masks from scores: True where a weight is kept.

The one rule for counts, everywhere: of n scores, ``keep = n - round(sparsity * n)`` are kept (halves round to even, as in
numpy), the highest first; among equal scores the lower flat index is kept.
"""

import jax.numpy as jnp

from lepton_jax.pruning.threshold import top_of_all
from lepton_jax.typing import Array


def keep_count(size: int, sparsity: float | Array) -> int | Array:
    """Return how many of `size` weights are kept: ``size - round(sparsity * size)``.

    A Python float is rounded exactly; a traced sparsity in float32.

    Example:
      >>> keep_count(10, 0.25), keep_count(10, 0.35)
      (8, 6)
    """
    if isinstance(sparsity, (int, float)):
        return size - round(sparsity * size)
    return size - jnp.round(sparsity * size).astype(jnp.int32)


def top(scores: Array, sparsity: float | Array) -> Array:
    """Keep the highest scores: ``n - round(sparsity * n)`` of them, ties broken in favour of the lower flat index.

    Args:
      scores: any shape, floating.
      sparsity: fraction removed, [0, 1); may be traced.

    Returns:
      boolean mask of the scores' shape.

    Example:
      >>> top(jnp.array([1.0, 3.0, 3.0, 3.0]), 0.5)
      Array([False,  True,  True, False], dtype=bool)
    """
    return top_of_all([scores], keep_count(scores.size, sparsity))[0]
