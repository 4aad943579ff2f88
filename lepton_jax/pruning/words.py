"""Counts of 2**31 and more, without 64-bit integers: two uint32 along a last axis, the high word first.

What can be counted in an int32 is; whether it can is known from shapes alone, so small leaves compile to what they always did.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array

COUNTABLE = 2**31 - 1
"""The most that is counted in an int32."""


def is_wide(sizes: Any) -> bool:
    """Whether one of these sizes is more than an int32 counts.

    Example:
      >>> is_wide([3, 2**31]), is_wide([]), is_wide(2**31 - 1)
      (True, False, False)
    """
    return int(np.max(np.asarray(sizes, np.int64), initial=0)) > COUNTABLE


def counts_of(numbers: Any, *, wide: bool) -> Array:
    """Return whole numbers as int32, or each in two words; of a list, some may be arrays, in two words or not.

    Example:
      >>> counts_of([5], wide=False).tolist(), counts_of([2**32 + 7, jnp.int32(9)], wide=True).tolist()
      ([5], [[1, 7], [0, 9]])
    """
    if isinstance(numbers, Sequence) and any(isinstance(number, jax.Array) for number in numbers):
        return jnp.stack([_words(n) if wide else jnp.asarray(n, jnp.int32) for n in numbers])
    whole = np.asarray(numbers, np.int64)
    if not wide:
        return jnp.asarray(whole.tolist(), jnp.int32)  # raises for what does not fit
    return jnp.asarray(np.stack([whole >> 32, whole & 0xFFFFFFFF], axis=-1).astype(np.uint32))


def _words(number: Any) -> Array:
    if not isinstance(number, jax.Array):
        return counts_of(number, wide=True)
    return number if number.dtype == jnp.uint32 else jnp.stack([jnp.uint32(0), number.astype(jnp.uint32)])


def plus(a: Array, b: Array) -> Array:
    """Add two counts.

    Example:
      >>> plus(counts_of(2**32 - 1, wide=True), counts_of(2, wide=True)).tolist()
      [1, 1]
    """
    low = a[..., 1] + b[..., 1]
    return jnp.stack([a[..., 0] + b[..., 0] + (low < a[..., 1]).astype(jnp.uint32), low], axis=-1)


def minus(a: Array, b: Array) -> Array:
    """Subtract a count from one that is as large; 0 if it is not.

    Example:
      >>> minus(counts_of(2**32, wide=True), counts_of(1, wide=True)).tolist()
      [0, 4294967295]
    """
    low, borrowed = a[..., 1] - b[..., 1], (a[..., 1] < b[..., 1]).astype(jnp.uint32)
    rest = jnp.stack([a[..., 0] - b[..., 0] - borrowed, low], axis=-1)
    return jnp.where(reaches(a, b)[..., None], rest, jnp.uint32(0))


def reaches(a: Array, b: Array) -> Array:
    """Whether the first count is the second or more.

    Example:
      >>> reaches(counts_of([2**32, 3], wide=True), counts_of(4, wide=True)).tolist()
      [True, False]
    """
    return (a[..., 0] > b[..., 0]) | ((a[..., 0] == b[..., 0]) & (a[..., 1] >= b[..., 1]))


def share(fraction: float | Array, count: Array) -> Array:
    """Return ``round(fraction * count)``, as near as float32 comes; of an int32 an int32.

    Example:
      >>> share(0.5, counts_of(2**33, wide=True)).tolist(), share(0.25, jnp.int32(10)).tolist()
      ([1, 0], 2)
    """
    if count.dtype != jnp.uint32:
        return jnp.round(fraction * count).astype(jnp.int32)
    part = jnp.round(fraction * as_float(count))
    high = jnp.floor(part / np.float32(2**32))  # exact, and so is what it leaves
    return jnp.stack([high, part - high * np.float32(2**32)], axis=-1).astype(jnp.uint32)


def true_count(mask: Array) -> Array:
    """Count what is True: int32, or in two words where an array is so large that it may be needed.

    Example:
      >>> true_count(jnp.array([True, False, True]))
      Array(2, dtype=int32)
    """
    if not is_wide(mask.size):
        return jnp.sum(mask, dtype=jnp.int32)
    split = rows_end(mask.shape)
    rows = jnp.sum(mask, axis=tuple(range(split, mask.ndim)), dtype=jnp.uint32)
    return add_up(rows.reshape(-1), largest=int(np.prod(mask.shape[split:], dtype=np.int64)))


def as_int(count: Any) -> int:
    """Return a count that is not traced as a Python int.

    Example:
      >>> as_int(counts_of(2**40, wide=True)) == 2**40, as_int(jnp.int32(3))
      (True, 3)
    """
    words = np.asarray(count)
    return int(words) if not words.ndim else (int(words[0]) << 32) + int(words[1])


def as_float(count: Array) -> Array:
    """Return a count, int32 or in two words, as the next float32.

    Example:
      >>> as_float(counts_of(2**40, wide=True)).item() == 2.0**40
      True
    """
    if count.dtype != jnp.uint32:
        return count.astype(jnp.float32)
    return count[..., 0].astype(jnp.float32) * np.float32(2**32) + count[..., 1].astype(jnp.float32)


def saturated(count: Array) -> Array:
    """Return two words as an int32, 2**31 - 1 for all that is more.

    Example:
      >>> saturated(counts_of([7, 2**32], wide=True)).tolist()
      [7, 2147483647]
    """
    fits = (count[..., 0] == 0) & (count[..., 1] <= np.uint32(2**31 - 1))
    return jnp.where(fits, count[..., 1], jnp.uint32(2**31 - 1)).astype(jnp.int32)


def int32_count(mask: Array) -> Array:
    """Count what is True, as far as an int32 goes.

    Example:
      >>> int32_count(jnp.array([True, False, True])).item()
      2
    """
    count = true_count(mask)
    return saturated(count) if count.ndim else count


def reaching(keys: Array, bounds: Sequence[Array], axes: tuple[int, ...]) -> list[Array]:
    """Count the keys that reach each bound, over some axes, in one pass; int32.

    Example:
      >>> [count.item() for count in reaching(jnp.arange(5), [jnp.int32(1), jnp.int32(4)], (0,))]
      [4, 1]
    """
    return jax.lax.reduce(
        [(keys >= bound).astype(jnp.int32) for bound in bounds],
        [jnp.int32(0)] * len(bounds),
        lambda sums, values: [a + b for a, b in zip(sums, values)],
        axes,
    )


def rows_end(shape: Sequence[int]) -> int:
    """Return from which axis on an array's axes are counted in an int32; those before it are its rows.

    Example:
      >>> rows_end((80, 8192, 28672)), rows_end((3, 2))
      (1, 0)
    """
    return next(axis for axis in range(len(shape) + 1) if not is_wide(np.prod(shape[axis:], dtype=np.int64)))


def add_up(counts: Array, *, largest: int) -> Array:
    """Add up n uint32 counts of at most `largest`, along the first axis, in two words.

    Digits are added up that are so small that n of them do not overflow: plain sums, which go over devices as such.

    Example:
      >>> add_up(jnp.full(3, 2**32 - 1, jnp.uint32), largest=2**32 - 1).tolist() == [2, 2**32 - 3]
      True
    """
    width = max(1, 32 - counts.shape[0].bit_length())
    total = jnp.zeros((*counts.shape[1:], 2), jnp.uint32)
    for shift in range(0, largest.bit_length(), width):
        digit = (counts >> shift) & np.uint32(2**width - 1)
        added = jnp.sum(digit, axis=0, dtype=jnp.uint32)
        high = added >> (32 - shift) if shift else jnp.zeros_like(added)
        total = plus(total, jnp.stack([high, added << shift], axis=-1))
    return total
