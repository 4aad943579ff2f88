"""The search of `threshold`, for groups of 2**31 scores or more: counts in two words, places in two numbers.

A score is placed by three uint32: its key; its row, the flat index over an array's first axes, and its place in the row, both
counted from the end of the group, so that the earlier of equal scores is the higher. No two scores have the same three. The
highest such bound that k scores reach is found four bits a pass over the scores: eight passes where no scores are equal.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.pruning.words import add_up, counts_of, int32_count, plus, reaches, reaching, rows_end

_BITS = 4
_DIGITS = np.arange(1, 2**_BITS, dtype=np.uint32)


def top_of_wide_groups(
    keys: Sequence[Array], keep: Array, groups: Sequence[int], barred: int, finite: tuple[int, int]
) -> tuple[list[Array], Array, Array]:
    """Keep the highest keys of each group of arrays; see `lepton_jax.pruning.threshold.top_of_groups`.

    Args:
      keys: uint32.
      keep: uint32 [groups, 2], in two words.
      groups: the group of each array.
      barred: the key of what comes last, and is not counted as not finite.
      finite: the keys between which, both left out, scores are finite.

    Returns:
      masks; int32 [arrays], how many scores are not finite; uint32 [groups], the threshold.

    Raises:
      ValueError: for a group of 2**32 rows or more.

    Example:
      >>> keys = [jnp.array([3, 9, 9, 5], jnp.uint32)]
      >>> top_of_wide_groups(keys, jnp.array([[0, 1]], jnp.uint32), (0,), 1, (2, 2**32 - 1))[0][0].tolist()
      [False, True, False, False]
    """
    scores = _Wide(keys, np.asarray(groups), keep.shape[0])
    totals = counts_of(scores.totals, wide=True)
    least = counts_of(np.minimum(1, scores.totals), wide=True)
    k = jnp.where(reaches(keep, least)[:, None], keep, least)
    k = jnp.where(reaches(totals, k)[:, None], k, totals)
    start = _Found(jnp.zeros((keep.shape[0], 3), jnp.uint32), totals, jnp.int32(0))
    rounds = 3 * 32 // _BITS
    more = lambda found: (found.round < rounds) & jnp.any(found.at != k)  # noqa: E731
    found = jax.lax.while_loop(more, partial(scores.narrowed, k), start)
    nothing = jnp.all(keep == 0, axis=1)[:, None]
    masks = scores.masks(jnp.where(nothing, jnp.uint32(2**32 - 1), found.bound))
    low, high = np.uint32(finite[0]), np.uint32(finite[1])
    odd = [(key != np.uint32(barred)) & ((key <= low) | (key >= high)) for key in keys]
    return masks, jnp.stack([int32_count(one) for one in odd]), found.bound[:, 0]


class _Found(NamedTuple):
    """By group: the bound so far, three words, and how many scores reach it; and how often was counted."""

    bound: Array
    at: Array
    round: Array


class _Wide:
    """Arrays of keys, and how each of their numbers is placed in its group."""

    def __init__(self, keys: Sequence[Array], groups: np.ndarray[Any, Any], number: int) -> None:
        self.keys, self.groups = keys, groups
        self.splits = [rows_end(key.shape) for key in keys]
        self.sizes = [int(np.prod(key.shape[split:], dtype=np.int64)) for key, split in zip(keys, self.splits)]
        rows = np.array([np.prod(key.shape[:split], dtype=np.int64) for key, split in zip(keys, self.splits)], np.int64)
        of_group = [rows[groups == group].sum() for group in range(number)]
        if max(of_group, default=0) >= 2**32:
            raise ValueError(f"a group to prune has {max(of_group)} rows; fewer than 2**32 can be told apart. Use more groups.")
        before = [rows[:i][groups[:i] == group].sum() for i, group in enumerate(groups)]
        self.last = np.array([of_group[group] for group in groups], np.int64) - 1 - np.array(before, np.int64)
        sizes = np.array([key.size for key in keys], np.int64)
        self.totals = np.array([sizes[groups == group].sum() for group in range(number)], np.int64)

    def _placed(self, i: int, last: Array) -> tuple[Array, Array]:
        """Return the rows and the places in their row of an array's numbers, counted from the end."""
        shape, split = self.keys[i].shape, self.splits[i]
        return last[i, 0] - _index(shape, range(split)), last[i, 1] - _index(shape, range(split, len(shape)))

    def _ends(self) -> np.ndarray[Any, Any]:
        return np.stack([self.last, np.array(self.sizes, np.int64) - 1], axis=1).astype(np.uint32)

    def narrowed(self, k: Array, found: _Found) -> _Found:
        """Fix four more bits of the bounds."""
        word, shift = found.round // (32 // _BITS), 32 - _BITS * (found.round % (32 // _BITS) + 1)
        steps = jnp.asarray(_DIGITS) << shift.astype(jnp.uint32)
        so_far = jnp.take(found.bound, word, axis=1)
        # As in `threshold`: what is cheap to compute must not be taken out of the loop and kept.
        probes, last = jax.lax.optimization_barrier((so_far[:, None] | steps[None], jnp.asarray(self._ends())))
        counts = self._by_group([self._count(i, word, found.bound, probes, last) for i in range(len(self.keys))])
        enough = reaches(counts, k[:, None])
        digit = jnp.sum(enough, axis=1, dtype=jnp.int32)  # counts fall as probes rise
        chosen = jnp.concatenate([found.at[:, None], counts], axis=1)
        at = jnp.take_along_axis(chosen, digit[:, None, None], axis=1)[:, 0]
        added = digit.astype(jnp.uint32) << shift.astype(jnp.uint32)
        bound = jnp.where(np.arange(3)[None] == word, found.bound | added[:, None], found.bound)
        return _Found(bound, at, found.round + 1)

    def _count(self, i: int, word: Array, bounds: Array, probes: Array, last: Array) -> Array:
        """Count the numbers of an array that reach each probe of a word, where the words before are fixed."""
        key, group, split = self.keys[i], self.groups[i], self.splits[i]
        row, place = self._placed(i, last)
        above = (word > 0) & (key > bounds[group, 0])
        level = (word == 0) | (key == bounds[group, 0])
        above |= (word > 1) & level & (row > bounds[group, 1])
        level &= (word < 2) | (row == bounds[group, 1])
        mine = jnp.where(word == 0, key, jnp.where(word == 1, row, place))
        sought = jnp.where(above, jnp.uint32(2**32 - 1), jnp.where(level, mine, jnp.uint32(0)))
        if split == key.ndim:
            rows = [(sought >= probe).astype(jnp.uint32).reshape(-1) for probe in probes[group]]
        else:
            counts = reaching(sought, list(probes[group]), (key.ndim - 1,))
            rows = [jnp.sum(one, axis=tuple(range(split, key.ndim - 1)), dtype=jnp.uint32).reshape(-1) for one in counts]
        return add_up(jnp.stack(rows, axis=1), largest=self.sizes[i])

    def _by_group(self, counts: list[Array]) -> Array:
        """Add up the counts of each group's arrays."""
        totals: list[Any] = [None] * len(self.totals)
        for count, group in zip(counts, self.groups):
            totals[group] = count if totals[group] is None else plus(totals[group], count)
        nothing = jnp.zeros((len(_DIGITS), 2), jnp.uint32)
        return jnp.stack([nothing if total is None else total for total in totals])

    def masks(self, bound: Array) -> list[Array]:
        """Return what reaches its group's bound."""
        found = []
        for i, (key, group) in enumerate(zip(self.keys, self.groups)):
            first, second, third = bound[group]
            row, place = self._placed(i, jnp.asarray(self._ends()))
            found.append((key > first) | ((key == first) & ((row > second) | ((row == second) & (place >= third)))))
        return found


def _index(shape: tuple[int, ...], axes: range) -> Array:
    """Return each element's flat index over some axes, uint32."""
    parts = (
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        * np.uint32(np.prod([shape[later] for later in axes if later > axis], dtype=np.int64))
        for axis in axes
    )
    return sum(parts, jnp.zeros(shape, jnp.uint32))


def first_of(best: Array) -> Array:
    """Return a mask of the first place where another is True, in an array of any size.

    Example:
      >>> first_of(jnp.array([[False, True], [True, True]])).tolist()
      [[False, True], [False, False]]
    """
    split, beyond = rows_end(best.shape), np.uint32(2**32 - 1)
    for axes in (range(split), range(split, best.ndim)) if split else (range(best.ndim),):
        index = _index(best.shape, axes)
        best &= index == jnp.min(jnp.where(best, index, beyond), initial=beyond)
    return best
