"""Masks from scores: True where a weight is kept.

The one rule for counts, everywhere: of n scores, ``keep = n - round(sparsity * n)`` are kept (halves round to even, as in
numpy), the highest first; among equal scores the lower flat index is kept. What is counted is the unit that goes together: a
weight (`top`), a whole block (`block`), a whole slice (`channel`); `n_of_m` counts in each group.

Scores are compared as float32 (bfloat16 and float16 exactly, integers and float64 rounded to it), NaN below everything, -0
equal to 0. The score of a block or slice is the mean of its scores: under `Magnitude` the order of the L1 norms, and, because
slices are equally long, sum and mean rank them alike. For the L2 norm, square the scores.

All functions run under jit and vmap. An array without elements gives a mask without elements.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction, check_whole, is_traced
from lepton_jax.core.typing import Array
from lepton_jax.pruning.threshold import sort_keys, top_of_all
from lepton_jax.pruning.units import block_means, check_groups, full_block, normal_axis, slice_block, spread
from lepton_jax.pruning.words import counts_of, is_wide, minus, reaches, share

_PAIRWISE = 16
"""Groups up to this size are ranked by comparing every pair; larger ones by a threshold each."""


@checked
def keep_count(size: int | np.ndarray | Array, sparsity: float | Array) -> int | Array:
    """Return how many of `size` weights are kept: ``size - round(sparsity * size)``.

    A Python float is rounded exactly, for one size; an array (traced, or one sparsity for each of several sizes) in float32.
    Where one of the sizes is 2**31 or more, what an array gives comes in two words, uint32 [..., 2], high first.

    Example:
      >>> keep_count(10, 0.25), keep_count(10, 0.35)
      (8, 6)
    """
    if isinstance(sparsity, (int, float)):
        check_fraction("keep_count: sparsity", sparsity)
        return int(size) - round(sparsity * int(size))
    if not is_traced(size) and is_wide(size):
        whole = counts_of(size, wide=True)
        return minus(whole, share(sparsity, whole))
    return jnp.asarray(size, jnp.int32) - jnp.round(sparsity * size).astype(jnp.int32)


@checked
def keep_some(size: int | np.ndarray | Array, sparsity: float | Array) -> int | Array:
    """Return `keep_count`, and at least 1 of what is not empty: a leaf that loses all cuts the network.

    Example:
      >>> keep_some(10, 0.25), keep_some(1, 0.9), keep_some(0, 0.9)
      (8, 1, 0)
    """
    count = keep_count(size, sparsity)
    if isinstance(count, int):
        return max(count, min(int(size), 1))
    if count.dtype == jnp.uint32:
        least = counts_of(np.minimum(np.asarray(size, np.int64), 1), wide=True)
        return jnp.where(reaches(count, least)[..., None], count, least)
    return jnp.maximum(count, jnp.minimum(jnp.asarray(size), 1))


@checked
def top(scores: Array, sparsity: float | Array) -> Array:
    """Keep the highest scores: ``n - round(sparsity * n)`` of them, ties broken in favour of the lower flat index.

    Args:
      scores: any shape; floating or integer.
      sparsity: fraction removed, [0, 1); may be traced.

    Returns:
      boolean mask of the scores' shape.

    Raises:
      ValueError: for a sparsity outside [0, 1).

    Example:
      >>> top(jnp.array([1.0, 3.0, 3.0, 3.0]), 0.5)
      Array([False,  True,  True, False], dtype=bool)
    """
    check_fraction("sparsity", sparsity)
    scores = jnp.asarray(scores)
    return top_of_all([scores], keep_count(scores.size, sparsity))[0]


@checked
def n_of_m(scores: Array, n: int | Array, m: int, axis: int, *, pad: bool = False) -> Array:
    """Keep the `n` highest of every `m` consecutive scores along an axis; ties go to the lower index.

    With `pad`, an axis that `m` does not divide ends in a group of ``r < m`` scores, as if filled up with slots that are pruned
    before all others: that group keeps ``min(n, r)``, so that no m slots ever hold more than n.

    Args:
      scores: one axis or more; floating or integer.
      n: how many of a group are kept, 0 to m; may be traced.
      m: the size of a group.
      axis: along which groups lie; negative counts from the end.
      pad: allow an axis that `m` does not divide.

    Returns:
      boolean mask of the scores' shape.

    Raises:
      ValueError: for ``n > m``, an axis that is not there, or one that `m` does not divide (unless `pad`).

    Example:
      >>> n_of_m(jnp.array([4.0, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0]), 2, 4, axis=0).astype(int).tolist()
      [1, 0, 0, 1, 1, 1, 0, 0]

    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks" (2:4).
    """
    scores = jnp.asarray(scores)
    check_whole("n_of_m: m", m, 1)
    if not is_traced(n):
        check_whole("n_of_m: n", int(n) if isinstance(n, jax.Array) else n, 0, m)
    check_groups(m, axis, scores.shape, pad)
    return _best_in_groups(scores, n, m, normal_axis(axis, scores.shape))


@partial(jax.jit, static_argnums=(2, 3))
def _best_in_groups(scores: Array, n: int | Array, m: int, axis: int) -> Array:
    """The arithmetic of `n_of_m`: ranks within the groups, without moving the axis."""
    shape = scores.shape
    values = scores.astype(jnp.float32)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    missing = [(0, -size % m if position == axis else 0) for position, size in enumerate(shape)]
    # What fills up comes last in its group, so a tie with a real -inf is lost.
    values = jnp.pad(values, missing, constant_values=-jnp.inf)
    groups = values.reshape(math.prod(shape[:axis]), values.shape[axis] // m, m, math.prod(shape[axis + 1 :]))
    best = _best_by_pairs if m <= _PAIRWISE else _best_by_threshold
    mask = best(groups, n).reshape(values.shape)
    return jax.lax.slice_in_dim(mask, 0, shape[axis], axis=axis)


def _best_by_pairs(groups: Array, n: int | Array) -> Array:
    """Count, for each entry along axis 2, those that come before it: higher ones, and equal ones of a lower index."""
    m = groups.shape[2]
    one, other = groups[:, :, :, None], groups[:, :, None]
    index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, m, m, 1), 2)
    other_index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, m, m, 1), 3)
    before = (other > one) | ((other == one) & (other_index < index))
    return jnp.sum(before, axis=3, dtype=jnp.int32) < n


def _best_by_threshold(groups: Array, n: int | Array) -> Array:
    """The same by a threshold for every group at once: bisection on the bits. Sorting takes ten times as long, on CPU."""
    keys = sort_keys(groups)

    def refine(i: int, low: Array) -> Array:
        bound = low | (jnp.uint32(1) << jnp.uint32(31 - i))
        return jnp.where(jnp.sum(keys >= bound, axis=2, keepdims=True, dtype=jnp.int32) >= n, bound, low)

    threshold = jax.lax.fori_loop(0, 32, refine, jnp.zeros_like(keys, shape=(*keys.shape[:2], 1, keys.shape[3])))
    above, ties = keys > threshold, keys == threshold
    ties_kept = n - jnp.sum(above, axis=2, keepdims=True, dtype=jnp.int32)
    return above | (ties & (jnp.cumsum(ties, axis=2, dtype=jnp.int32) <= ties_kept))


@checked
def block(scores: Array, sparsity: float | Array, block_shape: Sequence[int]) -> Array:
    """Keep whole blocks: of all B blocks, the ``B - round(sparsity * B)`` with the highest mean scores.

    A block shape shorter than the scores' applies to the last axes; along the leading ones every index has blocks of its own.
    Where a block's size does not divide an axis, the blocks at the end are smaller; they count as blocks like any other, and
    their score is the mean over the elements they have. Ties go to the lower flat index of the blocks.

    Args:
      scores: any shape; floating or integer.
      sparsity: fraction of the blocks removed, [0, 1); may be traced.
      block_shape: sizes along the last axes; a size beyond the axis means all of it.

    Returns:
      boolean mask of the scores' shape.

    Raises:
      ValueError: for a sparsity outside [0, 1), a size below 1 or a block of more axes than the scores.

    Example:
      >>> block(jnp.array([[1.0, 1.0, 9.0], [1.0, 2.0, 0.0]]), 0.5, (1, 2)).astype(int).tolist()
      [[0, 0, 1], [1, 1, 0]]

    Source: Narang et al. 2017, "Block-sparse recurrent neural networks", with the mean in place of the maximum.
    """
    scores = jnp.asarray(scores)
    full = full_block(block_shape, scores.shape)
    return spread(top(block_means(scores, full), sparsity), scores.shape, full)


@checked
def channel(scores: Array, sparsity: float | Array, axis: int | Sequence[int]) -> Array:
    """Keep whole slices along an axis: of C slices, the ``C - round(sparsity * C)`` with the highest mean scores.

    Args:
      scores: one axis or more; floating or integer.
      sparsity: fraction of the slices removed, [0, 1); may be traced.
      axis: along which slices are counted, e.g. -1 for the outputs of a Flax kernel; of several axes, every combination of
        their indices is a slice.

    Returns:
      boolean mask of the scores' shape, constant over each slice.

    Raises:
      ValueError: for a sparsity outside [0, 1), or an axis that is not there or given twice.

    Example:
      >>> channel(jnp.array([[1.0, 5.0], [1.0, 0.0]]), 0.5, axis=1).tolist()
      [[False, True], [False, True]]

    Source: Li et al. 2017, "Pruning filters for efficient convnets", section 3.1 (the L1 norm, under `Magnitude`).
    """
    scores = jnp.asarray(scores)
    full = slice_block(axis, scores.shape)
    return spread(top(block_means(scores, full), sparsity), scores.shape, full)
