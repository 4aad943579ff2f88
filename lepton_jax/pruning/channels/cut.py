"""Choosing the channels: the least important, as many as were asked for."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Ranking = Literal["group", "global"]

Chosen = list[tuple[int, ...]]
"""The numbers of the removed channels of every group."""


def limit(size: int, removed: int, round_to: int) -> int:
    """The most channels, up to `removed`, that a group can lose: one stays, and the rest is a multiple of `round_to`.

    Example:
      >>> limit(64, 30, 1), limit(64, 30, 8), limit(64, 64, 8), limit(10, 9, 8)
      (30, 24, 56, 2)
    """
    left = max(size - removed, 1)
    return size - min(size, -(-left // round_to) * round_to)


def levels(scores: Sequence[np.ndarray], ranking: Ranking, round_to: int) -> tuple[int, Callable[[int], Chosen]]:
    """All cuts from none to the most, in order: how many there are, and a function from the number of one to its channels.

    By group, every group loses the same fraction; globally, the channels of the lowest scores go, whatever their group.

    Args:
      scores: float[channels] of every group.
      ranking: by group or globally.
      round_to: the number of channels left in a group is a multiple of this (or its original number).
    """
    orders = [np.argsort(s, kind="stable") for s in scores]
    sizes = [len(s) for s in scores]

    def choose(counts: Sequence[int]) -> Chosen:
        return [tuple(sorted(order[: limit(len(order), int(n), round_to)].tolist())) for order, n in zip(orders, counts)]

    if ranking == "group":
        steps = sorted({j / n for n in set(sizes) for j in range(n + 1)})
        return len(steps), lambda level: choose([fraction_of(steps[level], n) for n in sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(np.concatenate(scores), kind="stable")]
    return len(owner) + 1, lambda level: choose(np.bincount(owner[:level], minlength=len(sizes)).tolist())


def fraction_of(fraction: float, n: int) -> int:
    """The whole number of channels that is at most a fraction of `n`, but for rounding of the fraction."""
    return int(np.floor(fraction * n + 1e-9))


def spare(chosen: Chosen, scores: Sequence[np.ndarray], classes: Sequence[np.ndarray], axes: Sequence[np.ndarray]) -> Chosen:
    """Put back the best channel of every axis that would be left without any.

    Args:
      chosen: the removed channels of every group.
      scores: float[channels] of every group.
      classes: int[channels] of every group, the class of each channel.
      axes: int[n] of every axis of every value, the classes of its indices.
    """
    removed = {int(classes[g][c]): (float(scores[g][c]), g, c) for g, cs in enumerate(chosen) for c in cs}
    for axis in axes:
        own = [int(c) for c in np.unique(axis)]
        if own and all(c in removed for c in own):
            del removed[max(own, key=lambda c: removed[c])]
    kept = {(g, c) for _, g, c in removed.values()}
    return [tuple(c for c in cs if (g, c) in kept) for g, cs in enumerate(chosen)]
