"""Timing on shared, noisy machines: interleaved runs, medians and ratios."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 50,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each function, called in turn, round after round.

    Args:
      functions: by name; each returns what has to be waited for.
      rounds: how many calls of each are counted.
      warmup: calls of each before that.
      clock: `time.process_time` counts processor time, which other programs on the machine disturb less.

    Example:
      >>> sorted(interleaved({"a": lambda: None, "b": lambda: None}, rounds=3))
      ['a', 'b']
    """
    times = _times(functions, rounds, warmup, clock)
    return {name: statistics.median(taken) for name, taken in times.items()}


def ratio(one: Callable[[], Any], other: Callable[[], Any], *, rounds: int = 50, warmup: int = 3) -> float:
    """Return the time of one function over that of another: the median of the ratios of calls next to each other.

    Other work on the machine slows both calls of a pair; each goes first in half of the pairs.

    Example:
      >>> ratio(lambda: sum(range(1000)), lambda: sum(range(100_000))) < 0.5
      True
    """
    pairs = _times({"one": one, "other": other}, rounds, warmup)
    return statistics.median(a / b for a, b in zip(pairs["one"], pairs["other"], strict=True))


def against(
    functions: Mapping[str, Callable[[], Any]], base: str, *, rounds: int = 50, warmup: int = 1
) -> dict[str, tuple[float, float]]:
    """Return for each function its median seconds, and the median of its ratios to the base's seconds of the same round.

    Args:
      functions: by name; each returns what has to be waited for.
      base: the name of the one that all are compared with.
      rounds: how many calls of each are counted.
      warmup: calls of each before that.

    Example:
      >>> against({"a": lambda: None, "b": lambda: None}, "a", rounds=3)["a"][1]
      1.0
    """
    times = _times(functions, rounds, warmup)
    return {
        name: (statistics.median(taken), statistics.median(one / other for one, other in zip(taken, times[base], strict=True)))
        for name, taken in times.items()
    }


def _times(
    functions: Mapping[str, Callable[[], Any]], rounds: int, warmup: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of all counted calls, in every second round in the opposite order."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + rounds):
        for name in list(functions)[:: -1 if number % 2 else 1]:
            start = clock()
            jax.block_until_ready(functions[name]())
            if number >= warmup:
                times[name].append(clock() - start)
    return times
