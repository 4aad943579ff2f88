"""Choosing one option a layer: the least total error within a total cost."""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lepton_jax.core.typing import Path
from lepton_jax.lowrank.method import Rank


class Option(NamedTuple):
    """A rank for a layer.

    Attributes:
      rank: None: dense.
      cost: of the layer then.
      error: of the layer then.
      fraction: of the largest rank; 1 for dense.
    """

    rank: Rank | None
    cost: float
    error: float
    fraction: float


Options = list[Option]
"""Of one layer; dense the last."""

_UNITS = 2000
"""Into how many parts a budget is divided for the exact search."""


def hull(options: Options) -> Options:
    """Return the options on the lower convex hull of error over cost, the cheapest first.

    Example:
      >>> [o.cost for o in hull([Option(1, 1, 10, 0), Option(2, 2, 9, 0), Option(3, 3, 4, 0), Option(4, 4, 4, 0)])]
      [1, 3]
    """
    found: Options = []
    for option in sorted(options, key=lambda o: (o.cost, o.error)):
        if found and option.error >= found[-1].error:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], option):
            found.pop()
        found.append(option)
    return found


def solve(options: Mapping[Path, Options], limit: float) -> dict[Path, Option]:
    """Return one option a layer: the least error found by three searches, within the limit.

    `steepest`, good where layers are many; `exact`, good where they are few; `uniform`.

    Args:
      options: by path.
      limit: of the sum of costs; at least that of the cheapest options.

    Example:
      >>> layers = {"a": [Option(1, 1, 10, 0), Option(2, 2, 1, 0)], "b": [Option(1, 1, 9, 0), Option(2, 2, 8, 0)]}
      >>> {path: option.rank for path, option in solve(layers, 3).items()}
      {'a': 2, 'b': 1}
    """
    found = [_fill(options, search(options, limit), limit) for search in (steepest, exact)]
    return min([*found, uniform(options, limit)], key=lambda chosen: sum(option.error for option in chosen.values()))


def steepest(options: Mapping[Path, Options], limit: float) -> dict[Path, Option]:
    """Go along each layer's hull, the steepest fall of error for its cost first, as far as the limit goes.

    Example:
      >>> layers = {"a": [Option(1, 1, 10, 0), Option(2, 2, 1, 0)], "b": [Option(1, 1, 9, 0), Option(2, 2, 8, 0)]}
      >>> {path: option.rank for path, option in steepest(layers, 3).items()}
      {'a': 2, 'b': 1}
    """
    hulls = {path: hull(layer) for path, layer in options.items()}
    chosen = {path: layer[0] for path, layer in hulls.items()}
    left = limit - sum(option.cost for option in chosen.values())
    steps = [(_slope(a, b), path, b) for path, layer in hulls.items() for a, b in pairwise(layer)]
    stopped: set[Path] = set()
    for _, path, option in sorted(steps, key=lambda step: -step[0]):
        extra = option.cost - chosen[path].cost
        if path in stopped or extra > left:
            stopped.add(path)
            continue
        chosen[path], left = option, left - extra
    return chosen


def exact(options: Mapping[Path, Options], limit: float) -> dict[Path, Option]:
    """Solve the knapsack by dynamic programming, what exceeds the cheapest costs rounded up to parts of the budget.

    Example:
      >>> layers = {"a": [Option(1, 1, 10, 0), Option(2, 2, 1, 0)], "b": [Option(1, 1, 9, 0), Option(2, 2, 8, 0)]}
      >>> {path: option.rank for path, option in exact(layers, 3).items()}
      {'a': 2, 'b': 1}
    """
    cheapest = {path: min(option.cost for option in layer) for path, layer in options.items()}
    left = limit - sum(cheapest.values())
    unit = left / _UNITS if left > 0 else 1.0
    least = np.zeros(_UNITS + 1)  # of the layers so far, by parts spent
    picks: list[np.ndarray] = []
    for path, layer in options.items():
        table = np.full((len(layer), _UNITS + 1), np.inf)
        for place, option in enumerate(layer):
            parts = int(np.ceil((option.cost - cheapest[path]) / unit - 1e-9))
            if parts <= (_UNITS if left > 0 else 0):
                table[place, parts:] = least[: _UNITS + 1 - parts] + option.error
        picks.append(np.argmin(table, axis=0))
        least = np.min(table, axis=0)
    chosen: dict[Path, Option] = {}
    spent = _UNITS if left > 0 else 0
    for (path, layer), pick in zip(reversed(list(options.items())), reversed(picks)):
        chosen[path] = layer[int(pick[spent])]
        spent -= int(np.ceil((chosen[path].cost - cheapest[path]) / unit - 1e-9))
    return {path: chosen[path] for path in options}


def _fill(options: Mapping[Path, Options], chosen: dict[Path, Option], limit: float) -> dict[Path, Option]:
    """Spend what is left, one option after the other, beside the hull too."""
    chosen = dict(chosen)
    while True:
        left = limit - sum(option.cost for option in chosen.values())
        better = [
            (_slope(chosen[path], option), path, option)
            for path, layer in options.items()
            for option in layer
            if option.error < chosen[path].error and option.cost - chosen[path].cost <= left
        ]
        if not better:
            return chosen
        _, path, option = max(better, key=lambda step: step[0])
        chosen[path] = option


def uniform(options: Mapping[Path, Options], limit: float) -> dict[Path, Option]:
    """Return the best choice of one fraction of the largest rank for all layers, within the limit.

    In each layer it is the largest option of no more than that fraction, or the least there is.

    Example:
      >>> layers = {"a": [Option(1, 1, 10, 0.5), Option(2, 2, 1, 1)], "b": [Option(1, 1, 9, 0.5), Option(2, 2, 8, 1)]}
      >>> {path: option.rank for path, option in uniform(layers, 3).items()}
      {'a': 1, 'b': 1}
    """
    found = {path: min(layer, key=lambda option: option.cost) for path, layer in options.items()}
    for fraction in sorted({option.fraction for layer in options.values() for option in layer}):
        each = {path: _up_to(layer, fraction) for path, layer in options.items()}
        within = sum(option.cost for option in each.values()) <= limit
        if within and sum(o.error for o in each.values()) < sum(o.error for o in found.values()):
            found = each
    return found


def _up_to(layer: Options, fraction: float) -> Option:
    return max((option for option in layer if option.fraction <= fraction), key=lambda o: o.fraction, default=layer[0])


def _slope(one: Option, other: Option) -> float:
    """How much error falls for a cost of one."""
    cost = other.cost - one.cost
    return (one.error - other.error) / cost if cost > 0 else float("inf")
