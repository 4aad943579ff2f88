"""Recipes that are found against those that are the same for every layer, at the same bytes of tensors.

Every seed has a network of its own, trained here, or all have a published one; each network has one table of what its layers
can bear, measured on training images without their labels. A budget is a fraction of the bytes in float32. "uniform" is one
choice for all layers, of all that fit into the budget the one of the least divergence; "tuned" is allocated and refined;
"bits", "zeros" and "rank" are tuned with that technique alone. Divergences are of the test images. Rows that are trained go on
from the tuned recipe with labels and the answers of the dense network; what they are compared with is said in the config.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common import members, study
from experiments.common.columns import figure, reference, setting, tabulate
from experiments.common.config import Adam, Momentum
from experiments.common.deployed import file_bytes, logits
from experiments.common.figures import Drawing, accuracy_against, point_of
from experiments.common.measuring import History, packed_variables
from experiments.common.results import Result, gain
from experiments.common.study import Cell, Parts
from experiments.common.training_study import TrainingRunner, TrainingStudy
from lepton_jax import identity
from lepton_jax.artifact import tensor_bytes
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import PyTree
from lepton_jax.data import shuffled
from lepton_jax.distillation import Distill, LogitTerm, Outputs, by_part, distillation_loss, part, soft_targets
from lepton_jax.models import ResNet, ResNetCifar
from lepton_jax.training import TrainState, create, make_train_step, stacked
from lepton_jax.tuning import Bits, Budget, Choice, Option, Rank, Recipe, Sparsity, Table, allocate, measure, refine
from lepton_jax.tuning.allocate import recipe_of
from lepton_jax.tuning.outputs import Outputs as Divergence

Kind = Literal["dense", "uniform", "tuned", "bits", "zeros", "rank", "trained"]
DENSE = "dense"
ALONE: Mapping[Kind, Callable[[Choice], bool]] = {
    "bits": lambda choice: not (choice.sparsity or choice.rank),
    "zeros": lambda choice: not (choice.bits or choice.rank),
    "rank": lambda choice: not (choice.bits or choice.sparsity),
}
"""Which choices a technique alone has."""
_BATCH = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One way to find a recipe, at one budget."""

    kind: Kind
    """Which."""
    smaller: float | None = None
    """How many times fewer bytes than in float32 the tensors may take; None: as they are."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if (self.smaller is None) != (self.kind == DENSE) or not (self.smaller or 2) > 1:
            yield f"smaller: must be above 1, and None for {DENSE} alone; got {self.smaller}"

    @property
    def settings(self) -> dict[str, Any]:
        """The budget."""
        return {"smaller": self.smaller}

    @property
    def label(self) -> str:
        """Names files."""
        return self.name if self.smaller is None else f"{self.name}-{self.smaller:g}"


def rows(budgets: Sequence[float], trained: Sequence[float] = ()) -> tuple[Row, ...]:
    """Return the dense row, those of every kind at every budget, and those that are trained."""
    kinds: tuple[Kind, ...] = ("uniform", "tuned", *ALONE)
    pairs: list[tuple[Kind, float]] = [(kind, smaller) for smaller in budgets for kind in kinds]
    pairs += [("trained", smaller) for smaller in trained]
    return (Row(name=DENSE, kind="dense"), *(Row(name=kind, kind=kind, smaller=smaller) for kind, smaller in pairs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(TrainingStudy):
    """A table: rows are ways to find a recipe; `epochs` are those of the training after it."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The ways."""
    bits: tuple[int, ...] = (2, 3, 4, 6)
    """What a layer may have."""
    sparsity: tuple[float, ...] = (0.5, 0.75)
    """Fractions of a layer that may be zero."""
    rank: tuple[float, ...] = (0.25,)
    """Fractions of a layer's full rank that it may have."""
    trained_sparsity: tuple[float, ...] = (0.7, 0.85, 0.9, 0.95)
    """The same of rows that are trained, which have no ranks, and at most 4 bits."""
    weights: Path | None = None
    """A file of published weights to begin at; None: train in float32 beforehand."""
    dense_epochs: int = 0
    """Passes in float32 beforehand."""
    dense_optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of those."""
    optimizer: Adam | Momentum = dataclasses.field(default_factory=Adam)
    """Of the training after it."""
    calibration: int = 500
    """Training images that tables are measured on."""
    evaluations: int = 50
    """Recipes that a refinement measures at most."""
    temperature: float = 2.0
    """Of the dense network's answers."""
    soft: float = 0.5
    """Weight of these; labels have the rest."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "calibration", "evaluations")
        if (self.dense_epochs >= 1) == (self.weights is not None):
            yield f"either dense_epochs or weights; got {self.dense_epochs} and {self.weights}"
        if self.weights is not None and not isinstance(self.model, ResNet | ResNetCifar):
            yield f"weights: are read for residual networks only; the model is a {type(self.model).__name__}"

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        return parts(results)


def parts(results: Sequence[Result]) -> Parts:
    """Return the parts of a report: the table, the front, and what was found."""
    found = [one for one in results if one["error"]]
    drawing = Drawing(file="front.png", alternative="accuracy against bytes", draw=partial(_front, results=found))
    lines = tabulate(found, COLUMNS, reference(found, DENSE))
    none = [f"{one['row']}, {one['settings']['smaller']:g}x smaller" for one in results if not one["error"]]
    said = notes(found) + ([f"No recipe is as small: {'; '.join(none)}."] if none else [])
    return [lines, *([drawing] if len(found) > 1 else []), "## What was found", "\n".join(f"- {note}" for note in said)]


COLUMNS = (
    setting("budget", "smaller", lambda smaller: "" if smaller is None else f"{smaller:g}x smaller"),
    "row",
    figure("KL to the dense network, nats", "kl", 4),
    *("accuracy", "change", "validation"),
    figure("bytes of tensors", "tensor_bytes", 0),
    figure("budget, bytes", "limit", 0),
    "bytes",
)


def notes(results: Sequence[Result]) -> list[str]:
    """Say at every budget how a tuned recipe compares with the best uniform one.

    Example:
      >>> common = {"settings": {"smaller": 8}, "seeds": [0], "limit": [9], "tensor_bytes": [9]}
      >>> pairs = (("uniform", {"kl": [1.0], "error": [0.2]}), ("tuned", {"kl": [0.4], "error": [0.1]}))
      >>> notes([{**common, "row": row, **figures} for row, figures in pairs])
      ['8x smaller: KL 0.400 of the best uniform recipe (at most half: held), accuracy +10.00 points (no less: held).']
    """
    found = {(one["row"], one["settings"]["smaller"]): one for one in results}
    said = []
    for (row, smaller), one in found.items():
        other = found.get(("uniform", smaller))
        if row == "tuned" and other is not None and other["kl"]:
            ratio, points = statistics.mean(one["kl"]) / statistics.mean(other["kl"]), gain(one, other)
            words = ("held" if holds else "missed" for holds in (ratio <= 0.5, points >= 0))
            text = (
                "{:g}x smaller: KL {:.3f} of the best uniform recipe (at most half: {}), accuracy {:+.2f} points (no less: {})."
            )
            first, second = words
            said.append(text.format(smaller, ratio, first, points, second))
    over = [one["row"] for one in results if any(a > b for a, b in zip(one["tensor_bytes"], one["limit"]))]
    return said + ([f"Over their budget: {', '.join(over)}."] if over else [])


def _front(path: Path, results: Sequence[Result]) -> None:
    shown = [one for one in results if one["error"] and one["settings"]["smaller"]]
    labels = [f"{one['settings']['smaller']:g}x" for one in shown]
    points = [point_of(one, "tensor_bytes", series=one["row"], label=label) for one, label in zip(shown, labels)]
    accuracy_against(path, points, cost="bytes of tensors in the file")


class Runner(TrainingRunner[Tuning]):
    """Finds every row's recipe for every seed's network."""

    @cached_property
    def before(self) -> list[TrainState]:
        """Every seed's dense network."""
        config = self.study
        if config.weights is not None and isinstance(config.model, ResNet | ResNetCifar):
            return stacked.apart(members.published(config.weights, config.model, self.seeds))
        return stacked.apart(self.trained(config.dense_optimizer, config.dense_epochs, f"{DENSE} beforehand"))

    @cached_property
    def model(self) -> Any:
        """The network, of all its variables."""
        return partial(logits, self.apply)

    def batches(self, seed: int) -> list[Any]:
        """Images that a seed's tables are measured on."""
        images = shuffled(self.dataset.train, seed=seed, epoch=0).images[: self.study.calibration]
        return [jnp.asarray(images[at : at + _BATCH]) for at in range(0, len(images), _BATCH)]

    @cached_property
    def tables(self) -> dict[tuple[Option, ...], list[Table]]:
        """Every seed's, by what may be done to a layer; made when they are asked for."""
        return {}

    def options(self, trained: bool) -> list[Option]:
        """Return what may be done to a layer."""
        config = self.study
        if trained:
            return [Bits(*(bits for bits in config.bits if bits <= 4)), Sparsity(*config.trained_sparsity)]
        zeros, ranks = (
            [Sparsity(*some) for some in (config.sparsity,) if some],
            [Rank(*some) for some in (config.rank,) if some],
        )
        return [Bits(*config.bits), *zeros, *ranks]

    def table(self, place: int, trained: bool) -> Table:
        """Return a seed's table; published weights have one, on the images of the first seed."""
        options, place = self.options(trained), place if self.study.weights is None else 0
        made = self.tables.setdefault(tuple(options), [])
        for run, seed in list(zip(self.before, self.seeds, strict=True))[len(made) : place + 1]:
            made.append(measure(self.model, variables_of(run), self.batches(seed), options))
        return made[place]

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        [cell] = cells
        row: Row = cell.row
        begun, found = time.perf_counter(), []
        for place, (run, seed) in enumerate(zip(self.before, self.seeds, strict=True)):
            limit = _dense_bytes(run) / (row.smaller or 1)
            if row.kind == DENSE:
                found.append(self.figures_of(run, identity(), run, limit))
                continue
            recipe = self.recipe(row, place, limit)
            if recipe is None:  # a row is of all seeds, or of none
                blank = dict.fromkeys(("error", "kl", "tensor_bytes", "limit"), ())
                return [{**{name: list(none) for name, none in blank.items()}, "seconds": time.perf_counter() - begun}]
            params, tstate = recipe.transform().init(run.params)
            after = run._replace(params=params, tstate=tstate)
            if row.kind == "trained":
                after = self.tuned(recipe.transform(), run, seed, cell.label)
            found.append(self.figures_of(run, recipe.transform(), after, limit, cell if place == 0 else None))
        files = {"file_bytes": found[0].pop("file_bytes")} if "file_bytes" in found[0] else {}
        figures = {name: [one[name] for one in found] for name in found[0]}
        return [{**figures, **files, "seconds": time.perf_counter() - begun}]

    def figures_of(
        self, dense: TrainState, transform: Transform, run: TrainState, limit: float, cell: Cell | None = None
    ) -> dict[str, Any]:
        """Return what is said of one seed's network."""
        packed = packed_variables(transform, run)
        view = transform.view(run.params, run.tstate)
        seen = variables_of(run._replace(params=view))
        errors = self.measured(identity(), [run._replace(params=view, tstate=())])
        images = jnp.asarray(self.dataset.test.images[: 4 * _BATCH])
        moved = Divergence(self.model, variables_of(dense), [(images,)], "kl").of(seen)
        figures: dict[str, Any] = {name: errors[name][0] for name in ("error", "validation_error") if name in errors}
        if cell is not None and self.study.files:
            path = self.path(cell, "files", "lepton")
            figures["file_bytes"] = file_bytes(self.apply, packed, self.dataset.test.images, path)
        return {**figures, "kl": moved, "tensor_bytes": tensor_bytes(packed), "limit": limit}

    def recipe(self, row: Row, place: int, limit: float) -> Recipe | None:
        """Return a row's recipe for a seed's network; None where none fits."""
        table, batches = self.table(place, row.kind == "trained"), self.batches(self.seeds[place])
        if row.kind == "uniform":
            return _uniform(table, Divergence(self.model, table.variables, [(one,) for one in batches], "kl"), limit)
        if row.kind in ALONE:
            wanted = ALONE[row.kind]
            table = dataclasses.replace(
                table, cells={p: {c: x for c, x in y.items() if wanted(c)} for p, y in table.cells.items()}
            )
        budget = Budget(bytes=limit * (0.97 if row.kind == "trained" else 1))  # weights that are trained take a little more
        try:
            recipe = allocate(table, budget)
        except ValueError:  # no choice of these is as small
            return None
        return refine(recipe, table, budget, self.model, batches, evaluations=self.study.evaluations).recipe

    def tuned(self, transform: Transform, run: TrainState, seed: int, name: str) -> TrainState:
        """Train one seed's network under the view of its recipe, with the answers of the dense network."""
        config, images = self.study, self.dataset.train.images
        loop = config.steps(self.dataset, config.epochs)
        tx, views = config.optimizer.build(loop), by_part({"student": transform})
        variables = variables_of(run)
        answer = jax.jit(self.model)
        taught = [np.asarray(answer(variables, jnp.asarray(images[i : i + _BATCH]))) for i in range(0, len(images), _BATCH)]
        answers = Outputs(jnp.asarray(np.concatenate(taught))[None], {})
        term = LogitTerm(loss=partial(soft_targets, temperature=config.temperature), weight=config.soft)
        loss = distillation_loss(self.apply, Distill(terms=(term,), label_weight=1 - config.soft))
        step = make_train_step(loss, tx, views)
        state = create({"student": run.params}, {"student": run.model_state}, tx, views, run.key)
        history = History(self.measured, transform, seen=lambda state: part(state, "student"))
        epochs = range(config.dense_epochs, config.dense_epochs + config.epochs)
        args = (step, members.alone(state), epochs, f"{name}, seed {seed}", history)
        state = self.train(*args, seeds=[seed], answers=answers)
        return stacked.member(part(state, "student"), 0)


def variables_of(run: TrainState) -> PyTree:
    """Return all variables of a state."""
    return {"params": run.params, **run.model_state}


def _dense_bytes(run: TrainState) -> int:
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(variables_of(run)))


def _uniform(table: Table, divergence: Divergence, limit: float) -> Recipe | None:
    """The choice for all layers that moves the outputs least, of all that fit; where a layer has it not, its bits alone."""
    best, least = None, np.inf
    for choice in table.choices:
        bare = Choice(bits=choice.bits)
        recipe = recipe_of(table, {path: choice if choice in cells else bare for path, cells in table.cells.items()})
        assert table.packing is not None
        if recipe.bytes <= limit and (moved := divergence.of(table.packing.seen(recipe.choices))) < least:
            best, least = recipe, moved
    return best
