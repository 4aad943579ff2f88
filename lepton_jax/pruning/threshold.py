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

from lepton_jax.core.arguments import checked
from lepton_jax.core.devices import whole
from lepton_jax.core.typing import Array
from lepton_jax.pruning.wide import first_of, top_of_wide_groups
from lepton_jax.pruning.words import COUNTABLE, counts_of, is_wide, reaching

BARRED, LOWEST, HIGHEST = 1, 0x007FFFFF, 0xFF800000
"""The keys of scores that come after all others, of -inf and of +inf; 0 is below all."""
_JOIN_UP_TO, _COLUMNS = 1 << 22, 1024
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
    counts fall as they do for keys; the higher keys are counted too.

    Not by group: how many scores of each array are not finite, and whether a pass has been made.
    """

    low: Array
    high: Array
    at_low: Array
    at_high: Array
    tied: Array
    probes: Array
    not_finite: Array
    looked: Array


def sort_keys(scores: Array) -> Array:
    """Map floats to uint32 so that integer order is float order (-0 and +0 alike; NaN as -inf).

    Example:
      >>> sort_keys(jnp.array([-1.0, -0.0, 0.0, 2.0])).tolist()
      [1082130431, 2147483648, 2147483648, 3221225472]
    """
    scores = scores.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    keys = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    # -0 is not made +0 by adding 0.0, which compilers drop; NaN and denormals compare as the device compares them.
    return jnp.where(jnp.isnan(scores), jnp.uint32(LOWEST), jnp.where(scores == 0, jnp.uint32(1 << 31), keys))


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
        self.shapes, self.groups = [key.shape for key in keys], np.asarray(groups, np.int32)
        sizes = np.array([key.size for key in keys], np.int64)
        self.totals = np.array([sizes[self.groups == group].sum() for group in range(number)], np.int64)
        before = [sizes[:i][self.groups[:i] == group].sum() for i, group in enumerate(self.groups)]
        self.last = (self.totals[self.groups] - 1 - before).astype(np.uint32)  # the position of an array's first element
        self.large = {i: key for i, key in enumerate(keys) if key.size > _JOIN_UP_TO}
        self.small = [i for i, key in enumerate(keys) if 0 < key.size <= _JOIN_UP_TO]
        rows = [-(-keys[i].size // _COLUMNS) for i in self.small]
        self.owner = np.repeat(np.array(self.small, np.int32), rows)
        self.row = np.concatenate([np.arange(count) for count in rows]) if rows else np.zeros(0)
        # What is spread is gathered first: the compiler would find no good way from its layout to that of rows.
        self.table = (
            jnp.concatenate([_rows(whole(keys[i])) for i in self.small]) if rows else jnp.zeros((0, _COLUMNS), jnp.uint32)
        )

    def _places(self, last: Array) -> Array:
        """Return the positions of the table's elements in their group, counted from the end."""
        starts = last[self.owner] - (self.row * _COLUMNS).astype(np.uint32)
        return starts[:, None] - jax.lax.broadcasted_iota(jnp.uint32, self.table.shape, 1)

    def count(self, probes: Array, tied: Array) -> Array:
        """Count what reaches each probe, of keys or, where `tied` is not 0, positions of that key; [arrays, probes]."""
        both = jnp.concatenate([probes, tied[:, None]], axis=1)
        # Positions are cheap to compute; taken out of the loop they would fill as much memory as the keys.
        both, last = jax.lax.optimization_barrier((both, self.last))
        counts = jnp.zeros((len(self.shapes), probes.shape[1]), jnp.int32)
        if self.small:
            *bounds, tie = (both.T)[:, self.groups[self.owner]][:, :, None]
            by_row = jnp.stack(reaching(_sought(self.table, self._places(last), tie), bounds, (1,)))
            mine = (self.owner[:, None] == np.arange(len(self.shapes))).astype(np.int32)
            counts += (by_row @ mine).T
        for i, keys in self.large.items():
            *bounds, tie = both[self.groups[i]]
            places = last[i] - _flat_index(keys.shape)
            sums = [jnp.sum(count) for count in reaching(_sought(keys, places, tie), bounds, (keys.ndim - 1,))]
            counts = counts.at[i].set(jnp.stack(sums))
        return counts

    def masks(self, bound: Array, tied: Array) -> list[Array]:
        """Return what reaches its group's bound, of keys or positions as in `count`."""
        of_row = self.groups[self.owner]
        sought = _sought(self.table, self._places(jnp.asarray(self.last)), tied[of_row][:, None])
        table = whole(sought >= bound[of_row][:, None])
        masks = []
        for i, (shape, group) in enumerate(zip(self.shapes, self.groups)):
            if i in self.large:
                places = self.last[i] - _flat_index(shape)
                masks.append(_sought(self.large[i], places, tied[group]) >= bound[group])
            else:
                [mine] = np.nonzero(self.owner == i)
                rows = table[mine[0] : mine[-1] + 1] if mine.size else table[:0]
                masks.append(rows.reshape(-1)[: math.prod(shape)].reshape(shape))
        return masks


def _rows(keys: Array) -> Array:
    """Return an array as rows of the table, filled up with 0."""
    flat = keys.reshape(-1)
    if flat.size % _COLUMNS:
        flat = jnp.pad(flat, (0, -flat.size % _COLUMNS))
    return flat.reshape(-1, _COLUMNS)


def _sought(keys: Array, places: Array, tied: Array) -> Array:
    """Return the keys, or, where `tied` is not 0, the positions of the keys that equal it; the higher keys are past them."""
    beside = jnp.where(keys > tied, jnp.uint32(2**32 - 1), jnp.uint32(0))
    return jnp.where(tied == 0, keys, jnp.where(keys == tied, places, beside))


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


def _shrink(scores: _Scores, k: Array, b: _Bracket) -> _Bracket:
    """Count once, and close the brackets around the place."""
    counts = by_array = scores.count(b.probes, b.tied)
    if not np.array_equal(scores.groups, np.arange(len(scores.totals))):
        counts = (scores.groups == np.arange(len(scores.totals))[:, None]).astype(np.int32) @ by_array
    enough = counts >= k[:, None]
    worst = np.uint32(0), np.int32(2**31 - 1), np.uint32(2**32 - 1), np.int32(0)
    with_enough = jnp.where(enough, b.probes, worst[0]), jnp.where(enough, counts, worst[1])
    without = jnp.where(enough, worst[2], b.probes), jnp.where(enough, worst[3], counts)
    low, at_low, high, at_high = jax.lax.reduce((*with_enough, *without), worst, _closest, (1,))
    low, high = jnp.maximum(b.low, low), jnp.minimum(b.high, high)
    at_low, at_high = jnp.minimum(b.at_low, at_low), jnp.maximum(b.at_high, at_high)
    # One key is left, and too many have it: look among their positions.
    now_tied = (b.tied == 0) & (high - low == 1) & (at_low != k)
    tied = jnp.where(now_tied, low, b.tied)
    low = jnp.where(now_tied, 0, low)
    high = jnp.where(now_tied, jnp.asarray(scores.totals, jnp.uint32), high)
    # The first three probes of the first pass are past the barred, past -inf, and +inf.
    not_finite = jnp.where(b.looked, b.not_finite, by_array[:, 0] - by_array[:, 1] + by_array[:, 2])
    return _Bracket(low, high, at_low, at_high, tied, _probes(low, high, at_low, at_high, k), not_finite, jnp.bool_(True))


def _closest(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
    """Return the highest probe with enough and its count, the lowest without and its count."""
    return jnp.maximum(a[0], b[0]), jnp.minimum(a[1], b[1]), jnp.minimum(a[2], b[2]), jnp.maximum(a[3], b[3])


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
        tied=jnp.zeros(number, jnp.uint32),
        probes=jnp.concatenate([ends, first], axis=1),
        not_finite=jnp.zeros(len(scores.shapes), jnp.int32),
        looked=jnp.bool_(False),
    )
    return jax.lax.while_loop(lambda b: ~b.looked | jnp.any(b.at_low != k), partial(_shrink, scores, k), start)


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
      scores: floating arrays of any shapes.
      keep: int32 [groups], how many each group keeps; or uint32 [groups, 2], in two words, high first, which groups of
        2**31 numbers or more need. May be traced.
      groups: the group of each array, from 0 up.
      allowed: boolean masks; what is False comes after all others, whatever its score.
      near: thresholds of a selection from similar scores, to begin at. The masks are the same without.

    Returns:
      masks with exactly ``keep[g]`` True in group g's, ties going to the earlier array and the lower flat index, NaN ranking
      as -inf; how many scores are not finite; the thresholds.

    Raises:
      ValueError: for a group of 2**31 numbers or more whose count is not in two words.

    Example:
      >>> scores = [jnp.array([1.0, 5.0]), jnp.array([4.0]), jnp.array([2.0, 2.0])]
      >>> [mask.tolist() for mask in top_of_groups(scores, jnp.array([2, 1]), groups=(0, 0, 1)).masks]
      [[False, True], [True], [True, False]]
    """
    keys = [sort_keys(score) for score in scores]
    if allowed is not None:
        keys = [jnp.where(free, key, jnp.uint32(BARRED)) for key, free in zip(keys, allowed)]
    if keep.ndim > 1:
        return Selection(*top_of_wide_groups(keys, keep, groups, BARRED, (LOWEST, HIGHEST)))
    held = _Scores(keys, groups, len(keep))
    if is_wide(held.totals):
        raise ValueError(
            f"top_of_groups: a group has {held.totals.max()} numbers, more than the {COUNTABLE} that int32 counts; give "
            "keep as uint32 [groups, 2], in two words."
        )
    total = jnp.asarray(held.totals, jnp.int32)
    found = _search(held, jnp.clip(keep, jnp.minimum(1, total), total), near)
    bound, tied = jnp.where(keep > 0, found.low, jnp.uint32(2**32 - 1)), jnp.where(keep > 0, found.tied, 0)
    return Selection(held.masks(bound, tied), found.not_finite, jnp.where(found.tied == 0, found.low, found.tied))


def leave_one(
    masks: Sequence[Array], scores: Sequence[Array], allowed: Sequence[Array] | None = None, *, needed: Sequence[bool]
) -> list[Array]:
    """Return the masks of a common threshold, where an array that would keep nothing keeps its highest score.

    Args:
      masks: boolean, of each array.
      scores: of the same shapes.
      allowed: as for `top_of_groups`.
      needed: which arrays; a network is not cut where it loses a bias.

    Example:
      >>> low, high = (jnp.array([False, False]), jnp.array([1.0, 2.0])), (jnp.array([True]), jnp.array([9.0]))
      >>> [mask.tolist() for mask in leave_one(*zip(low, high), needed=[True, True])]
      [[False, True], [True]]
    """

    def best(place: int) -> Array:
        key = sort_keys(scores[place])
        key = key if allowed is None else jnp.where(allowed[place], key, jnp.uint32(BARRED))
        return first_of(key == jnp.max(key, initial=0))

    bare = {place: ~jnp.any(mask) for place, mask in enumerate(masks) if needed[place]}
    if not bare:
        return list(masks)

    def left() -> list[Array]:
        return [mask | (bare[place] & best(place)) if place in bare else mask for place, mask in enumerate(masks)]

    return jax.lax.cond(jnp.any(jnp.stack(list(bare.values()))), left, lambda: list(masks))


@checked
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
    count = counts_of([keep], wide=is_wide(sum(score.size for score in scores)))
    return top_of_groups(scores, count, groups=(0,) * len(scores)).masks
