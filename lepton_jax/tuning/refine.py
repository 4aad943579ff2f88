"""A better recipe by measurement: change one layer, or trade between two, as long as the model's own outputs gain."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Path
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.trace import Apply
from lepton_jax.tuning.allocate import recipe_of, verified
from lepton_jax.tuning.budget import Budget
from lepton_jax.tuning.deployed import MEASURED
from lepton_jax.tuning.options import Choice
from lepton_jax.tuning.outputs import Outputs
from lepton_jax.tuning.packing import Packing
from lepton_jax.tuning.recipe import Recipe
from lepton_jax.tuning.table import Table

Choices = dict[Path, Choice]
_TRIES = 400
"""Neighbours of a recipe that are tried at most."""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Refined:
    """What `refine` found.

    Attributes:
      recipe: the best, with its measured loss.
      before: the measured loss of the recipe that it began with.
      evaluations: how many recipes were measured.
      front: (bytes by the table, measured loss) of those recipes of which none was both smaller and better, the smallest first.

    Example:
      >>> from lepton_jax.tuning import Recipe
      >>> recipe = Recipe(layers={}, choices={}, loss=0.0, bytes=9, macs=0.0, gap=0.0, measured=0.1)
      >>> Refined(recipe=recipe, before=0.2, evaluations=7, front=((9, 0.1),)).before
      0.2
    """

    recipe: Recipe
    before: float
    evaluations: int
    front: tuple[tuple[int, float], ...]


@checked
def refine(
    recipe: Recipe,
    table: Table,
    budget: Budget,
    apply: Apply,
    batches: Iterable[Any],
    *,
    evaluations: int = 200,
    progress: bool = True,
) -> Refined:
    """Search around a recipe, measuring the whole model each time, within the same budget.

    Neighbours are recipes in which one layer has another choice, or two layers have. Those of the least predicted loss are
    tried first, and the first that is better is gone on from, until none is or the evaluations are spent.

    Args:
      recipe: of `allocate`.
      table: of `measure`, with the model's variables.
      budget: of `allocate`; with a limit of the loss alone, the bytes of the recipe are the limit.
      apply: of `measure`.
      batches: inputs to measure on: those of `measure`, or more.
      evaluations: the most recipes to measure.
      progress: show a bar.

    Raises:
      ValueError: for a table without variables, or a recipe of another table.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.tuning import Bits, allocate, measure
      >>> variables, x = {"a": jnp.eye(16) * 0.9, "b": jnp.eye(16) * 0.7}, jnp.eye(16)
      >>> apply = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"]
      >>> table = measure(apply, variables, [x], [Bits(2, 3, 4)], progress=False)
      >>> budget = Budget(bytes=200)
      >>> found = refine(allocate(table, budget), table, budget, apply, [x], evaluations=8, progress=False)
      >>> found.recipe.measured <= found.before, found.recipe.bytes <= 200
      (True, True)
    """
    check_whole("refine: evaluations", evaluations, 1)
    if (packing := table.packing) is None:
        raise ValueError("refine: the table must have the model's variables, as `measure` returns it.")
    outputs = Outputs(apply, table.variables, [as_inputs(batch) for batch in batches], table.divergence)  # type: ignore[arg-type]
    search = _Search(table, packing, outputs, _limits(recipe, budget))
    here = search.choices_of(recipe)
    before = loss = search.measure(here)
    with tqdm(total=evaluations, desc="refine", unit="recipe", disable=not progress, initial=1) as bar:
        while (better := search.step(here, loss, evaluations, bar)) is not None:
            here, loss = better
    best = dataclasses.replace(search.recipe(here), measured=loss)
    return Refined(recipe=best, before=before, evaluations=len(search.known), front=search.front())


def _limits(recipe: Recipe, budget: Budget) -> dict[str, float]:
    """Those that the search keeps: of files and time besides what the recipe takes by the table, which is looked at first."""
    limits = {name: value for name, value in budget.limits.items() if name != "loss"}
    if not limits or "file_bytes" in limits:
        limits["bytes"] = min(limits.get("bytes", recipe.bytes), recipe.bytes)
    if "latency" in limits:
        limits["macs"] = min(limits.get("macs", recipe.macs), recipe.macs)
    return limits


class _Search:
    """Recipes of a table that were measured."""

    def __init__(self, table: Table, packing: Packing, outputs: Outputs, limits: Mapping[str, float]) -> None:
        self.table, self.outputs, self.limits, self._packing = table, outputs, limits, packing
        self.known: dict[tuple[Choice, ...], float] = {}
        self._over: float | None = None
        self._recipes: dict[tuple[Choice, ...], Recipe] = {}

    def choices_of(self, recipe: Recipe) -> Choices:
        """The table's choices that a recipe's are, before ranks were settled."""
        found = {}
        for path, wanted in recipe.choices.items():
            same = [c for c in self.table.cells.get(path, {}) if self.table.layers[path].settled(c) == wanted]
            if not same:
                raise ValueError(f"refine: the table has no {wanted} for {path}; give the table that the recipe was made from.")
            found[path] = same[0]
        # What the file's coders save, so that the table's bytes may be that much above the limit.
        self._over = recipe.bytes / max(self.bytes_of(found), 1)
        return found

    def bytes_of(self, choices: Choices) -> float:
        """By the table, times what files take of that."""
        total = self.table.rest_bytes + sum(self.table.cells[path][choice].bytes for path, choice in choices.items())
        return total * (self._over or 1.0)

    def measure(self, choices: Choices) -> float:
        """The measured loss of a recipe."""
        key = tuple(choices.values())
        if key not in self.known:
            settled: dict[Path, Any] = {path: self.table.layers[path].settled(choice) for path, choice in choices.items()}
            self.known[key] = self.outputs.of(self._packing.seen(settled))
        return self.known[key]

    def step(self, here: Choices, loss: float, evaluations: int, bar: Any) -> tuple[Choices, float] | None:
        """The first neighbour that is better, and fits; None if there is none or no more may be measured."""
        for there in self._neighbours(here):
            if tuple(there.values()) in self.known:
                continue
            if len(self.known) >= evaluations:
                return None
            found = self.measure(there)
            bar.update()
            if found < loss and self._fits(there):
                return there, found
        return None

    def front(self) -> tuple[tuple[int, float], ...]:
        """Of all that was measured, what nothing beats in both."""
        names = list(self.table.cells)
        points = sorted((round(self.bytes_of(dict(zip(names, key)))), loss) for key, loss in self.known.items())
        kept: list[tuple[int, float]] = []
        for size, loss in points:
            if not kept or loss < kept[-1][1]:
                kept.append((size, loss))
        return tuple(kept)

    def _neighbours(self, here: Choices) -> Iterator[Choices]:
        """Recipes that differ in one layer or two and fit by the table, those of the least predicted loss first."""
        cells = self.table.cells
        moves = [(path, choice) for path in cells for choice in cells[path] if choice != here[path]]
        pairs = ((a, b) for a, b in itertools.combinations(moves, 2) if a[0] != b[0])

        def change(move: tuple[Path, Choice], name: str) -> float:
            return getattr(cells[move[0]][move[1]], name) - getattr(cells[move[0]][here[move[0]]], name)

        room = {"bytes": self.limits.get("bytes", float("inf")) - self.bytes_of(here)}
        room["macs"] = (
            self.limits.get("macs", float("inf")) - self.table.rest_macs - sum(cells[p][c].macs for p, c in here.items())
        )
        found: list[tuple[float, int, Any]] = []
        for group in itertools.chain(((move,) for move in moves), pairs):
            needed = {
                "bytes": (self._over or 1.0) * sum(change(m, "bytes") for m in group),
                "macs": sum(change(m, "macs") for m in group),
            }
            if all(needed[name] <= room[name] for name in needed):
                found.append((sum(change(move, "loss") for move in group), len(found), group))
        for _, _, group in sorted(found)[:_TRIES]:
            yield {**here, **dict(group)}

    def _fits(self, choices: Choices) -> bool:
        """Whether all limits are kept: tensors packed and coded, the file saved, the engine run."""
        if "bytes" in self.limits and recipe_of(self.table, choices).bytes > self.limits["bytes"]:
            return False
        found = self.recipe(choices)
        return all(getattr(found, name) <= self.limits[name] for name in MEASURED if name in self.limits)

    def recipe(self, choices: Choices) -> Recipe:
        """Choices as a recipe, with what was limited of its file and its time."""
        key = tuple(choices.values())
        if key not in self._recipes:
            found = recipe_of(self.table, choices)
            wanted = {name: limit for name, limit in self.limits.items() if name in MEASURED}
            self._recipes[key] = verified(self.table, found, wanted) if wanted else found
        return self._recipes[key]
