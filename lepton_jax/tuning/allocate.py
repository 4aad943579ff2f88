"""The best choice for every layer within a budget: a multiple-choice knapsack, by a solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Path
from lepton_jax.tuning.budget import Budget
from lepton_jax.tuning.deployed import MEASURED
from lepton_jax.tuning.groups import Fractions, cut, settled
from lepton_jax.tuning.options import Choice
from lepton_jax.tuning.problem import Problem, shown, together, too_little
from lepton_jax.tuning.recipe import Recipe
from lepton_jax.tuning.table import Table

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
    problem = Problem.of(table)
    if table.variables is None or "bytes" not in limits:
        chosen = problem.solve(limits, seconds)
        return recipe_of(table, *problem.chosen(chosen.x), gap=chosen.gap)
    return _spent(problem, table, limits, seconds)


def _verified(table: Table, limits: Mapping[str, float], measured: Mapping[str, float], seconds: float) -> Recipe:
    """Save and run what is allocated, and allocate again with less, until the file and the engine keep their limits."""
    if table.deployed is None:
        raise ValueError(f"allocate: {' and '.join(measured)}: needs the table as `measure` returns it, not one that was read.")
    inner, words = dict(limits), ""
    if "latency" in measured and "latency" in table.modelled:
        inner["latency"] = measured["latency"]
    for _ in range(_TRIALS):
        try:
            found = _allocated(table, inner, seconds)
        except ValueError as error:
            if words or "latency" not in inner:
                raise ValueError(f"{error}{words}") from error
            found = _quickest(table, limits, seconds)  # layers alone may take more than in the model
        found = verified(table, found, measured)
        reached = {name: float(getattr(found, name)) for name in measured}
        over = {name: reached[name] / limit for name, limit in measured.items()}
        words = f" {shown(measured)} was asked for; {shown(reached)} was reached."
        if max(over.values()) <= 1:
            return found
        if over.get("file_bytes", 0) > 1:
            inner["bytes"] = min(
                inner.get("bytes", np.inf), found.bytes - 1.01 * (reached["file_bytes"] - measured["file_bytes"])
            )
        if over.get("latency", 0) > 1:
            less = min(0.97 / over["latency"], 0.95)
            if "latency" in inner:
                inner["latency"] *= less
            else:
                inner["macs"] = min(inner.get("macs", np.inf), found.macs * less)
        if inner.get("bytes", 1) <= 0:
            break
    raise ValueError(
        f"allocate: no recipe was found that keeps {shown(measured)};{words} Raise it, or measure smaller choices."
    )


def _quickest(table: Table, limits: Mapping[str, float], seconds: float) -> Recipe:
    """The recipe of the least predicted latency."""
    problem = Problem.of(table)
    return recipe_of(table, *problem.chosen(problem.solve(limits, seconds, least="latency").x))


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
    packed = table.packing.packed(recipe.choices, recipe.channels)
    return dataclasses.replace(recipe, **table.deployed.costs(packed, limits, recipe.channels))  # type: ignore[arg-type]


def _spent(problem: Problem, table: Table, limits: Mapping[str, float], seconds: float) -> Recipe:
    """A file chooses among more coders than the table: spend what they save, as long as the file fits."""
    limit, share, best = limits["bytes"], 1.0, None
    seen: list[Any] = []
    for _ in range(_ROUNDS):
        try:
            chosen = problem.solve({**limits, "bytes": limit * share}, seconds)
        except ValueError:  # the least by quick coders may be above the limit, and the file's below
            share *= 1.05
            continue
        found = recipe_of(table, *problem.chosen(chosen.x), gap=chosen.gap)
        if found.bytes <= limit and (best is None or found.loss < best.loss):
            best = found
        if (key := problem.chosen(chosen.x)) in seen or _CLOSE * limit <= found.bytes <= limit:
            break
        seen.append(key)
        share *= limit / found.bytes * (1 if found.bytes <= limit else 0.995)
    if best is None:
        others = {name: value for name, value in limits.items() if name != "bytes"}
        best = recipe_of(table, *problem.chosen(problem.solve(others, seconds, least="bytes").x))
        if best.bytes > limit:

            def least(some: Mapping[str, float]) -> int:
                return recipe_of(table, *problem.chosen(problem.solve(some, seconds, least="bytes").x)).bytes

            if (smallest := least({})) > limit:
                raise ValueError(too_little("bytes", limit, smallest))
            alone = [name for name in others if least({name: others[name]}) > limit]
            raise ValueError(together({name: limits[name] for name in ("bytes", *(alone[:1] or others))}))
    return best


def recipe_of(table: Table, choices: Mapping[Path, Choice], fractions: Fractions | None = None, gap: float = 0.0) -> Recipe:
    """Return the recipe of a choice for every layer of a table, with what it costs.

    Args:
      table: of `measure`.
      choices: by path; of those that the table has.
      fractions: of the channels of each group that go, likewise.
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
    gone = fractions or {}
    channels = table.groups.plan_of(gone) if table.groups else None
    removals = [table.groups.cells[name][f] for name, f in gone.items() if f] if table.groups else []
    cells = {path: table.cells[path][choice] for path, choice in choices.items()}
    layers = {path: cut(layer, path, channels) for path, layer in table.layers.items()}
    settle = {path: settled(layers[path], choice) for path, choice in choices.items()}
    work = {path: cell.macs if channels is None else layers[path].macs_of(settle[path]) for path, cell in cells.items()}
    if table.packing is None:
        shares = {path: table.groups.ratio(path, gone) if table.groups else 1 for path in cells}
        size = table.rest_bytes + round(sum(shares[path] * cell.bytes for path, cell in cells.items()))
        size += sum(cell.bytes for cell in removals)
    else:
        size = table.packing.bytes(settle, channels)
    return Recipe(
        layers=layers,
        choices=settle,
        channels=channels,
        loss=sum(cell.loss for cell in cells.values()) + sum(cell.loss for cell in removals),
        bytes=size,
        macs=table.rest_macs + sum(work.values()) + sum(cell.macs for cell in removals),
        gap=gap,
    )
