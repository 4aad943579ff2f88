"""The post-training study of ResNet-20: settings, runs, table and figure."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.common import resnet20
from experiments.common.results import Result, deviation, kept, save_report, spread
from experiments.common.rows import check_rows, chosen
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.ptq.rows import Recipe
from lepton_jax import unpack
from lepton_jax.data import Split
from lepton_jax.errors import collect
from lepton_jax.graph import fold_batch_norm
from lepton_jax.quantization import (
    Percentile,
    Rule,
    Static,
    Uniform,
    calibrate_activations,
    quantize_activations,
    with_sites,
)
from lepton_jax.typing import PyTree


class Row(Protocol):
    """A way to quantize: `Recipe`, or whatever else returns variables for the same function."""

    @property
    def name(self) -> str:
        """Of the row."""

    def quantize(self, apply: Any, variables: PyTree, batches: Sequence[Any], fmt: Any, select: Any) -> PyTree:
        """Return quantized variables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PtqMethods:
    """Rows are methods, columns bits of the weights, with float and with 8-bit activations."""

    name: str
    """Names the run folder."""
    rows: Annotated[tuple[Recipe, ...], tyro.conf.Suppress]
    """The methods."""
    data: Path = resnet20.FOLDER
    """Holds `weights/resnet20_cifar10.npz` and `cifar10_subset/`."""
    bits: tuple[int, ...] = (8, 4, 3)
    """Of the weights; every layer, the first and the last too; a scale for each output channel."""
    activation_bits: int = 8
    """Of every layer's input; static ranges, one a tensor."""
    percentile: float = 99.99
    """Of the inputs' values, to be covered."""
    images: int = 1000
    """Training images to calibrate on."""
    held_out: int = 1000
    """Others, to choose by."""
    batch_size: int = 250
    only: tuple[str, ...] = ()
    """Run only the rows of these names."""
    test_images: int = 1000
    """Of the test images."""
    seed: int = 0
    """The first seed: of the training images to calibrate on, and of those to choose by."""

    def __post_init__(self) -> None:
        with collect(f"PtqMethods {self.name!r}") as problems:
            check_rows(problems, [row.name for row in self.rows], self.only)
            if self.images < self.batch_size or self.images % self.batch_size:
                problems.append(f"images: must be a multiple of batch_size; got {self.images} and {self.batch_size}")


class Runner:
    """Runs the rows of one seed.

    Args:
      config: the settings.
      seed: of the images to calibrate on.
      run_dir: gets a JSON file for each finished cell, which is not run again.
    """

    def __init__(self, config: PtqMethods, seed: int, run_dir: Path) -> None:
        self.config, self.seed, self.run_dir = config, seed, run_dir
        train, test = resnet20.lossless_splits(config.data)
        order = np.random.default_rng(seed).permutation(len(train))
        calibration = train.images[order[: config.images]]
        self.batches = [calibration[i : i + config.batch_size] for i in range(0, config.images, config.batch_size)]
        held = train.take(order[config.images : config.images + config.held_out])
        self.splits = {"test": test.take(np.arange(config.test_images)), "held out": held}
        weights = resnet20.load_variables(config.data)
        self.apply, self.variables = fold_batch_norm(resnet20.MODEL.apply, weights, self.batches[0])
        quantizer = Static(Uniform(config.activation_bits, symmetric=False), Percentile(q=config.percentile))
        self.rules = [Rule(quantizer=quantizer)]

    def run(self) -> list[Result]:
        """Run what is missing; return all results."""
        cells: list[tuple[str, int, Callable[[], PyTree]]] = [("float", 32, lambda: self.variables)]
        for row in chosen(self.config.rows, self.config.only):
            cells += [(row.name, bits, partial(self._quantized, row, bits)) for bits in self.config.bits]
        return [kept(self._path(name, bits), partial(self._cell, name, bits, make)) for name, bits, make in cells]

    def _path(self, name: str, bits: int) -> Path:
        return self.run_dir / "rows" / f"{name.replace(' ', '_')}-{bits}-{self.seed}.json"

    def _quantized(self, row: Row, bits: int) -> PyTree:
        return row.quantize(self.apply, self.variables, self.batches, Uniform(bits, channel_axis=-1), _kernels)

    def _cell(self, name: str, bits: int, make: Callable[[], PyTree]) -> Result:
        begun = time.perf_counter()
        variables = unpack(make())
        seconds = time.perf_counter() - begun
        sites = calibrate_activations(self.apply, self.rules, variables, self.batches)
        rounded = quantize_activations(self.apply, self.rules)
        result: Result = {"row": name, "bits": bits, "seed": self.seed, "seconds": seconds}
        for part, split in self.splits.items():
            result[part] = self._accuracy(self.apply, variables, split)
            result[f"{part}, activations"] = self._accuracy(rounded, with_sites(variables, sites), split)
        print(
            f"seed {self.seed}, {name}, {bits} bits: {result['test']:.1f} %, "
            f"with {self.config.activation_bits}-bit activations {result['test, activations']:.1f} % ({seconds:.0f} s)",
            flush=True,
        )
        return {**result, "error": [1 - result["test, activations"] / 100]}

    def _accuracy(self, apply: Any, variables: PyTree, split: Split) -> float:
        """Percent of images classified rightly."""
        return 100.0 * resnet20.count_right(apply, variables, split, self.config.batch_size) / len(split)


def _kernels(path: str, leaf: Any) -> bool:
    return path.endswith("kernel")


def table(config: PtqMethods, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line a row; two columns a number of bits; means and deviations over seeds."""
    heads = [part for bits in config.bits for part in (f"W{bits}", f"W{bits}A{config.activation_bits}")]
    lines: list[tuple[str, ...]] = [
        ("method", *heads, *(f"held out, W{bits}A{config.activation_bits}" for bits in config.bits))
    ]
    for name in dict.fromkeys(result["row"] for result in results if result["row"] != "float"):
        test = [_shown(results, name, bits, key) for bits in config.bits for key in ("test", "test, activations")]
        lines.append((name, *test, *(_shown(results, name, bits, "held out, activations") for bits in config.bits)))
    return lines


def _values(results: Sequence[Result], name: str, bits: int, key: str) -> list[float]:
    return [result[key] for result in results if (result["row"], result["bits"]) == (name, bits)]


def _shown(results: Sequence[Result], name: str, bits: int, key: str) -> str:
    return spread(_values(results, name, bits, key), 1)


def aims(config: PtqMethods, results: Sequence[Result], wanted: Mapping[int, float]) -> list[tuple[str, ...]]:
    """Return, for every number of bits, what the row that is best on held-out training images reaches on the test images."""
    lines: list[tuple[str, ...]] = [("weights", "aim %", "chosen on training images", "reached %", "")]
    for bits, aim in wanted.items():
        names = dict.fromkeys(result["row"] for result in results if result["bits"] == bits)
        if names:
            best = max(names, key=lambda name: statistics.mean(_values(results, name, bits, "held out, activations")))
            reached = statistics.mean(_values(results, best, bits, "test, activations"))
            said = "met" if reached >= aim else "missed"
            lines.append((f"W{bits}A{config.activation_bits}", f"{aim:.1f}", best, f"{reached:.1f}", said))
    return lines


def write(run_dir: Path, config: PtqMethods, results: Sequence[Result], wanted: Mapping[int, float]) -> None:
    """Write `ptq_methods.md`, its figure and `summary.json`, and print the table."""
    lines, seeds = table(config, results), sorted({result["seed"] for result in results})
    dense = {key: _shown(results, "float", 32, key) for key in ("test", "test, activations", "held out")}
    plot(run_dir / "ptq_methods.png", config, results)
    text = [
        f"# {config.name}: post-training quantization of a ResNet-20 that others trained",
        f"Accuracy in percent on {config.test_images:,} lossless CIFAR-10 test images; float {dense['test']} %, with "
        f"{config.activation_bits}-bit activations alone {dense['test, activations']} %. One image is "
        f"{100 / config.test_images:.1f} points, the standard error of an accuracy about 0.9. Batch norms are folded; every "
        "layer's weights are quantized, the first's and the last's too, symmetric, with a scale for each output channel. "
        f"Activations: static, affine, one range a tensor, {config.percentile:g} % of the values covered. Nothing is trained: "
        f"{config.images:,} training images calibrate weights and activations, others for every seed "
        f"({', '.join(map(str, seeds))}).",
        "\n".join(markdown_table(lines)),
        "![accuracy against bits](ptq_methods.png)",
        f"Chosen on {config.held_out:,} other training images, on which the float network has {dense['held out']} %:",
        "\n".join(markdown_table(aims(config, results, wanted))),
        provenance({result["revision"] for result in results}, "ptq_methods")
        + f" Quantizing took {sum(result['seconds'] for result in results) / 60:.1f} minutes.",
    ]
    save_report(run_dir / "ptq_methods.md", config.name, text, results)
    print("\n".join(aligned(lines)))
    print("\n".join(aligned(aims(config, results, wanted))))


def plot(path: Path, config: PtqMethods, results: Sequence[Result]) -> None:
    """Draw accuracy with quantized activations against the bits of the weights."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for number, name in enumerate(dict.fromkeys(result["row"] for result in results if result["row"] != "float")):
        places = [place + 0.03 * number for place in range(len(config.bits))]
        values = [_values(results, name, bits, "test, activations") for bits in config.bits[::-1]]
        look = {"marker": "os^vDPX*<>"[number % 10], "capsize": 2, "label": name}
        axis.errorbar(places, [statistics.mean(some) for some in values], [deviation(some) for some in values], **look)
    axis.axhline(statistics.mean(_values(results, "float", 32, "test")), color="0.6", linewidth=1)
    axis.set_xticks(range(len(config.bits)), [f"W{bits}A{config.activation_bits}" for bits in config.bits[::-1]])
    axis.set(ylabel="test accuracy (%)")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
