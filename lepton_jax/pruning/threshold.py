"""The k highest of several arrays of scores together: one routine for global and per-leaf thresholds."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lepton_jax.typing import Array


def _sortable(scores: Array) -> Array:
    """Map floats to uint32 so that integer order is float order (-0 and +0 alike; NaN below everything)."""
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores.astype(jnp.float32))
    scores = jnp.where(scores == 0, 0.0, scores)  # not `scores + 0.0`, which compilers drop, and -0 would rank below +0
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _total(masks: Sequence[Array]) -> Array:
    """Count the True of several masks."""
    return sum((jnp.sum(mask, dtype=jnp.int32) for mask in masks), jnp.int32(0))


def _kth_largest(keys: Sequence[Array], k: Array) -> tuple[Array, Array]:
    """Return the k-th largest of all keys together, and how many of those equal to it belong to the k largest.

    Bisection on the bits, from the top: 32 passes over the keys, each one a count; no sort, no copy.
    """

    def refine(i: int, prefix: Array) -> Array:
        bound = prefix | (jnp.uint32(1) << jnp.uint32(31 - i))
        return jnp.where(_total([key >= bound for key in keys]) >= k, bound, prefix)

    threshold = jax.lax.fori_loop(0, 32, refine, jnp.uint32(0))
    return threshold, k - _total([key > threshold for key in keys])


def _select(keys: Sequence[Array], k: Array) -> list[Array]:
    """Return masks of the k largest of all keys together; ties go to the lower position, in the order given."""
    threshold, ties_kept = _kth_largest(keys, k)
    ties = [key == threshold for key in keys]
    tie_counts = [jnp.sum(tie, dtype=jnp.int32) for tie in ties]

    def break_ties() -> list[Array]:
        kept, before = [], jnp.int32(0)
        for key, tie, count in zip(keys, ties, tie_counts):
            order = before + jnp.cumsum(tie.reshape(-1), dtype=jnp.int32).reshape(tie.shape)
            kept.append((key > threshold) | (tie & (order <= ties_kept)))
            before = before + count
        return kept

    return jax.lax.cond(sum(tie_counts) == ties_kept, lambda: [key >= threshold for key in keys], break_ties)


@jax.jit
def top_of_all(scores: Sequence[Array], keep: int | Array) -> list[Array]:
    """Keep the `keep` highest of several arrays' scores together (a global threshold), without joining them.

    Args:
      scores: floating arrays of any shapes.
      keep: how many to keep, may be traced.

    Returns:
      boolean masks of the scores' shapes with exactly `keep` True in all; ties go to the earlier array and lower flat index.

    Example:
      >>> top_of_all([jnp.array([1.0, 5.0]), jnp.array([4.0])], 2)
      [Array([False,  True], dtype=bool), Array([ True], dtype=bool)]
    """
    keep = jnp.asarray(keep, jnp.int32)
    keys = [_sortable(score) for score in scores]
    return [mask & (keep > 0) for mask in _select(keys, jnp.maximum(keep, 1))]
