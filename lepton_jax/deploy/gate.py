"""Whether a compression is faster: measured so that a machine with other work to do cannot say otherwise."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.tables import table

_SAMPLE = 0.015
"""Seconds that a sample takes at least: a clock of processor time moves in steps."""
_SAME, _FASTER = 0.05, 1.05
_TRIES = 3
_RESAMPLED = 2000
_AGAIN = "(the first again)"

Ratio = tuple[float, float, float]
"""The first's time over another's, and the ends of the interval that holds it in 95 of 100 cases."""


@checked
@dataclass(frozen=True, kw_only=True)
class Gate:
    """What `gate` measured.

    Attributes:
      ratios: of each, the first's time over its own: 2 is twice as fast; with the ends of a 95 % interval.
      seconds: of processor time a call, the median.
      again: the ratio of the first to itself, which has to be 1.
      rounds: how many samples of each.

    Example:
      >>> ratios = {"float": (1.0, 1.0, 1.0), "int8": (2.3, 2.2, 2.4)}
      >>> found = Gate(ratios=ratios, seconds={"float": 0.023, "int8": 0.01}, again=(1.01, 0.99, 1.02), rounds=15)
      >>> found.kept, found.is_trusted
      (('int8',), True)
      >>> print(found)
      name       ms  ratio   interval
      float  23.000   1.00  1.00-1.00
      int8   10.000   2.30  2.20-2.40  faster
      processor time, 15 rounds; the first against itself: 1.01 [0.99-1.02]
    """

    ratios: Mapping[str, Ratio]
    seconds: Mapping[str, float]
    again: Ratio
    rounds: int

    @property
    def is_trusted(self) -> bool:
        """Whether the first against itself came out within 5 %."""
        return abs(self.again[0] - 1) <= _SAME

    @property
    def kept(self) -> tuple[str, ...]:
        """Those that are faster: the lower end is above 1.05."""
        return tuple(name for name, (_, low, _) in self.ratios.items() if low > _FASTER) if self.is_trusted else ()

    def __str__(self) -> str:
        rows = [("name", "ms", "ratio", "interval", "")]
        for name, (ratio, low, high) in self.ratios.items():
            verdict = "faster" if name in self.kept else ""
            rows.append((name, f"{1e3 * self.seconds[name]:.3f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}", verdict))
        ratio, low, high = self.again
        noise = (
            "" if self.is_trusted else ", more than 5 % apart: nothing here is to be believed; run it again with less going on"
        )
        said = f"processor time, {self.rounds} rounds; the first against itself: {ratio:.2f} [{low:.2f}-{high:.2f}]{noise}"
        return f"{table(rows, left=(0, 4))}\n{said}"


@checked
def gate(functions: Mapping[str, Callable[[], Any]], rounds: int = 15) -> Gate:
    """Measure how much faster functions are than the first of them.

    On one processor core; by processor time, which other programs' work does not lengthen; in rounds, each of which begins with
    another function; at least 15 ms a sample. The first is measured twice, as if it were two: if they come out more than 5 %
    apart, all is measured again, three times at most. A ratio is the median of the rounds', and its interval is found by
    drawing rounds anew (bootstrap).

    Args:
      functions: by name, called without arguments; what they return is waited for. Run engines with one thread.
      rounds: 3 or more.

    Raises:
      ValueError: without functions, or for fewer rounds.

    Example:
      >>> found = gate({"slow": lambda: sum(range(20_000)), "fast": lambda: sum(range(4_000))}, rounds=5)
      >>> found.ratios["slow"], found.ratios["fast"][0] > 2
      ((1.0, 1.0, 1.0), True)

    Source: the interval is that of Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    if not functions:
        raise ValueError("gate: needs functions by name, {'float': run_float, 'int8': run_int8}; got none.")
    check_whole("gate: rounds", rounds, 3)
    first = next(iter(functions))
    everything = {**functions, _AGAIN: functions[first]}
    with _one_core():
        for _ in range(_TRIES):
            times = _measured(everything, rounds)
            ratios = {name: _ratio(times[first], taken) for name, taken in times.items()}
            found = Gate(
                again=ratios.pop(_AGAIN),
                ratios=ratios,
                seconds={name: float(np.median(times[name])) for name in functions},
                rounds=rounds,
            )
            if found.is_trusted:
                break
    return found


def _measured(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds a call of each function in each round."""
    calls = {name: _calls(run) for name, run in functions.items()}
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            times[name].append(_sample(functions[name], calls[name]) / calls[name])
    return {name: np.array(taken) for name, taken in times.items()}


def _calls(run: Callable[[], Any]) -> int:
    """How many calls a sample needs."""
    _sample(run, 2)
    calls = 1
    while (taken := _sample(run, calls)) < _SAMPLE:
        calls = max(calls + 1, int(calls * min(_SAMPLE / max(taken, 1e-6) * 1.1, 10)))
    return calls


def _sample(run: Callable[[], Any], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        jax.block_until_ready(run())
    return time.process_time() - start


def _ratio(base: np.ndarray, other: np.ndarray) -> Ratio:
    each = base / other
    drawn = np.random.default_rng(0).integers(0, len(each), (_RESAMPLED, len(each)))
    low, high = np.percentile(np.median(each[drawn], axis=1), [2.5, 97.5])
    return float(np.median(each)), float(low), float(high)


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keep to one core, where the system can say so, and no collector of garbage in between."""
    collecting = gc.isenabled()
    gc.disable()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        if cores:
            os.sched_setaffinity(0, {max(cores)})
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        if collecting:
            gc.enable()
