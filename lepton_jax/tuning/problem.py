"""A table as a mixed-integer program."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, sparse

from lepton_jax.core.typing import Path
from lepton_jax.tuning.options import Choice
from lepton_jax.tuning.table import Table

_GAP = 1e-4
_OUT_OF_TIME, _CANNOT = 1, 2
"""What the solver says of a problem that it has not solved, and of one that has no solution."""


class Solved(NamedTuple):
    """What was found: the value of every variable, and how far from the best it may be."""

    x: np.ndarray
    gap: float


class _Rows:
    """Equations, of which each is a sum of variables that is another variable, or 1."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._right: list[float] = []

    def add(self, parts: list[int], whole: int | None = None) -> None:
        """``sum of parts = whole``."""
        row = len(self._right)
        columns = [*parts, *([] if whole is None else [whole])]
        self._rows += [row] * len(columns)
        self._columns += columns
        self._values += [1.0] * len(parts) + ([] if whole is None else [-1.0])
        self._right.append(1.0 if whole is None else 0.0)

    def constraint(self, count: int) -> Any:
        """All of them."""
        matrix = sparse.csr_matrix((self._values, (self._rows, self._columns)), shape=(len(self._right), count))
        return optimize.LinearConstraint(matrix, self._right, self._right)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A table as vectors over its variables.

    A variable is a pair of a layer and a choice, or of a group of channels and a fraction that goes: exactly one of each layer
    and of each group is 1. What a layer costs when its groups lose channels is a product; for every part of it that belongs to
    groups g, there is a variable for each choice and each of their fractions, ``z = x[choice] * prod_g y[g, fraction]``, whose
    sums over all but one are that one: so z needs not be whole by itself, and costs are linear.

    Args:
      choices: by variable.
      fractions: by variable, behind the choices.
      costs: by name, of every variable.
      rest: by name, what is always there.
      sums: the equations.
    """

    choices: list[tuple[Path, Choice]]
    fractions: list[tuple[str, float]]
    costs: dict[str, np.ndarray]
    rest: dict[str, float]
    sums: Any

    @classmethod
    def of(cls, table: Table) -> Problem:
        """Make it of a table."""
        choices = [(path, choice) for path, cells in table.cells.items() for choice in cells]
        groups = table.groups
        fractions = [(name, f) for name, cells in groups.cells.items() for f in (0.0, *cells)] if groups else []
        first = {pair: number for number, pair in enumerate(choices)}
        second = {pair: len(choices) + number for number, pair in enumerate(fractions)}
        names, rows = ["loss", *table.modelled], _Rows()
        costs: dict[str, list[float]] = {
            name: [float(getattr(table.cells[path][choice], name) or 0) for path, choice in choices] for name in names
        }
        for name, values in costs.items():
            values += [_removal_cost(table, group, f, name) for group, f in fractions]
        for path, cells in table.cells.items():
            rows.add([first[path, choice] for choice in cells])
        for group in groups.cells if groups else ():
            rows.add([second[group, f] for f in (0.0, *groups.cells[group])])  # type: ignore[union-attr]
        for path in table.cells if groups else ():
            _products(table, path, first, second, costs, rows)
        rest = {"loss": 0.0, **{name: float(getattr(table, f"rest_{name}")) for name in table.modelled}}
        vectors = {name: np.array(values) for name, values in costs.items()}
        sums = rows.constraint(len(vectors["loss"]))
        return cls(choices=choices, fractions=fractions, costs=vectors, rest=rest, sums=sums)

    def chosen(self, x: np.ndarray) -> tuple[dict[Path, Choice], dict[str, float]]:
        """Return the choice of every layer, and the fraction of every group."""
        count = len(self.choices)
        choices = {path: choice for (path, choice), taken in zip(self.choices, x) if taken > 0.5}
        return choices, {name: f for (name, f), taken in zip(self.fractions, x[count:]) if taken > 0.5}

    def solve(self, limits: Mapping[str, float], seconds: float, least: str = "") -> Solved:
        """Make least what is named; by default the loss, or the size where only the loss is limited.

        Raises:
          ValueError: for limits that cannot be kept, or not found to be in time.
        """
        least = least or ("bytes" if set(limits) == {"loss"} else "loss")
        found = self._solved(limits, seconds, least)
        if found.x is None and found.status == _OUT_OF_TIME:  # without one choice of groups it is a much smaller problem
            tries = [self._solved(limits, seconds, least, level) for level in range(self._levels)]
            found = min((one for one in tries if one.x is not None), key=lambda one: one.fun, default=found)
            if found.x is None and found.status == _OUT_OF_TIME:
                raise ValueError(f"allocate: nothing was found in {seconds:g} seconds; give more.")
        if found.x is None:
            raise ValueError(self._refusal(limits, seconds))
        x = np.round(found.x)
        for name, limit in limits.items():  # the solver keeps limits to a millionth
            if x @ self.costs[name] + self.rest[name] > limit:
                return self.solve({**limits, name: limit - 1e-6 * abs(limit)}, seconds, least)
        return Solved(x, float(found.mip_gap or 0.0))

    @property
    def _levels(self) -> int:
        return max((len(list(some)) for _, some in itertools.groupby(self.fractions, lambda one: one[0])), default=1)

    def _solved(self, limits: Mapping[str, float], seconds: float, least: str, level: int | None = None) -> Any:
        """Solve, with all groups at a level of their fractions if there is one."""
        wanted, count = self.costs[least], len(self.costs[least])
        whole = len(self.choices) + len(self.fractions)
        constraints = [self.sums]
        for name, limit in limits.items():
            unit = float(np.abs(self.costs[name]).max()) or 1.0
            constraints.append(
                optimize.LinearConstraint(self.costs[name][None] / unit, -np.inf, (limit - self.rest[name]) / unit)
            )
        upper = np.ones(count)
        if level is not None:
            place = len(self.choices)
            for _, some in itertools.groupby(self.fractions, lambda one: one[0]):
                length = len(list(some))
                upper[place : place + length] = np.arange(length) == min(level, length - 1)
                place += length
        changed = np.zeros(count)  # of equals, the layer as it is
        changed[: len(self.choices)] = [choice != Choice() for _, choice in self.choices]
        changed[len(self.choices) : whole] = [f > 0 for _, f in self.fractions]
        return optimize.milp(
            wanted / (float(np.abs(wanted).max()) or 1.0) + 1e-9 * changed,
            constraints=constraints,
            integrality=np.arange(count) < whole,
            bounds=optimize.Bounds(0, upper),
            options={"mip_rel_gap": _GAP, "time_limit": seconds},
        )

    def _refusal(self, limits: Mapping[str, float], seconds: float) -> str:
        for name, limit in limits.items():
            smallest = self.rest[name] + float(self.solve({}, seconds, least=name).x @ self.costs[name])
            if smallest > limit:
                return too_little(name, limit, smallest)
        for size in range(2, len(limits)):
            for some in itertools.combinations(limits.items(), size):
                if self._solved(dict(some), seconds, "loss").status == _CANNOT:
                    return together(dict(some))
        return together(limits)


def _removal_cost(table: Table, group: str, fraction: float, name: str) -> float:
    assert table.groups is not None
    return float(getattr(table.groups.cells[group][fraction], name, 0.0)) if fraction else 0.0


def _products(
    table: Table,
    path: Path,
    first: Mapping[tuple[Path, Choice], int],
    second: Mapping[tuple[str, float], int],
    costs: dict[str, list[float]],
    rows: _Rows,
) -> None:
    """Add the variables of a layer's choices together with the fractions of its groups, and take its own costs away."""
    assert table.groups is not None
    groups, cells = table.groups, table.cells[path]
    for share, names in groups.blocks(path):
        own = list(dict.fromkeys(names))
        if not own:
            continue
        bare = {name: {c: share * float(getattr(cells[c], name) or 0) for c in cells} for name in costs if name != "loss"}
        for name, each in bare.items():
            for choice, cost in each.items():
                costs[name][first[path, choice]] -= cost
        parts: dict[Any, list[int]] = {}
        levels = itertools.product(*((0.0, *groups.cells[name]) for name in own))
        for choice, chosen in itertools.product(cells, levels):
            kept = math.prod(groups.kept(name, chosen[own.index(name)]) for name in names)
            for name, values in costs.items():
                values.append(kept * bare[name][choice] if name in bare else 0.0)
            number = len(costs["loss"]) - 1
            for key in (first[path, choice], *(second[pair] for pair in zip(own, chosen))):
                parts.setdefault(key, []).append(number)
        for whole, numbers in parts.items():
            rows.add(numbers, whole)


def shown(limits: Mapping[str, float]) -> str:
    """Return limits in words."""
    return " and ".join(f"{name}={limit:,g}" for name, limit in limits.items())


def together(limits: Mapping[str, float]) -> str:
    """Say that limits contradict each other."""
    return f"allocate: no recipe keeps {shown(limits)} together, though each can be kept alone; raise one of them."


def too_little(name: str, limit: float, least: float) -> str:
    """Say that a limit is too small, and what is the least."""
    return (
        f"allocate: {name}={limit:,g} is less than the smallest recipe needs, {least:,g}; raise it, or measure smaller choices."
    )
