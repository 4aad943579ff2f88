"""Post-training quantization of a character transformer: int4 weights in groups, and 8-bit weights and activations.

Perplexity is a character's, on the test part of the text. All kernels are quantized, calibrated on windows of the training
part; embeddings, norms and biases are not. `lost` is against the same seed's float model.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.common import study
from experiments.common.char_lm import CharLM, load_text, perplexity, train, windows
from experiments.common.columns import ROW, Column, figure, reference, tabulate
from experiments.common.curves import Curve, Panel, draw
from experiments.common.figures import Drawing
from experiments.common.ptq_recipes import Recipe
from experiments.common.results import Result, spread
from experiments.common.study import Cell
from experiments.common.tables import Lines
from experiments.studies.ptq_methods import FLOAT, kernels
from lepton_jax import unpack
from lepton_jax.core.typing import PyTree
from lepton_jax.quantization import (
    Dynamic,
    Rule,
    Static,
    Uniform,
    calibrate_activations,
    quantize_activations,
    with_sites,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LmRow:
    """A recipe for the weights, their format, and the quantizer of the activations."""

    recipe: Recipe
    format: Uniform | None
    """Of the weights; None leaves them as they are."""
    activations: Static | Dynamic | None = None
    """Of the inputs of every layer; None leaves them as they are."""

    name = property(lambda self: self.recipe.name)
    label = property(lambda self: self.recipe.label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LmPtq(study.Study):
    """Rows are methods; the figure is how much perplexity they lose."""

    rows: Annotated[tuple[LmRow, ...], tyro.conf.Suppress]
    """The methods."""
    text: Path = Path("tinyshakespeare/input.txt")
    """The text file."""
    model: CharLM = dataclasses.field(default_factory=CharLM)
    """The transformer and its training."""
    windows: int = 128
    """Of the training text, to calibrate on."""
    test_windows: int = 400
    """Of the test text."""
    batch_size: int = 32
    """Windows a batch."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "windows", "test_windows", "batch_size")

    @property
    def cells(self) -> list[Cell]:
        return [Cell(row=row, name=row.name, label=row.label) for row in self.chosen]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> list[str | Lines | Drawing]:
        drawing = Drawing(file="lm_ptq.png", alternative="perplexity lost", draw=partial(plot, results=results))
        return [f"The transformer: {self.model}.", table(results), drawing]


def lost(result: Result, dense: Result | None) -> list[float]:
    """Return the percent of perplexity that each seed loses against its float model."""
    pairs = zip(result["perplexity"], (dense or result)["perplexity"], strict=True)
    return [100 * (mine / float_ - 1) for mine, float_ in pairs]


def table(results: Sequence[Result]) -> Lines:
    """Return the cells: mean and deviation over the seeds, and the loss against float, seed by seed.

    Example:
      >>> rows = [{"row": row, "seeds": [0], "perplexity": [p]} for row, p in (("float", 5.0), ("int4", 5.5))]
      >>> table(rows)[2]
      ('int4', '5.5000', '10.00', '10.00')
    """

    def of_seed(place: int, result: Result, dense: Result | None) -> str:
        return f"{lost(result, dense)[place]:.2f}"

    columns = [ROW._replace(title="method"), figure("perplexity", "perplexity", 4)]
    columns.append(Column("lost %", lambda result, dense: spread(lost(result, dense))))
    columns += [Column(f"lost %, seed {seed}", partial(of_seed, place)) for place, seed in enumerate(results[0]["seeds"])]
    return tabulate(results, columns, reference(results, FLOAT))


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw what each row loses, a point a seed."""
    dense, rows = reference(results, FLOAT), [result for result in results if result["row"] != FLOAT]
    places = [float(place) for place in range(len(rows))]
    look = {"color": "C0", "linestyle": "none"}
    curve = Curve(label="_", x=places, y=[lost(result, dense(result)) for result in rows], look=look)
    ticks = {place: result["row"] for place, result in zip(places, rows)}
    draw(path, [Panel(curves=[curve], ticks=ticks, levels={FLOAT: 0.0}, seeds=True)], y="perplexity lost (%)", size=(7, 4))


class Runner(study.Runner[LmPtq]):
    """Quantizes every seed's transformer; trained weights are kept in the run's folder."""

    @cached_property
    def text(self) -> Any:
        """Its parts as numbers."""
        return load_text(self.study.text)

    @cached_property
    def apply(self) -> Any:
        """The transformer."""
        return self.study.model.model(len(self.text.characters)).apply

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        config, found, seconds = self.study, [], 0.0
        test = self.text.test[: config.test_windows * config.model.length + 1]
        for seed in self.seeds:
            variables = train(seed, config.model, self.text, self.run_dir / "files")
            begun = time.perf_counter()
            apply, quantized = self._quantized(cells[0].row, variables, self._batches(seed))
            found.append(perplexity(apply, quantized, test, config.model.length))
            seconds += time.perf_counter() - begun
        return [{"perplexity": found, "seconds": seconds}]

    def _batches(self, seed: int) -> list[np.ndarray]:
        """What a seed is calibrated on."""
        config, rows = self.study, windows(self.text.train, self.study.model.length)[:, :-1]
        chosen = rows[np.random.default_rng(seed).permutation(len(rows))[: config.windows]]
        return [chosen[i : i + config.batch_size] for i in range(0, len(chosen), config.batch_size)]

    def _quantized(self, row: LmRow, variables: PyTree, batches: Sequence[np.ndarray]) -> tuple[Any, PyTree]:
        if row.format is not None:
            variables = unpack(row.recipe.quantize(self.apply, variables, batches, row.format, kernels))
        if row.activations is None:
            return self.apply, variables
        # Of the layers alone: products of queries and keys, and of weights and values, stay as they are.
        rule = Rule(quantizer=row.activations, path="*/kernel")
        sites = calibrate_activations(self.apply, rule, variables, batches)
        return quantize_activations(self.apply, rule), with_sites(variables, sites)
