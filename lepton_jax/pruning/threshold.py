"""The k highest of several arrays of scores: one routine for thresholds by leaf and thresholds common to many leaves.

Floats are ordered by *keys*, the uint32 whose order is theirs. A threshold is searched in a bracket ``[low, high)`` of keys with
``count(key >= low) >= k > count(key >= high)``. Each pass over the scores counts at several probes, so that the bracket shrinks
to about the square root of what it held: the probes lie where the count would be k if the scores were spread evenly, as
far apart as chance makes that wrong, and one lies in the middle, for scores that are spread in no such way. A sorted
sample gives the first probes. The search ends as soon as exactly k scores are above `low`; then the masks are one comparison. Where
equal scores make that impossible, a second search of the same kind finds the position up to which they are kept.
Neither sorts nor copies the scores, and the masks do not depend on where the probes were.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.typing import Array

LOWEST, HIGHEST = 0x007FFFFF, 0xFF800000
"""The keys of -inf and +inf."""
_SAMPLE = 2048
_SPREAD = np.array([-2.0, -0.8, -0.2, 0.2, 0.8, 2.0], np.float32)
"""Where the probes lie about the expected place, in standard deviations of the count there."""


class _Bracket(NamedTuple):
    """The bracket of each group, uint32 [groups], what was counted at its ends, int32, and where to look next."""

    low: Array
    high: Array
    at_low: Array
    at_high: Array
    probes: Array


def _keys(scores: Array) -> Array:
    """Map floats to uint32 so that integer order is float order (-0 and +0 alike; NaN as -inf)."""
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    scores = jnp.where(scores == 0, 0.0, scores)  # not `scores + 0.0`, which compilers drop, and -0 would rank below +0
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _values(keys: Array) -> Array:
    """Map keys back to floats; beyond that of +inf there are only NaN, which no score reaches."""
    return jax.lax.bitcast_convert_type(jnp.where(keys >> 31 == 1, keys & jnp.uint32(0x7FFFFFFF), ~keys), jnp.float32)


def _reaches(scores: Array, key: Array) -> Array:
    """Whether each score's key is at least `key`, without computing it."""
    return (scores >= _values(key)) | (key <= LOWEST)


def _counts(tests: Sequence[Array]) -> Array:
    """Count the True of several masks in one pass over what they are made from."""
    added = jax.lax.reduce(
        [test.astype(jnp.int32) for test in tests],
        [jnp.int32(0)] * len(tests),
        lambda sums, values: [a + b for a, b in zip(sums, values)],
        tuple(range(tests[0].ndim)),
    )
    return jnp.stack(added)


def _by_group(counts: Sequence[Array], groups: Sequence[int], number: int) -> Array:
    """Add up the leaves' counts, [groups, probes]."""
    return jnp.stack([sum((c for c, g in zip(counts, groups) if g == one), jnp.int32(0)) for one in range(number)])


def _next_probes(low: Array, high: Array, at_low: Array, at_high: Array, k: Array) -> Array:
    """Return where to count next, strictly inside the bracket where there is room, [groups, probes]."""
    inside = (at_low - at_high).astype(jnp.float32)
    part = jnp.clip((at_low - k).astype(jnp.float32) / jnp.maximum(inside, 1.0), 0.0, 1.0)
    deviation = jnp.sqrt((part * (1 - part) + 1.0 / jnp.maximum(inside, 1.0)) / jnp.maximum(inside, 1.0))
    width = (high - low).astype(jnp.float32)
    places = jnp.clip(part[:, None] + jnp.asarray(_SPREAD)[None] * deviation[:, None], 0.0, 1.0) * width[:, None]
    # Next to `low`, because it may be the value of many scores; in the middle, because they may be spread in any way.
    steps = jnp.stack([jnp.ones_like(low), *places.astype(jnp.uint32).T, (high - low) // 2], axis=1)
    return low[:, None] + jnp.clip(steps, jnp.uint32(1), jnp.maximum(high - low, jnp.uint32(2))[:, None] - 1)


def _search(
    count: Callable[[Array], Array], k: Array, low: int, high: Array, at_low: Array, probes: Array
) -> tuple[Array, Array, Array]:
    """Shrink each group's bracket until ``count(low) == k``, or until it holds one value.

    Args:
      count: probes, uint32 [groups, probes] -> how many are at or beyond each, int32; falling.
      k: int32 [groups], at most `at_low`, more than the count at `high`, which is 0.
      low: the first key.
      high: uint32 [groups], past the last key.
      at_low: int32 [groups], the count at `low`.
      probes: where to look first, at most `high`.

    Returns:
      low, and the counts at `low` and at `high`.
    """

    def open_(b: _Bracket) -> Array:
        return (b.at_low != k) & (b.high - b.low > 1)

    def shrink(b: _Bracket) -> _Bracket:
        counts = count(b.probes)
        enough = counts >= k[:, None]
        low = jnp.maximum(b.low, jnp.max(jnp.where(enough, b.probes, 0), axis=1))
        high = jnp.minimum(b.high, jnp.min(jnp.where(enough, jnp.uint32(2**32 - 1), b.probes), axis=1))
        at_low = jnp.minimum(b.at_low, jnp.min(jnp.where(enough, counts, 2**31 - 1), axis=1))
        at_high = jnp.maximum(b.at_high, jnp.max(jnp.where(enough, 0, counts), axis=1))
        return _Bracket(low, high, at_low, at_high, _next_probes(low, high, at_low, at_high, k))

    start = _Bracket(jnp.full_like(high, low), high, at_low, jnp.zeros_like(k), probes)
    found = jax.lax.while_loop(lambda b: jnp.any(open_(b)), shrink, start)
    return found.low, found.at_low, found.at_high


def _first_probes(scores: Sequence[Array], groups: Sequence[int], sizes: np.ndarray, k: Array) -> Array:
    """Return where a sample of each group has the k-th highest, and around it."""
    samples, held = [], []
    for group, size in enumerate(sizes):
        stride = max(1, int(size) // _SAMPLE)
        stride -= stride > 1 and stride % 2 == 0  # odd, so that it meets every column of the usual even shapes
        parts = [_keys(s.reshape(-1)[::stride]) for s, g in zip(scores, groups) if g == group]
        joined = jnp.concatenate(parts)
        samples.append(joined)
        held.append(joined.size)
    longest = max(held)
    table = jnp.stack([jnp.pad(s, (0, longest - s.size), constant_values=LOWEST) for s in samples])
    table = jnp.sort(table, axis=1)[:, ::-1]
    amount = np.maximum(np.asarray(held, np.float32), 1)
    part = k.astype(jnp.float32) / jnp.asarray(np.maximum(sizes, 1), jnp.float32)
    deviation = jnp.sqrt(jnp.asarray(amount) * part * (1 - part)) + 1
    # The k-th highest is reached by k: the element before the place where k are.
    places = jnp.asarray(amount)[:, None] * part[:, None] - 0.5 - jnp.asarray(_SPREAD)[None] * 1.5 * deviation[:, None]
    places = jnp.clip(jnp.round(places).astype(jnp.int32), 0, jnp.asarray(held, jnp.int32)[:, None] - 1)
    probes = jnp.take_along_axis(table, places, axis=1)
    return jnp.concatenate([probes, probes[:, 2:4] + 1], axis=1)  # past a value that many scores may have


def _positions(shape: tuple[int, ...]) -> Array:
    """Return each element's flat index, uint32."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axes = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride) for axis, stride in enumerate(strides))
    return sum(axes, jnp.zeros(shape, jnp.uint32))


def top_of_groups(scores: Sequence[Array], groups: Sequence[int], keep: Array) -> list[Array]:
    """Keep the `keep` highest of each group of arrays: a threshold common to the group's arrays.

    Args:
      scores: floating arrays of any shapes, together less than 2**31 numbers a group.
      groups: the group of each array, 0 and up.
      keep: int32 [groups], how many each group keeps; may be traced.

    Returns:
      boolean masks of the scores' shapes, with exactly ``keep[g]`` True in group g's; ties go to the earlier array and the lower
      flat index. NaN counts as -inf.

    Example:
      >>> top_of_groups([jnp.array([1.0, 5.0]), jnp.array([4.0]), jnp.array([2.0, 2.0])], [0, 0, 1], jnp.array([2, 1]))
      [Array([False,  True], dtype=bool), Array([ True], dtype=bool), Array([ True, False], dtype=bool)]
    """
    number = len(keep)
    scores = [score.astype(jnp.float32) for score in scores]
    sizes = np.zeros(number, np.int64)
    starts = []
    for score, group in zip(scores, groups):
        starts.append(int(sizes[group]))
        sizes[group] += score.size
    full = [i for i, score in enumerate(scores) if score.size]
    if not full:
        return [jnp.zeros(score.shape, bool) for score in scores]
    total = jnp.asarray(sizes, jnp.int32)
    k = jnp.clip(keep, jnp.minimum(1, total), total)
    members = [groups[i] for i in full]

    def beyond(probes: Array) -> Array:
        tests = [[_reaches(scores[i], probe) for probe in probes[groups[i]]] for i in full]
        return _by_group([_counts(test) for test in tests], members, number)

    first = _first_probes([scores[i] for i in full], members, sizes, k)
    end = jnp.full(number, HIGHEST + 1, jnp.uint32)
    low, at_low, at_high = _search(beyond, k, LOWEST, end, total, first)

    def tied(i: int) -> Array:
        return _reaches(scores[i], low[groups[i]]) & ~_reaches(scores[i], low[groups[i]] + 1)

    # Positions are searched from the end, so that counts fall from the first to the last as they do for keys.
    places = {i: jnp.uint32(sizes[groups[i]] - 1 - starts[i]) - _positions(scores[i].shape) for i in full}

    def tied_before(probes: Array) -> Array:
        tests = [[tied(i) & (places[i] >= probe) for probe in probes[groups[i]]] for i in full]
        return _by_group([_counts(test) for test in tests], members, number)

    ties, wanted = at_low - at_high, k - at_high
    wanted = jnp.where(at_low == k, ties, wanted)
    begin, past = jnp.zeros(number, jnp.uint32), jnp.asarray(sizes, jnp.uint32)
    spread = _next_probes(begin, past, ties, jnp.zeros_like(ties), wanted)
    last, _, _ = _search(tied_before, wanted, 0, past, ties, spread)
    some = keep > 0
    masks = []
    for i, score in enumerate(scores):
        if not score.size:
            masks.append(jnp.zeros(score.shape, bool))
            continue
        g = groups[i]
        above = _reaches(score, jnp.where(at_low == k, low, low + 1)[g])
        masks.append((above | (tied(i) & (places[i] >= last[g]))) & some[g])
    return masks


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
    return top_of_groups(scores, [0] * len(scores), jnp.asarray(keep, jnp.int32)[None])
