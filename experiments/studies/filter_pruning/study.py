"""A study of filter pruning: criteria and allocations at several cuts of a published ResNet-20, before and after tuning."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common import resnet20
from experiments.common.results import Result, kept
from experiments.common.rows import check_rows, chosen
from experiments.studies.filter_pruning.network import Network, Tuning
from lepton_jax.core.errors import check_fraction, collect
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Split
from lepton_jax.graph import cost
from lepton_jax.models import ResNetCifar
from lepton_jax.pruning.channels import BatchNormScale, GeometricMedian, Importance, Norm, Random, Taylor, plan, verify
from lepton_jax.training import cross_entropy

Criterion = Literal["none", "l1", "l2", "taylor", "fpgm", "bn_scale", "random"]
_VERIFIED, _RTOL = 32, 1e-4
"""Test images on which masked and shrunk are compared, and how far apart they may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One way to choose filters."""

    name: str
    """Of the row."""
    criterion: Criterion
    """What a filter is worth; 'none': nothing is cut, only tuned."""
    ranking: Literal["group", "global"] = "group"
    """Every group of coupled filters loses the same fraction, or the lowest scores of all groups go."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"Row {self.name!r}: name must be a word, since it names files.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Rows are criteria and allocations; every one at every cut."""

    name: str
    """Names the run folder."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The ways to choose."""
    references: Annotated[dict[float, tuple[str, str]], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    """A paper's figure and its source, by the cut that it stands beside."""
    model: Annotated[ResNetCifar, tyro.conf.Suppress] = resnet20.MODEL
    """The published network."""
    data: Path = resnet20.FOLDER
    """Holds `weights/resnet20_cifar10.npz`, `cifar10_subset/` and `cifar10_jpeg/`."""
    fractions: tuple[float, ...] = (0.3, 0.5)
    """Of the multiply-accumulates, to be removed."""
    tune_images: int = 5000
    """JPEG-compressed training images to tune on, others for every seed."""
    epochs: int = 2
    """Passes over them."""
    batch_size: int = 100
    learning_rate: float = 0.01
    """Of SGD with momentum; half a cosine over all epochs."""
    taylor_images: int = 1000
    """Lossless training images for the gradients of the Taylor criterion."""
    latency_batches: tuple[int, ...] = (1, 32)
    latency_rounds: int = 30
    """Interleaved calls of the dense and the smaller network."""
    seed: int = 0
    """The first seed: of images to tune on, their order and augmentation, and of the random criterion."""
    max_steps: int | None = None
    """Stop every epoch after so many steps, for a trial run."""
    only: tuple[str, ...] = ()
    """Run only the rows of these names."""

    def __post_init__(self) -> None:
        with collect(f"Study {self.name!r}") as problems:
            check_rows(problems, [row.name for row in self.rows], self.only)
            for field in ("epochs", "batch_size", "taylor_images", "latency_rounds"):
                if not getattr(self, field) >= 1:
                    problems.append(f"{field}: must be at least 1; got {getattr(self, field)}")
            if self.tune_images < self.batch_size:
                problems.append(f"tune_images: must be at least a batch of {self.batch_size}; got {self.tune_images}")
        for fraction in self.fractions:
            check_fraction("fractions", fraction)

    @property
    def cells(self) -> list[tuple[Row, float]]:
        """The rows to run, each with its cuts."""
        rows = chosen(self.rows, self.only)
        return [(row, cut) for row in rows for cut in ((0.0,) if row.criterion == "none" else self.fractions)]

    @property
    def tuning(self) -> Tuning:
        """How every network is trained after the cut."""
        steps = self.tune_images // self.batch_size
        steps = steps if self.max_steps is None else min(steps, self.max_steps)
        return Tuning(epochs=self.epochs, steps=steps, batch_size=self.batch_size, learning_rate=self.learning_rate)


class Runner:
    """Runs a study.

    Args:
      study: the settings.
      seeds: of the runs.
      run_dir: gets a JSON file for each finished cell, which is not run again, and its first seed's network.
    """

    def __init__(self, study: Study, seeds: Sequence[int], run_dir: Path) -> None:
        self.study, self.seeds, self.run_dir = study, tuple(seeds), run_dir
        self._images: dict[int, Split] = {}

    def run(self) -> list[Result]:
        """Run what is missing; return all results, in the order of the study."""
        rows = self.run_dir / "rows"
        return [kept(rows / f"{_label(*cell)}.json", partial(self._cell, *cell)) for cell in self.study.cells]

    @cached_property
    def splits(self) -> tuple[Split, Split]:
        """Lossless training and test images."""
        return resnet20.lossless_splits(self.study.data)

    @cached_property
    def variables(self) -> PyTree:
        """Of the published network."""
        return resnet20.load_variables(self.study.data, self.study.model)

    @cached_property
    def dense(self) -> Callable[[PyTree, Array], Array]:
        """The published network, compiled."""
        return jax.jit(self.study.model.apply)

    @cached_property
    def dense_error(self) -> float:
        """Of the published network."""
        test = self.splits[1]
        return 1 - resnet20.count_right(self.dense, self.variables, test) / len(test)

    @cached_property
    def dense_macs(self) -> int:
        """Of one image through the published network."""
        return cost(self.study.model.apply, self.variables, self.splits[1].images[:1]).macs

    @cached_property
    def gradients(self) -> PyTree:
        """Of the mean loss over training images, in evaluation mode."""

        def loss(params: PyTree, images: Array, labels: Array) -> Array:
            logits: Any = self.study.model.apply({**self.variables, "params": params}, images)
            return jnp.mean(cross_entropy(logits, labels))

        step, size = jax.jit(jax.grad(loss)), self.study.batch_size
        some = self.splits[0].take(np.arange(self.study.taylor_images))
        parts = [
            step(self.variables["params"], some.images[i : i + size], some.labels[i : i + size])
            for i in range(0, len(some), size)
        ]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)

    def images(self, seed: int) -> Split:
        """Return what a seed is tuned on, decoded once."""
        if seed not in self._images:
            self._images[seed] = resnet20.jpeg_split(self.study.data, self.study.tune_images, seed)
        return self._images[seed]

    def _cell(self, row: Row, fraction: float) -> Result:
        begun, label = time.perf_counter(), _label(row, fraction)
        figure, source = self.study.references.get(fraction, ("", ""))
        result: Result = {
            "row": row.name,
            "criterion": row.criterion,
            "ranking": row.ranking,
            "fraction": fraction,
            "seeds": list(self.seeds),
            "dense_error": self.dense_error,
            "dense_macs": self.dense_macs,
            **self._measure(row, fraction, self.run_dir / "files" / f"{label}.lepton"),
            "seconds": time.perf_counter() - begun,
            "reference": figure,
            "source": source,
        }
        tuned = ", ".join(f"{100 * error:.1f}" for error in result["error"])
        print(f"{label}: {100 * result['cut_error'][0]:.1f} % wrong, tuned {tuned} ({result['seconds']:.0f} s)", flush=True)
        return result

    def _measure(self, row: Row, fraction: float, file: Path) -> Result:
        """Cut, tune and evaluate every seed; sizes and times are the first one's."""
        study, test = self.study, self.splits[1]
        networks: list[Network] = []
        for seed in self.seeds:
            alike = networks and row.criterion != "random"  # all other criteria choose the same filters for every seed
            networks.append(networks[0] if alike else self._network(row, fraction, seed))
        label = _label(row, fraction)
        runs = [
            network.tune(self.images(seed), test, seed, f"{label}, seed {seed}", self.run_dir)
            for network, seed in zip(networks, self.seeds)
        ]
        first, image = networks[0], test.images[:1]
        return {
            "cut_error": [network.error(network.variables, test) for network in networks],
            "error": [run.errors[-1] for run in runs],
            "best_error": [min(run.errors) for run in runs],
            "nonzeros": [run.nonzeros for run in runs],
            **first.size(runs[0].variables, image, file),
            "latency_ratio": {
                str(batch): first.latency(self.dense, self.variables, test.images[:batch], study.latency_rounds)
                for batch in study.latency_batches
            },
            "difference": max(network.difference for network in networks),
        }

    def _network(self, row: Row, fraction: float, seed: int) -> Network:
        apply, test = self.study.model.apply, self.splits[1]
        made = plan(
            apply,
            self.variables,
            test.images[:1],
            fraction=fraction,
            of="macs",
            ranking=row.ranking,
            criterion=self._importance(row.criterion, seed),
        )
        found = verify(made, apply, self.variables, test.images[:_VERIFIED], rtol=_RTOL, gradients=False)
        return Network(made, self.study.model, self.variables, self.study.tuning, found.worst)

    def _importance(self, criterion: Criterion, seed: int) -> Importance:
        match criterion:
            case "l2":
                return Norm(order=2)
            case "taylor":
                return Taylor(gradients=self.gradients)
            case "fpgm":
                return GeometricMedian()
            case "bn_scale":
                return BatchNormScale()
            case "random":
                return Random(key=jax.random.key(seed))
            case "l1" | "none":
                return Norm(order=1)


def _label(row: Row, fraction: float) -> str:
    return f"{row.name}-{100 * fraction:g}"
