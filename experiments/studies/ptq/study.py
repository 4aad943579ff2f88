"""The post-training study of a classifier: settings and runs."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import tyro

from experiments.common import resnet20
from experiments.common.deployed import deployed, file_bytes
from experiments.common.results import Result, kept
from experiments.common.rows import check_rows, chosen
from experiments.studies.ptq.networks import Network, Published, Source, Trained
from experiments.studies.ptq.rows import Recipe
from lepton_jax import unpack
from lepton_jax.core.errors import collect
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
    only: tuple[str, ...] = ()
    """Run only the rows of these names."""
    test_images: int = 1000
    """Of the test images."""
    latency_rounds: int = 50
    """Timed calls of each network, whose time is compared with the float one's."""
    seed: int = 0
    """The first seed: of the training images to calibrate on, and of those to choose by, and of a network trained here."""
    max_steps: int | None = None
    """Stop the training of a network after so many steps, for a trial run."""

    def __post_init__(self) -> None:
        with collect(f"PtqMethods {self.name!r}") as problems:
            check_rows(problems, [row.name for row in self.rows], self.only)
            if self.images < self.batch_size or self.images % self.batch_size:
                problems.append(f"images: must be a multiple of batch_size; got {self.images} and {self.batch_size}")
            if self.max_steps is not None and self.max_steps < 1:
                problems.append(f"max_steps: must be at least 1; got {self.max_steps}")

    @property
    def source(self) -> Source:
        """Where the network comes from."""
        return self.trained or Published(folder=self.data)


class Runner:
    """Runs the rows of one seed.

    Args:
      config: the settings.
      seed: of the images to calibrate on.
      run_dir: gets a JSON file for each finished cell, which is not run again.
    """

    def __init__(self, config: PtqMethods, seed: int, run_dir: Path) -> None:
        self.config, self.seed, self.run_dir = config, seed, run_dir
        quantizer = Static(Uniform(config.activation_bits, symmetric=False), Percentile(q=config.percentile))
        self.rules = [Rule(quantizer=quantizer)]

    @cached_property
    def network(self) -> Network:
        """What is quantized."""
        config = self.config
        return config.source.load(self.seed, config.images, config.max_steps, self.run_dir)

    @property
    def batches(self) -> list[np.ndarray]:
        """What is calibrated on."""
        images, size = self.network.calibration.images, self.config.batch_size
        return [images[i : i + size] for i in range(0, len(images), size)]

    def run(self) -> list[Result]:
        """Run what is missing; return all results."""
        cells: list[tuple[str, int, Callable[[], PyTree]]] = [(FLOAT, 32, lambda: self.network.variables)]
        for row in chosen(self.config.rows, self.config.only):
            cells += [(row.name, bits, partial(self._quantized, row, bits)) for bits in self.config.bits]
        return [kept(self._path("rows", *cell[:2], "json"), partial(self._cell, *cell)) for cell in cells]

    def _path(self, folder: str, name: str, bits: int, ending: str) -> Path:
        return self.run_dir / folder / f"{name.replace(' ', '_')}-{bits}-{self.seed}.{ending}"

    def _quantized(self, row: Row, bits: int) -> PyTree:
        apply, variables = self.network.apply, self.network.variables
        return row.quantize(apply, variables, self.batches, Uniform(bits, channel_axis=-1), _kernels)

    def _cell(self, name: str, bits: int, make: Callable[[], PyTree]) -> Result:
        config, apply = self.config, self.network.apply  # trained, if it is, before the time that is measured
        begun = time.perf_counter()
        packed = make()
        seconds = time.perf_counter() - begun
        variables = unpack(packed)
        sites = calibrate_activations(apply, self.rules, variables, self.batches)
        rounded = quantize_activations(apply, self.rules)
        result: Result = {"row": name, "bits": bits, "seed": self.seed, "seconds": seconds}
        splits = {"test": (self.network.test, config.test_images), "held out": (self.network.held_out, config.held_out)}
        for part, (whole, count) in splits.items():
            split = whole.take(np.arange(min(count, len(whole))))
            result[part] = self._accuracy(apply, variables, split)
            result[f"{part}, activations"] = self._accuracy(rounded, with_sites(variables, sites), split)
        print(
            f"seed {self.seed}, {name}, {bits} bits: {result['test']:.1f} %, "
            f"with {config.activation_bits}-bit activations {result['test, activations']:.1f} % ({seconds:.0f} s)",
            flush=True,
        )
        costs = self._costs(packed, self._path("files", name, bits, "lepton")) if self.seed == config.seed else {}
        return {**result, "error": [1 - result["test, activations"] / 100], **costs}

    def _accuracy(self, apply: Any, variables: PyTree, split: Split) -> float:
        """Percent of images classified rightly."""
        return 100.0 * resnet20.count_right(apply, variables, split, self.config.batch_size) / len(split)

    def _costs(self, packed: PyTree, path: Path) -> Result:
        """What the network costs with its weights packed and float activations, and the bytes of its file but the program."""
        images, held = self.network.test.images, {"params": packed}
        dense = self._trained, {"params": self.network.variables}
        figures = deployed(dense, self._trained, [held], images, rounds=self.config.latency_rounds)
        return {**figures, "file_bytes": file_bytes(self._trained, held, images, path)}

    @cached_property
    def _trained(self) -> Any:
        """The network as training has it, all its variables parameters."""

        def trained(params: PyTree, rest: PyTree, images: Array, *, train: bool, key: Array | None) -> tuple[Array, PyTree]:
            return self.network.apply(params, images), rest

        return trained


def _kernels(path: str, leaf: Any) -> bool:
    return path.endswith("kernel")
