"""Batches by step: out of a stream, or out of arrays on the device for several runs at once."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, PyTree


@checked
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


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class StackedSource:
    """Batches of several runs, cut out of arrays that stay on the device.

    The batch of step k of run m is ``take(held, own[m], rows(seeds[m], k))``: rows of examples, windows of a text, examples
    with what the run's own teacher answers.

    Args:
      seeds: of the order of the data, one a run.
      rows: ``rows(seed, step)``, integers of one shape; computed on the host.
      take: makes a batch; a traceable function of module level, so that programs which use it are compiled once.
      held: arrays that all runs read.
      own: arrays with a leading axis of as many as there are runs.

    Example:
      >>> text = jnp.arange(10)
      >>> windows = lambda held, own, rows: held[rows[:, None] + jnp.arange(3)[None]] + own
      >>> source = StackedSource(
      ...     seeds=(5, 7), rows=lambda seed, step: np.array([seed, step]), take=windows, held=text, own=jnp.array([0, 100])
      ... )
      >>> source.batch_at(1)(2).tolist()
      [[107, 108, 109], [102, 103, 104]]
    """

    seeds: Sequence[int]
    rows: Callable[[int, int], np.ndarray]
    take: Callable[[Any, Any, Array], Any]
    held: PyTree
    own: PyTree = ()

    def batch_at(self, run: int) -> Callable[[int], Any]:
        """Return the batches of one run by step."""
        own = jax.tree.map(lambda leaf: leaf[run], self.own)
        return lambda step: _taken(self.take, self.held, own, jnp.asarray(self.rows(self.seeds[run], step)))

    def orders(self, first: int, count: int) -> np.ndarray:
        """Return the rows of some steps of all runs, ``[runs, steps, ...]``."""
        return np.stack([np.stack([self.rows(seed, first + i) for i in range(count)]) for seed in self.seeds])


@functools.partial(jax.jit, static_argnums=0)
def _taken(take: Callable[[Any, Any, Array], Any], held: PyTree, own: PyTree, rows: Array) -> Any:
    return take(held, own, rows)
