"""Timing on shared, noisy machines: interleaved runs, medians and ratios."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def interleaved(functions: Mapping[str, Callable[[], Any]], *, rounds: int = 50, warmup: int = 3) -> dict[str, float]:
    """Return the median seconds of each function, called in turn, round after round.

    Args:
      functions: by name; each returns what has to be waited for.
      rounds: how many calls of each are counted.
      warmup: calls of each before that.

    Example:
      >>> sorted(interleaved({"a": lambda: None, "b": lambda: None}, rounds=3))
      ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if number >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}
