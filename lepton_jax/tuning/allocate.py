"""The best choice for every layer within a budget: a multiple-choice knapsack, by a solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, sparse

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Path
from lepton_jax.tuning.budget import Budget
from lepton_jax.tuning.deployed import MEASURED
from lepton_jax.tuning.options import Choice
from lepton_jax.tuning.recipe import Recipe
from lepton_jax.tuning.table import Table

_GAP = 1e-4
_ROUNDS = 4
_TRIALS = 6
"""Recipes that are saved and run at most to find one that keeps the limits of files and time."""
_CLOSE = 0.985
"""A file of this share of the limit is not worth another round, which codes the whole model."""


@checked
def allocate(table: Table, budget: Budget, *, seconds: float = 5.0) -> Recipe:
    """Choose for every layer, so that the predicted loss is least within the budget.

    ``min sum_l loss_l(c_l)`` subject to ``sum_l bytes_l(c_l) <= bytes`` and the like for multiply-accumulates; with a limit of
    the loss alone, the fewest bytes. Solved to optimality by branch and cut, or as far as it comes in time. Where the table has
    the model's variables, the tensors are packed and coded as a file will have them, and the limit is of those bytes.

    Args:
      table: of `measure`.
      budget: the limits; several hold at once.
      seconds: after which the best found so far is taken; its `Recipe.gap` says how far from the best it may be.

    Raises:
      ValueError: for a limit that no recipe keeps, with the least there is, or limits that cannot be kept together.

    Example:
      >>> from lepton_jax.core.weight_axes import WeightAxes
      >>> from lepton_jax.tuning.layer import Layer
      >>> from lepton_jax.tuning.table import Cell
      >>> layer = Layer(shape=(8, 8), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=64.0)
      >>> coarse, fine = Choice(bits=2), Choice(bits=4)
      >>> cells = {
      ...     "a": {coarse: Cell(0.5, 20, 64.0), fine: Cell(0.1, 40, 64.0)},
      ...     "b": {coarse: Cell(0.2, 20, 64.0), fine: Cell(0.1, 40, 64.0)},
      ... }
      >>> table = Table(layers={"a": layer, "b": layer}, cells=cells, rest_bytes=10, rest_macs=0.0, divergence="kl")
      >>> recipe = allocate(table, Budget(bytes=70))
      >>> {path: str(choice) for path, choice in recipe.choices.items()}, recipe.bytes
      ({'a': '4 bits', 'b': '2 bits'}, 70)

    Source: Cheng et al. 2026 and Dong et al. 2020, "HAWQ-V2", choose bits so; here with sparsity and rank.
    """
    measured = {name: limit for name, limit in budget.limits.items() if name in MEASURED}
    limits = {name: limit for name, limit in budget.limits.items() if name not in MEASURED}
    return _verified(table, limits, measured, seconds) if measured else _allocated(table, limits, seconds)


def _allocated(table: Table, limits: Mapping[str, float], seconds: float) -> Recipe:
    problem = _Problem.of(table)
    if table.variables is None or "bytes" not in limits:
        chosen = problem.solve(limits, seconds)
        return recipe_of(table, problem.choices(chosen.x), gap=chosen.gap)
    return _spent(problem, table, limits, seconds)


def _verified(table: Table, limits: Mapping[str, float], measured: Mapping[str, float], seconds: float) -> Recipe:
    """Save and run what is allocated, and allocate again with less, until the file and the engine keep their limits."""
    if table.deployed is None:
        raise ValueError(f"allocate: {' and '.join(measured)}: needs the table as `measure` returns it, not one that was read.")
    inner, words = dict(limits), ""
    for _ in range(_TRIALS):
        try:
            found = _allocated(table, inner, seconds)
        except ValueError as error:
            raise ValueError(f"{error}{words}") from error
        found = verified(table, found, measured)
        reached = {name: float(getattr(found, name)) for name in measured}
        over = {name: reached[name] / limit for name, limit in measured.items()}
        words = f" {_named(measured)} was asked for; {_named(reached)} was reached."
        if max(over.values()) <= 1:
            return found
        if over.get("file_bytes", 0) > 1:
            inner["bytes"] = min(
                inner.get("bytes", np.inf), found.bytes - 1.01 * (reached["file_bytes"] - measured["file_bytes"])
            )
        if over.get("latency", 0) > 1:
            inner["macs"] = min(inner.get("macs", np.inf), found.macs * min(0.97 / over["latency"], 0.95))
        if inner.get("bytes", 1) <= 0:
            break
    raise ValueError(
        f"allocate: no recipe was found that keeps {_named(measured)};{words} Raise it, or measure smaller choices."
    )


def verified(table: Table, recipe: Recipe, limits: Mapping[str, float]) -> Recipe:
    """Return a recipe with what its file and its time are, of those that are limited.

    Args:
      table: of `measure`.
      recipe: of this table.
      limits: by name; those that are not measured of a finished model are passed over.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.tuning import Bits, measure
      >>> table = measure(lambda v, x: x @ v["w"], {"w": jnp.eye(4)}, [jnp.eye(4)], [Bits(4)], progress=False)
      >>> verified(table, allocate(table, Budget(bytes=90)), {"file_bytes": 5000}).file_bytes > 100
      True
    """
    assert table.deployed is not None
    assert table.packing is not None
    return dataclasses.replace(recipe, **table.deployed.costs(table.packing.packed(recipe.choices), limits))  # type: ignore[arg-type]


def _spent(problem: _Problem, table: Table, limits: Mapping[str, float], seconds: float) -> Recipe:
    """A file chooses among more coders than the table: spend what they save, as long as the file fits."""
    limit, share, best = limits["bytes"], 1.0, None
    seen: list[Mapping[Path, Choice]] = []
    for _ in range(_ROUNDS):
        try:
            chosen = problem.solve({**limits, "bytes": limit * share}, seconds)
        except ValueError:  # the least by quick coders may be above the limit, and the file's below
            share *= 1.05
            continue
        found = recipe_of(table, problem.choices(chosen.x), gap=chosen.gap)
        if found.bytes <= limit and (best is None or found.loss < best.loss):
            best = found
        if found.choices in seen or _CLOSE * limit <= found.bytes <= limit:
            break
        seen.append(found.choices)
        share *= limit / found.bytes * (1 if found.bytes <= limit else 0.995)
    if best is None:
        others = {name: value for name, value in limits.items() if name != "bytes"}
        best = recipe_of(table, problem.choices(problem.solve(others, seconds, least="bytes").x))
        if best.bytes > limit:
            least = recipe_of(table, problem.choices(problem.solve({}, seconds, least="bytes").x)).bytes
            raise ValueError(_too_little("bytes", limit, least) if least > limit else _together(limits))
    return best


def recipe_of(table: Table, choices: Mapping[Path, Choice], gap: float = 0.0) -> Recipe:
    """Return the recipe of a choice for every layer of a table, with what it costs.

    Args:
      table: of `measure`.
      choices: by path; of those that the table has.
      gap: see `Recipe`.

    Example:
      >>> from lepton_jax.core.weight_axes import WeightAxes
      >>> from lepton_jax.tuning.layer import Layer
      >>> from lepton_jax.tuning.table import Cell
      >>> layer = Layer(shape=(8, 8), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=64.0)
      >>> cells = {"w": {Choice(bits=2): Cell(0.5, 20, 64.0)}}
      >>> table = Table(layers={"w": layer}, cells=cells, rest_bytes=10, rest_macs=0.0, divergence="kl")
      >>> recipe_of(table, {"w": Choice(bits=2)}).bytes
      30
    """
    cells = {path: table.cells[path][choice] for path, choice in choices.items()}
    settled: dict[Path, Any] = {path: table.layers[path].settled(choice) for path, choice in choices.items()}
    if table.packing is None:
        size = table.rest_bytes + sum(cell.bytes for cell in cells.values())
    else:
        size = table.packing.bytes(settled)
    return Recipe(
        layers=dict(table.layers),
        choices=settled,
        loss=sum(cell.loss for cell in cells.values()),
        bytes=size,
        macs=table.rest_macs + sum(cell.macs for cell in cells.values()),
        gap=gap,
    )


class _Solved(NamedTuple):
    x: np.ndarray
    gap: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Problem:
    """A table as vectors over all pairs of a layer and a choice."""

    pairs: list[tuple[Path, Choice]]
    costs: dict[str, np.ndarray]
    rest: dict[str, float]
    one_each: Any

    @classmethod
    def of(cls, table: Table) -> _Problem:
        pairs = [(path, choice) for path, cells in table.cells.items() for choice in cells]
        cells = [table.cells[path][choice] for path, choice in pairs]
        places = {path: row for row, path in enumerate(table.cells)}
        rows = [places[path] for path, _ in pairs]
        one_each = sparse.csr_matrix((np.ones(len(pairs)), (rows, range(len(pairs)))), shape=(len(places), len(pairs)))
        costs = {name: np.array([getattr(cell, name) for cell in cells], float) for name in ("loss", "bytes", "macs")}
        rest = {"loss": 0.0, "bytes": float(table.rest_bytes), "macs": table.rest_macs}
        return cls(pairs=pairs, costs=costs, rest=rest, one_each=one_each)

    def choices(self, x: np.ndarray) -> dict[Path, Choice]:
        return {path: choice for (path, choice), taken in zip(self.pairs, x) if taken > 0.5}

    def solve(self, limits: Mapping[str, float], seconds: float, least: str = "") -> _Solved:
        """Make least what is named; by default the loss, or the size where only the loss is limited."""
        least = least or ("bytes" if set(limits) == {"loss"} else "loss")
        wanted = self.costs[least]
        scale = float(wanted.max()) or 1.0
        changed = np.array([choice != Choice() for _, choice in self.pairs])  # of equals, the layer as it is
        constraints = [optimize.LinearConstraint(self.one_each, 1, 1)]
        for name, limit in limits.items():
            room = limit - self.rest[name]
            unit = float(self.costs[name].max()) or 1.0
            constraints.append(optimize.LinearConstraint(self.costs[name][None] / unit, -np.inf, room / unit))
        found = optimize.milp(
            wanted / scale + 1e-9 * changed,
            constraints=constraints,
            integrality=np.ones(len(self.pairs)),
            bounds=optimize.Bounds(0, 1),
            options={"mip_rel_gap": _GAP, "time_limit": seconds},
        )
        if found.x is None:
            raise ValueError(self._refusal(limits))
        x = np.round(found.x)
        for name, limit in limits.items():  # the solver keeps limits to a millionth
            if x @ self.costs[name] + self.rest[name] > limit:
                return self.solve({**limits, name: limit - 1e-6 * abs(limit)}, seconds, least)
        return _Solved(x, float(found.mip_gap or 0.0))

    def _refusal(self, limits: Mapping[str, float]) -> str:
        for name, limit in limits.items():
            smallest = self.rest[name] + self._least(name)
            if smallest > limit:
                return _too_little(name, limit, smallest)
        return _together(limits)

    def _least(self, name: str) -> float:
        """The sum over layers of the least there is of one cost."""
        least: dict[Path, float] = {}
        for (path, _), cost in zip(self.pairs, self.costs[name]):
            least[path] = min(cost, least.get(path, np.inf))
        return sum(least.values())


def _named(limits: Mapping[str, float]) -> str:
    return " and ".join(f"{name}={limit:,g}" for name, limit in limits.items())


def _together(limits: Mapping[str, float]) -> str:
    return f"allocate: no recipe keeps {_named(limits)} together, though each can be kept alone; raise one of them."


def _too_little(name: str, limit: float, least: float) -> str:
    return (
        f"allocate: {name}={limit:,g} is less than the smallest recipe needs, {least:,g}; raise it, or measure smaller choices."
    )
