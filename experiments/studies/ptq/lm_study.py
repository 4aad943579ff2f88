"""The post-training study of a character transformer: settings, runs, table and figure."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.common.char_lm import CharLM, load_text, perplexity, train, windows
from experiments.common.results import Result, kept, save_report, spread
from experiments.common.rows import check_rows
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.ptq.rows import Recipe
from lepton_jax import unpack
from lepton_jax.core.errors import collect
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

    @property
    def name(self) -> str:
        """Of the row."""
        return self.recipe.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class LmPtq:
    """Rows are methods; the figure is how much perplexity they lose."""

    name: str
    """Names the run folder."""
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
    seed: int = 0
    """The first seed: of initial weights, batches and calibration windows."""

    def __post_init__(self) -> None:
        with collect(f"LmPtq {self.name!r}") as problems:
            check_rows(problems, [row.name for row in self.rows], ())
            for field in ("windows", "test_windows", "batch_size"):
                if getattr(self, field) < 1:
                    problems.append(f"{field}: must be at least 1; got {getattr(self, field)}")


class Runner:
    """Runs the rows of one seed.

    Args:
      config: the settings.
      seed: of the run.
      run_dir: gets the trained weights, and a JSON file for each finished row, which is not run again.
    """

    def __init__(self, config: LmPtq, seed: int, run_dir: Path) -> None:
        self.config, self.seed, self.run_dir = config, seed, run_dir
        text = load_text(config.text)
        self.apply = config.model.model(len(text.characters)).apply
        self.variables = train(seed, config.model, text, run_dir / "files")
        length = config.model.length
        rows = windows(text.train, length)[:, :-1]
        chosen = rows[np.random.default_rng(seed).permutation(len(rows))[: config.windows]]
        self.batches = [chosen[i : i + config.batch_size] for i in range(0, len(chosen), config.batch_size)]
        self.test = text.test[: config.test_windows * length + 1]

    def run(self) -> list[Result]:
        """Run what is missing; return all results."""
        rows = self.run_dir / "rows"
        return [
            kept(rows / f"{row.name.replace(' ', '_')}-{self.seed}.json", partial(self._cell, row)) for row in self.config.rows
        ]

    def _cell(self, row: LmRow) -> Result:
        begun = time.perf_counter()
        apply, variables = self._quantized(row)
        value = perplexity(apply, variables, self.test, self.config.model.length)
        seconds = time.perf_counter() - begun
        print(f"seed {self.seed}, {row.name}: {value:.4f} ({seconds:.0f} s)", flush=True)
        return {"row": row.name, "seed": self.seed, "perplexity": value, "seconds": seconds}

    def _quantized(self, row: LmRow) -> tuple[Any, PyTree]:
        variables = self.variables
        if row.format is not None:
            variables = unpack(row.recipe.quantize(self.apply, variables, self.batches, row.format, _kernels))
        if row.activations is None:
            return self.apply, variables
        # Of the layers alone: products of queries and keys, and of weights and values, stay as they are.
        rule = Rule(quantizer=row.activations, path="*/kernel")
        sites = calibrate_activations(self.apply, rule, variables, self.batches)
        return quantize_activations(self.apply, rule), with_sites(variables, sites)


def _kernels(path: str, leaf: Any) -> bool:
    return path.endswith("kernel")


def table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: mean and deviation over the seeds, and the loss against float, seed by seed.

    Example:
      >>> rows = [{"row": row, "seed": 0, "perplexity": p} for row, p in (("float", 5.0), ("int4", 5.5))]
      >>> table(rows)[2]
      ('int4', '5.5000', '10.00', '10.00')
    """
    seeds = sorted({result["seed"] for result in results})
    by_row: dict[str, dict[int, float]] = {}
    for result in results:
        by_row.setdefault(result["row"], {})[result["seed"]] = result["perplexity"]
    lines: list[tuple[str, ...]] = [("method", "perplexity", "lost %", *(f"lost %, seed {seed}" for seed in seeds))]
    for name, cells in by_row.items():
        lost = [100 * (cells[seed] / by_row["float"][seed] - 1) for seed in seeds]
        lines.append((name, spread([cells[s] for s in seeds], 4), spread(lost), *(f"{one:.2f}" for one in lost)))
    return lines


def write(run_dir: Path, config: LmPtq, results: Sequence[Result]) -> None:
    """Write `lm_ptq.md`, its figure and `summary.json`, and print the table."""
    lines = table(results)
    plot(run_dir / "lm_ptq.png", results)
    model = config.model
    text = [
        f"# {config.name}: post-training quantization of a character transformer",
        f"Perplexity a character on {config.test_windows} windows of {model.length} characters of the test part of "
        f"tinyshakespeare; mean and standard deviation over seeds. {model.depth} blocks of width {model.width}, trained for "
        f"{model.steps} steps. All kernels are quantized, with {config.windows} windows of the training text to calibrate on; "
        "embeddings, norms and biases are not. `lost` is against the same seed's float model.",
        "\n".join(markdown_table(lines)),
        "![perplexity lost](lm_ptq.png)",
        provenance({result["revision"] for result in results}, "lm_ptq"),
    ]
    save_report(run_dir / "lm_ptq.md", config.name, text, results)
    print("\n".join(aligned(lines)))


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw what each row loses, a point a seed."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    dense = {result["seed"]: result["perplexity"] for result in results if result["row"] == "float"}
    names = list(dict.fromkeys(result["row"] for result in results if result["row"] != "float"))
    for place, name in enumerate(names):
        lost = [100 * (r["perplexity"] / dense[r["seed"]] - 1) for r in results if r["row"] == name]
        axis.plot(lost, [place] * len(lost), "o", color="tab:blue", alpha=0.6)
        axis.plot(statistics.mean(lost), place, "|", color="black", markersize=14)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.axvline(0, color="0.6", linewidth=1)
    axis.set(xlabel="perplexity lost (%)")
    figure.savefig(path, dpi=120)
