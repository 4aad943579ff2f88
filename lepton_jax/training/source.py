"""Batches by step, out of a stream."""

from collections.abc import Callable, Iterator
from typing import Any


def batch_source(stream_from: Callable[[int], Iterator[Any]]) -> Callable[[int], Any]:
    """Return ``batch_at(step)`` for a stream that can begin anywhere.

    Steps that follow one another come out of one stream; another step begins a new one. So a run and its resumption read
    the same batches, and neither replays the steps before.

    Args:
      stream_from: ``stream_from(k)`` yields the batches of steps k, k + 1, ...

    Example:
      >>> import itertools
      >>> batch_at = batch_source(itertools.count)  # the batch of step k is k
      >>> [batch_at(step) for step in (0, 1, 7, 8, 2)]
      [0, 1, 7, 8, 2]
    """
    stream: Iterator[Any] = iter(())
    following: int | None = None

    def batch_at(step: int) -> Any:
        nonlocal stream, following
        if step != following:
            stream = stream_from(step)
        following = step + 1
        return next(stream)

    return batch_at
