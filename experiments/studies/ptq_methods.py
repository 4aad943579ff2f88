"""Post-training quantization of a classifier: every method at few bits, with float and with 8-bit activations.

Accuracies are in percent, of weights of some bits (W) with float and with quantized activations (A). Batch norms are folded;
every layer's weights are quantized, the first's and the last's too, symmetric, with a scale for each output channel.
Activations: static, affine, one range a tensor. Nothing is trained afterwards: training images calibrate weights and
activations, others for every seed; a row is chosen on further ones that are not test images. Costs are of the first seed, with
weights packed and float activations.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.common import resnet20, study
from experiments.common.columns import ROW, across, figure, setting, tabulate
from experiments.common.curves import Curve, Panel, draw
from experiments.common.deployed import deployed, file_bytes
from experiments.common.figures import Drawing
from experiments.common.ptq_networks import Network, Published, Source, Trained
from experiments.common.ptq_recipes import Recipe
from experiments.common.results import Result, spread
from experiments.common.study import Cell
from experiments.common.tables import Lines
from lepton_jax import unpack
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Split
from lepton_jax.quantization import (
    Percentile,
    Rule,
    Static,
    Uniform,
    calibrate_activations,
    quantize_activations,
    with_sites,
)

FLOAT = "float"
"""The row of the network as it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PtqMethods(study.Study):
    """Rows are methods, columns bits of the weights, with float and with 8-bit activations."""

    passing = ("only", "data")

    rows: Annotated[tuple[Recipe, ...], tyro.conf.Suppress]
    """The methods."""
    trained: Annotated[Trained | None, tyro.conf.Suppress] = None
    """The network, if it is trained here; None: a published ResNet-20."""
    aims: Annotated[dict[int, float], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    """Accuracies to reach, in percent, by bits of the weights."""
    data: Path = resnet20.FOLDER
    """Of the published network: holds `weights/resnet20_cifar10.npz` and `cifar10_subset/`."""
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
    """Images a batch."""
    test_images: int = 1000
    """Of the test images."""
    latency_rounds: int = 50
    """Timed calls of each network, whose time is compared with the float one's."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.images < self.batch_size or self.images % self.batch_size:
            yield f"images: must be a multiple of batch_size; got {self.images} and {self.batch_size}"

    @property
    def source(self) -> Source:
        """Where the network comes from."""
        return self.trained or Published(folder=self.data)

    @property
    def cells(self) -> list[Cell]:
        """The network as it is first."""
        lines: list[tuple[Recipe | None, str, int]] = [(None, FLOAT, 32)]
        lines += [(row, row.label, bits) for row in self.chosen for bits in self.bits]
        return [
            Cell(row=row, name=row.name if row else label, settings={"bits": bits}, label=f"{label}-{bits}")
            for row, label, bits in lines
        ]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> list[str | Lines | Drawing]:
        dense, images, bits = results[0], self.test_images, f"{{}}A{self.activation_bits}"
        right, rounded = statistics.mean(dense["test"]) / 100, [result for result in results if result["row"] != FLOAT]
        columns = (
            figure("W{}", "test", 1),
            figure(f"W{bits}", "test, activations", 1),
            figure(f"held out, W{bits}", "held out, activations", 1),
        )
        floats = [spread(dense[name], 1) for name in ("test", "test, activations", "held out")]
        return [
            f"Float accuracy of {self.source.title}, on {images:,} {self.source.images}: {floats[0]} %, with "
            f"{self.activation_bits}-bit activations {floats[1]} %, on images to choose by {floats[2]} %. One image is "
            f"{100 / images:.2g} points, the standard error about {100 * math.sqrt(right * (1 - right) / images):.1f}.",
            across(rounded, "bits", columns, levels=self.bits),
            Drawing(file="ptq_methods.png", alternative="accuracy against bits", draw=partial(plot, self, results=results)),
            choices(self, results),
            "## Costs",
            tabulate([result for result in results if "file_bytes" in result], COSTS),
        ]


COSTS = (ROW._replace(title="method"), setting("bits", "bits"), "parameters", "bytes", "MACs", "time, 1", "time, 128")


def choices(config: PtqMethods, results: Sequence[Result]) -> Lines:
    """Return, for every number of bits, what the row that is best on held-out images reaches on the test images."""
    lines: Lines = [("weights", "aim %", "chosen on held-out images", "reached %", "")]
    for bits in config.bits:
        mine = [result for result in results if result["settings"]["bits"] == bits]
        if mine:
            best = max(mine, key=lambda result: statistics.mean(result["held out, activations"]))
            reached, aim = statistics.mean(best["test, activations"]), config.aims.get(bits)
            said = ("", "") if aim is None else (f"{aim:.1f}", "met" if reached >= aim else "missed")
            lines.append((f"W{bits}A{config.activation_bits}", said[0], best["row"], f"{reached:.1f}", said[1]))
    return lines


def plot(config: PtqMethods, path: Path, results: Sequence[Result]) -> None:
    """Draw accuracy with quantized activations against the bits of the weights."""
    levels, curves = config.bits[::-1], []
    for number, name in enumerate(dict.fromkeys(result["row"] for result in results if result["row"] != FLOAT)):
        mine = {result["settings"]["bits"]: result for result in results if result["row"] == name}
        x = [place + 0.03 * number for place, bits in enumerate(levels) if bits in mine]
        curves.append(Curve(label=name, x=x, y=[mine[bits]["test, activations"] for bits in levels if bits in mine]))
    ticks = {float(place): f"W{bits}A{config.activation_bits}" for place, bits in enumerate(levels)}
    panel = Panel(curves=curves, levels={FLOAT: statistics.mean(results[0]["test"])}, ticks=ticks, y_scale="error")
    draw(path, [panel], y="test accuracy (%)", size=(7, 4.5))


class Runner(study.Runner[PtqMethods]):
    """Quantizes every seed's network; what it costs is taken of the first seed's."""

    @cached_property
    def rules(self) -> list[Rule]:
        """Of the activations."""
        config = self.study
        return [Rule(quantizer=Static(Uniform(config.activation_bits, symmetric=False), Percentile(q=config.percentile)))]

    @cached_property
    def networks(self) -> dict[int, Network]:
        """What is quantized, by seed."""
        config = self.study
        return {seed: config.source.load(seed, config.images, config.max_steps, self.run_dir) for seed in self.seeds}

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        networks = self.networks  # trained, if they are, before the time that is measured
        begun = time.perf_counter()
        packed = [self._quantized(cells[0], network) for network in networks.values()]
        seconds = time.perf_counter() - begun
        seeds = [self._accuracies(network, unpack(some)) for network, some in zip(networks.values(), packed)]
        figures: Result = {name: [one[name] for one in seeds] for name in seeds[0]}
        figures["error"] = [1 - value / 100 for value in figures["test, activations"]]
        return [{**figures, **self._costs(cells[0], networks[self.seeds[0]], packed[0]), "seconds": seconds}]

    def _quantized(self, cell: Cell, network: Network) -> PyTree:
        if cell.row is None:
            return network.variables
        fmt = Uniform(cell.settings["bits"], channel_axis=-1)
        return cell.row.quantize(network.apply, network.variables, self._batches(network), fmt, kernels)

    def _batches(self, network: Network) -> list[np.ndarray]:
        """What is calibrated on."""
        images, size = network.calibration.images, self.study.batch_size
        return [images[i : i + size] for i in range(0, len(images), size)]

    def _accuracies(self, network: Network, variables: PyTree) -> dict[str, float]:
        """Percent of images classified rightly, with float and with quantized activations."""
        config, apply = self.study, network.apply
        sites = calibrate_activations(apply, self.rules, variables, self._batches(network))
        rounded, found = quantize_activations(apply, self.rules), {}
        splits = {"test": (network.test, config.test_images), "held out": (network.held_out, config.held_out)}
        for part, (whole, count) in splits.items():
            split = whole.take(np.arange(min(count, len(whole))))
            found[part] = self._accuracy(apply, variables, split)
            found[f"{part}, activations"] = self._accuracy(rounded, with_sites(variables, sites), split)
        return found

    def _accuracy(self, apply: Any, variables: PyTree, split: Split) -> float:
        return 100.0 * resnet20.count_right(apply, variables, split, self.study.batch_size) / len(split)

    def _costs(self, cell: Cell, network: Network, packed: PyTree) -> Result:
        """What the network costs with its weights packed and float activations, and the bytes of its file but the program."""
        images, held, dense = network.test.images, {"params": packed}, (self._trained, {"params": network.variables})
        figures = deployed(dense, self._trained, [held], images, rounds=self.study.latency_rounds)
        return {**figures, "file_bytes": file_bytes(self._trained, held, images, self.path(cell, "files", "lepton"))}

    @cached_property
    def _trained(self) -> Any:
        """The network as training has it, all its variables parameters."""
        apply = self.networks[self.seeds[0]].apply

        def trained(params: PyTree, rest: PyTree, images: Array, *, train: bool, key: Array | None) -> tuple[Array, PyTree]:
            return apply(params, images), rest

        return trained


def kernels(path: str, leaf: Any) -> bool:
    """Select what is quantized."""
    return path.endswith("kernel")
