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
from lepton_jax.tuning.groups import cut, settled
from lepton_jax.tuning.options import Choice
from lepton_jax.tuning.outputs import Outputs
from lepton_jax.tuning.packing import Packing
from lepton_jax.tuning.recipe import Recipe
from lepton_jax.tuning.table import Table

Choices = dict[Path | tuple[str], Choice | float]
"""A choice by the path of a layer, and a fraction by the name of a group of channels in a tuple of its own."""
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

    Neighbours are recipes in which one layer or group of channels has another choice, or two have. Those of the least predicted
    loss are tried first, and the first that is better is gone on from, until none is or the evaluations are spent.

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
    search = _Search(table, packing, outputs, _limits(recipe, budget, table))
    here = search.choices_of(recipe)
    before = loss = search.measure(here)
    with tqdm(total=evaluations, desc="refine", unit="recipe", disable=not progress, initial=1) as bar:
        while (better := search.step(here, loss, evaluations, bar)) is not None:
            here, loss = better
    best = dataclasses.replace(search.recipe(here), measured=loss)
    return Refined(recipe=best, before=before, evaluations=len(search.known), front=search.front())


def _limits(recipe: Recipe, budget: Budget, table: Table) -> dict[str, float]:
    """Those that the search keeps: of files and time besides what the recipe takes by the table, which is looked at first."""
    limits = {name: value for name, value in budget.limits.items() if name != "loss"}
    if not limits or "file_bytes" in limits:
        limits["bytes"] = min(limits.get("bytes", recipe.bytes), recipe.bytes)
    if "latency" in limits and "latency" not in table.modelled:
        limits["macs"] = min(limits.get("macs", recipe.macs), recipe.macs)
    return limits


class _Search:
    """Recipes of a table that were measured."""

    def __init__(self, table: Table, packing: Packing, outputs: Outputs, limits: Mapping[str, float]) -> None:
        self.table, self.outputs, self.limits, self._packing = table, outputs, limits, packing
        self.known: dict[tuple[Choice | float, ...], float] = {}
        self._scale: dict[str, float] = {}
        self._recipes: dict[tuple[Choice | float, ...], Recipe] = {}
        self._ratios: dict[tuple[Any, ...], float] = {}
        self._groups: dict[Path, list[str]] = {}

    def choices_of(self, recipe: Recipe) -> Choices:
        """The table's choices that a recipe's are, before ranks were settled."""
        found: Choices = {}
        for path, wanted in recipe.choices.items():
            layer = cut(self.table.layers[path], path, recipe.channels) if path in self.table.layers else None
            same = [c for c in self.table.cells.get(path, {}) if layer is not None and settled(layer, c) == wanted]
            if not same:
                raise ValueError(f"refine: the table has no {wanted} for {path}; give the table that the recipe was made from.")
            found[path] = same[0]
        if self.table.groups is not None:
            found |= {(name,): f for name, f in self.table.groups.fractions_of(recipe.channels).items()}
        elif recipe.channels is not None:
            raise ValueError("refine: the table has no channels that go; give the table that the recipe was made from.")
        # What the file's coders save, so that the table's bytes may be that much above the limit.
        predicted = self.costs(found)
        self._scale["bytes"] = recipe.bytes / max(predicted["bytes"], 1)
        if recipe.latency is not None and predicted.get("latency"):  # as the engine has it
            self._scale["latency"] = recipe.latency / predicted["latency"]
        return found

    def costs(self, choices: Choices) -> dict[str, float]:
        """By the table; of bytes and latency, times what files and the engine take of that."""
        layers, gone = _apart(choices)
        found = {name: float(getattr(self.table, f"rest_{name}")) for name in self.table.modelled} | {"loss": 0.0}
        for path, choice in layers.items():
            cell, ratio = self.table.cells[path][choice], self._ratio(path, gone)
            for name in found:
                found[name] += float(getattr(cell, name) or 0) * (1 if name == "loss" else ratio)
        for group, f in gone.items():
            if f:
                for name in found:
                    found[name] += float(getattr(self.table.groups.cells[group][f], name, 0))  # type: ignore[union-attr]
        return {name: cost * self._scale.get(name, 1.0) for name, cost in found.items()}

    def _ratio(self, path: Path, gone: Mapping[str, float]) -> float:
        if self.table.groups is None:
            return 1.0
        key = (path, *(gone[name] for name in self._own(path)))
        if key not in self._ratios:
            self._ratios[key] = self.table.groups.ratio(path, gone)
        return self._ratios[key]

    def _own(self, path: Path) -> list[str]:
        if path not in self._groups:
            assert self.table.groups is not None
            self._groups[path] = list(dict.fromkeys(n for block in self.table.groups.blocks(path) for n in block.groups))
        return self._groups[path]

    def measure(self, choices: Choices) -> float:
        """The measured loss of a recipe."""
        key = tuple(choices.values())
        if key not in self.known:
            layers, gone = _apart(choices)
            channels = self.table.groups.plan_of(gone) if self.table.groups else None
            settle = {p: settled(cut(self.table.layers[p], p, channels), choice) for p, choice in layers.items()}
            self.known[key] = self.outputs.of(self._packing.seen(settle, channels))
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
        names: list[Any] = [*self.table.cells, *((name,) for name in (self.table.groups.cells if self.table.groups else ()))]
        points = sorted((round(self.costs(dict(zip(names, key)))["bytes"]), loss) for key, loss in self.known.items())
        kept: list[tuple[int, float]] = []
        for size, loss in points:
            if not kept or loss < kept[-1][1]:
                kept.append((size, loss))
        return tuple(kept)

    def _neighbours(self, here: Choices) -> Iterator[Choices]:
        """Recipes that differ in one place or two and fit by the table, those of the least predicted loss first."""
        cells, groups = self.table.cells, self.table.groups.cells if self.table.groups else {}
        moves: list[tuple[Any, Any]] = [(path, choice) for path in cells for choice in cells[path] if choice != here[path]]
        moves += [((name,), f) for name in groups for f in (0.0, *groups[name]) if f != here[name,]]
        now = self.costs(here)
        changes = [{name: cost - now[name] for name, cost in self.costs({**here, place: to}).items()} for place, to in moves]
        room = {name: self.limits.get(name, float("inf")) - now[name] for name in self.table.modelled}
        pairs = ((a, b) for a, b in itertools.combinations(range(len(moves)), 2) if moves[a][0] != moves[b][0])
        found: list[tuple[float, int, Any]] = []
        for some in itertools.chain(((number,) for number in range(len(moves))), pairs):
            if all(sum(changes[n][name] for n in some) <= left for name, left in room.items()):
                found.append((sum(changes[n]["loss"] for n in some), len(found), some))
        for _, _, some in sorted(found)[:_TRIES]:
            yield {**here, **dict(moves[n] for n in some)}

    def _fits(self, choices: Choices) -> bool:
        """Whether all limits are kept: tensors packed and coded, the file saved, the engine run."""
        found = recipe_of(self.table, *_apart(choices))
        if any(getattr(found, name) > self.limits[name] for name in ("bytes", "macs") if name in self.limits):
            return False
        found = self.recipe(choices)
        return all(getattr(found, name) <= self.limits[name] for name in MEASURED if name in self.limits)

    def recipe(self, choices: Choices) -> Recipe:
        """Choices as a recipe, with what was limited of its file and its time."""
        key = tuple(choices.values())
        if key not in self._recipes:
            found = recipe_of(self.table, *_apart(choices))
            wanted = {name: limit for name, limit in self.limits.items() if name in MEASURED}
            self._recipes[key] = verified(self.table, found, wanted) if wanted else found
        return self._recipes[key]


def _apart(choices: Choices) -> tuple[dict[Path, Choice], dict[str, float]]:
    """The choices of layers, and the fractions of groups."""
    layers = {place: to for place, to in choices.items() if isinstance(place, str) and isinstance(to, Choice)}
    return layers, {place[0]: to for place, to in choices.items() if not isinstance(place, str) and not isinstance(to, Choice)}
