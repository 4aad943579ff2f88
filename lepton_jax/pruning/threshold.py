"""The k highest of several arrays of scores: one routine for thresholds by leaf and for thresholds common to many leaves.

Floats are compared by *keys*, the uint32 whose order is theirs. A group's threshold is searched in a bracket ``[low, high)``
with ``count(key >= low) >= k > count(key >= high)``. A pass over the scores counts at eight probes: where the count would be
k if the keys in the bracket were spread evenly, as far apart as chance makes that wrong; next to `low`, which may be the value
of many scores; and in the middle, for keys that are spread in any way. So the bracket shrinks to about the square root of what
it held, and at least by half. The search ends as soon as exactly k keys reach `low`. Where equal scores make that
impossible, it goes on among the positions of the equal ones, in the same loop. Nothing is sorted, and the masks do not
depend on where the probes were.

The small arrays are joined to one table of rows, so that their number costs neither time nor code; large ones are counted
where they lie, so that they are not copied, and stay where they are if they are spread over devices.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.typing import Array

BARRED, LOWEST, HIGHEST = 1, 0x007FFFFF, 0xFF800000
"""The keys of scores that come after all others, of -inf and of +inf; 0 is below all."""
_JOIN_UP_TO, _COLUMNS = 1 << 24, 1024
_SPREAD = np.array([-2.0, -0.8, -0.2, 0.2, 0.8, 2.0], np.float32)
"""Where probes lie about the expected place, in standard deviations of the count there."""
_WIDE = np.array([0x80000001, 0xBA000000, 0xBC800000, 0xBF000000, 0xC1000000], np.uint32)
"""The first probes where nothing is known: just above 0, and four values from 0.0005 to 8."""
_NEAR = np.array([-(1 << 19), -(1 << 14), 0, 1 << 14, 1 << 19], np.int32)
"""The first probes where the last threshold is known: itself, 0.2 % and 6 % away."""


class Selection(NamedTuple):
    """What `top_of_groups` found.

    Attributes:
      masks: booleans of the scores' shapes.
      not_finite: int32 [arrays], how many of each array's scores are NaN or infinite; barred ones don't count.
      thresholds: uint32 [groups], where a next search of similar scores may begin.
    """

    masks: list[Array]
    not_finite: Array
    thresholds: Array


class _Bracket(NamedTuple):
    """A group each: the bracket, uint32, what was counted at its ends, int32, and what is looked for in it.

    First a key; then, where `tied` is not 0, a position among the scores with that key, counted from the end so that
    counts fall as they do for keys.

    Not by group: how many scores of each array are not finite, and whether a pass has been made.
    """

    low: Array
    high: Array
    at_low: Array
    at_high: Array
    k: Array
    tied: Array
    probes: Array
    not_finite: Array
    looked: Array


def _keys(scores: Array) -> Array:
    """Map floats to uint32 so that integer order is float order (-0 and +0 alike; NaN as -inf)."""
    scores = scores.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    keys = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    # -0 is not made +0 by adding 0.0, which compilers drop; NaN and denormals compare as the device compares them.
    return jnp.where(jnp.isnan(scores), jnp.uint32(LOWEST), jnp.where(scores == 0, jnp.uint32(1 << 31), keys))


def _counts(keys: Array, bounds: Sequence[Array], axes: tuple[int, ...]) -> list[Array]:
    """Count the keys that reach each bound, over some axes, in one pass."""
    return jax.lax.reduce(
        [(keys >= bound).astype(jnp.int32) for bound in bounds],
        [jnp.int32(0)] * len(bounds),
        lambda sums, values: [a + b for a, b in zip(sums, values)],
        axes,
    )


def _flat_index(shape: tuple[int, ...]) -> Array:
    """Return each element's flat index, uint32."""
    parts = (
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(math.prod(shape[axis + 1 :]))
        for axis in range(len(shape))
    )
    return sum(parts, jnp.zeros(shape, jnp.uint32))


class _Scores:
    """The arrays' keys and where they lie: what can be counted."""

    def __init__(self, keys: Sequence[Array], groups: Sequence[int], number: int) -> None:
        self.keys, self.groups = keys, np.asarray(groups, np.int32)
        sizes = np.array([key.size for key in keys], np.int64)
        self.totals = np.array([sizes[self.groups == group].sum() for group in range(number)], np.int64)
        before = [sizes[:i][self.groups[:i] == group].sum() for i, group in enumerate(self.groups)]
        self.last = (self.totals[self.groups] - 1 - before).astype(np.uint32)  # the position of an array's first element
        self.small = [i for i, key in enumerate(keys) if 0 < key.size <= _JOIN_UP_TO]
        self.large = [i for i, key in enumerate(keys) if key.size > _JOIN_UP_TO]
        rows = [-(-keys[i].size // _COLUMNS) for i in self.small]
        self.owner = np.repeat(np.array(self.small, np.int32), rows)
        self.row = np.concatenate([np.arange(count) for count in rows]) if rows else np.zeros(0)
        padded = [jnp.pad(keys[i].reshape(-1), (0, n * _COLUMNS - keys[i].size)) for i, n in zip(self.small, rows)]
        self.table = jnp.concatenate(padded).reshape(-1, _COLUMNS) if rows else None

    def places(self, i: int) -> Array:
        """Return the positions of an array's elements in their group, counted from the end."""
        return self.last[i] - _flat_index(self.keys[i].shape)

    def count(self, probes: Array, tied: Array) -> Array:
        """Count what reaches each probe, of keys or, where `tied` is not 0, positions of that key; [arrays, probes]."""
        probes, tied = probes[self.groups], tied[self.groups]
        counts = jnp.zeros(probes.shape, jnp.int32)
        if self.table is not None:
            starts = self.last[self.owner] - (self.row * _COLUMNS).astype(np.uint32)
            places = starts[:, None] - jax.lax.broadcasted_iota(jnp.uint32, self.table.shape, 1)
            keys = _sought(self.table, places, tied[self.owner][:, None])
            by_row = jnp.stack(_counts(keys, list(probes[self.owner].T[:, :, None]), (1,)))
            mine = (self.owner[:, None] == np.arange(len(self.keys))).astype(np.int32)
            counts += (by_row @ mine).T
        for i in self.large:
            keys = _sought(self.keys[i], self.places(i), tied[i])
            sums = [jnp.sum(count) for count in _counts(keys, list(probes[i]), (keys.ndim - 1,))]
            counts = counts.at[i].set(jnp.stack(sums))
        return counts


def _sought(keys: Array, places: Array, tied: Array) -> Array:
    """Return the keys, or, where `tied` is not 0, the positions of the keys that equal it and 0 for the others."""
    return jnp.where(tied == 0, keys, jnp.where(keys == tied, places, jnp.uint32(0)))


def _probes(low: Array, high: Array, at_low: Array, at_high: Array, k: Array) -> Array:
    """Return where to count next, inside the bracket where there is room, [groups, probes]."""
    inside = jnp.maximum(at_low - at_high, 1).astype(jnp.float32)
    part = jnp.clip((at_low - k).astype(jnp.float32) / inside, 0.0, 1.0)
    deviation = jnp.sqrt((part * (1 - part) + 1 / inside) / inside)
    places = jnp.clip(part[:, None] + _SPREAD[None] * deviation[:, None], 0.0, 1.0)
    width = high - low
    steps = (places * width.astype(jnp.float32)[:, None]).astype(jnp.uint32)
    steps = jnp.concatenate([jnp.ones_like(steps[:, :1]), steps, width[:, None] // 2], axis=1)
    return low[:, None] + jnp.clip(steps, 1, jnp.maximum(width, 2)[:, None] - 1)


def _shrink(scores: _Scores, b: _Bracket) -> _Bracket:
    """Count once, and close the brackets around the place."""
    by_array = scores.count(b.probes, b.tied)
    of_group = (scores.groups == np.arange(len(scores.totals))[:, None]).astype(np.int32)
    counts = of_group @ by_array
    enough = counts >= b.k[:, None]
    low = jnp.maximum(b.low, jnp.max(jnp.where(enough, b.probes, 0), axis=1))
    high = jnp.minimum(b.high, jnp.min(jnp.where(enough, jnp.uint32(2**32 - 1), b.probes), axis=1))
    at_low = jnp.minimum(b.at_low, jnp.min(jnp.where(enough, counts, 2**31 - 1), axis=1))
    at_high = jnp.maximum(b.at_high, jnp.max(jnp.where(enough, 0, counts), axis=1))
    # One key is left, and too many have it: look among their positions.
    now_tied = (b.tied == 0) & (high - low == 1) & (at_low != b.k)
    k = jnp.where(now_tied, b.k - at_high, b.k)
    tied = jnp.where(now_tied, low, b.tied)
    at_low = jnp.where(now_tied, at_low - at_high, at_low)
    at_high = jnp.where(now_tied, 0, at_high)
    low = jnp.where(now_tied, 0, low)
    high = jnp.where(now_tied, jnp.asarray(scores.totals, jnp.uint32), high)
    # The first three probes of the first pass are past the barred, past -inf, and +inf.
    not_finite = jnp.where(b.looked, b.not_finite, by_array[:, 0] - by_array[:, 1] + by_array[:, 2])
    return _Bracket(low, high, at_low, at_high, k, tied, _probes(low, high, at_low, at_high, k), not_finite, jnp.bool_(True))


def _search(scores: _Scores, k: Array, near: Array | None) -> _Bracket:
    """Close the brackets until exactly k reach `low`."""
    number = len(scores.totals)
    if near is None:
        first = jnp.broadcast_to(_WIDE, (number, len(_WIDE)))
    else:
        first = jnp.clip(near[:, None] + _NEAR.astype(np.uint32)[None], np.uint32(BARRED + 1), np.uint32(HIGHEST))
    ends = jnp.broadcast_to(np.array([BARRED + 1, LOWEST + 1, HIGHEST], np.uint32), (number, 3))
    start = _Bracket(
        low=jnp.full(number, BARRED, jnp.uint32),
        high=jnp.full(number, HIGHEST + 1, jnp.uint32),
        at_low=jnp.asarray(scores.totals, jnp.int32),
        at_high=jnp.zeros(number, jnp.int32),
        k=k,
        tied=jnp.zeros(number, jnp.uint32),
        probes=jnp.concatenate([ends, first], axis=1),
        not_finite=jnp.zeros(len(scores.keys), jnp.int32),
        looked=jnp.bool_(False),
    )
    return jax.lax.while_loop(lambda b: ~b.looked | jnp.any(b.at_low != b.k), partial(_shrink, scores), start)


@partial(jax.jit, static_argnames="groups")
def top_of_groups(
    scores: Sequence[Array],
    keep: Array,
    *,
    groups: tuple[int, ...],
    allowed: Sequence[Array] | None = None,
    near: Array | None = None,
) -> Selection:
    """Keep the highest scores of each group of arrays: a threshold common to the group's arrays.

    Args:
      scores: floating arrays of any shapes, together less than 2**31 numbers.
      keep: int32 [groups], how many each group keeps; may be traced.
      groups: the group of each array, from 0 up.
      allowed: boolean masks; what is False comes after all others, whatever its score.
      near: thresholds of a selection from similar scores, to begin at. The masks are the same without.

    Returns:
      masks with exactly ``keep[g]`` True in group g's, ties going to the earlier array and the lower flat index, NaN ranking
      as -inf; how many scores are not finite; the thresholds.

    Example:
      >>> scores = [jnp.array([1.0, 5.0]), jnp.array([4.0]), jnp.array([2.0, 2.0])]
      >>> [mask.tolist() for mask in top_of_groups(scores, jnp.array([2, 1]), groups=(0, 0, 1)).masks]
      [[False, True], [True], [True, False]]
    """
    keys = [_keys(score) for score in scores]
    if allowed is not None:
        keys = [jnp.where(free, key, jnp.uint32(BARRED)) for key, free in zip(keys, allowed)]
    held = _Scores(keys, groups, len(keep))
    total = jnp.asarray(held.totals, jnp.int32)
    found = _search(held, jnp.clip(keep, jnp.minimum(1, total), total), near)
    above = jnp.where(found.tied == 0, found.low, found.tied + 1)
    masks = []
    for i, (key, g) in enumerate(zip(keys, groups)):
        chosen_ties = (key == found.tied[g]) & (held.places(i) >= found.low[g])
        masks.append(((key >= above[g]) | chosen_ties) & (keep[g] > 0))
    return Selection(masks, found.not_finite, jnp.where(found.tied == 0, found.low, found.tied))


def top_of_all(scores: Sequence[Array], keep: int | Array) -> list[Array]:
    """Keep the `keep` highest of several arrays' scores together (a global threshold).

    Args:
      scores: floating arrays of any shapes.
      keep: how many to keep, may be traced.

    Returns:
      boolean masks of the scores' shapes with exactly `keep` True in all; ties go to the earlier array and lower flat index.

    Example:
      >>> top_of_all([jnp.array([1.0, 5.0]), jnp.array([4.0])], 2)
      [Array([False,  True], dtype=bool), Array([ True], dtype=bool)]
    """
    return top_of_groups(scores, jnp.asarray(keep, jnp.int32)[None], groups=(0,) * len(scores)).masks
