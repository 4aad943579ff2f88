"""A net in units: what optimising their graphs gains, what running them apart gains, and where to cut between edge and cloud.

The net is the papers': 3 convolutions, 3 pools, 1 dense layer. "layers" are each by itself, "units" the net whole and in two
and three units. On XLA, before is plain jit; halfway, batch norms are folded; after, slow operations are done otherwise too
(`fast_lowering`; derivatives have that alone). On ONNX Runtime, before is the file without folding as it stands there; halfway,
the engine optimises its graph; after, batch norms are folded before. Times are of one core, by `deploy.gate`: processor time,
in turn, the first twice (A/A); where these are more than 5 % apart, a row is marked and says nothing. Memory is what XLA says
of arguments, results and what is beside them; of units, the largest one's. "branches" run on two devices of this machine, by
the clock, with A/A as well.

"edge" cuts trained networks in two: the values that cross are quantized per channel and entropy-coded with tables of 200
training images; bytes are of a hundred images together with the frame that they cross in, over a hundred. "latency" is measured
over a link slowed down by waiting, the cloud a process of its own, the edge so many times slower by waiting; predictions are
from profiles of the stages.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.common import members, resnet20, study
from experiments.common.config import Adam
from experiments.common.results import Result
from experiments.common.study import Cell, Parts
from experiments.common.training_settings import Training
from experiments.studies.single_point import at_edge, branches, latency, layers, report
from lepton_jax.data import Dataset, shuffled
from lepton_jax.models import CNN
from lepton_jax.stages.edge import Link
from lepton_jax.training import stacked

Part = Literal["layers", "units", "branches", "edge", "latency"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """A part of the study."""

    part: Part
    """What is measured."""


ROWS = tuple(Row(name=part, part=part) for part in ("layers", "units", "branches", "edge", "latency"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinglePoint(study.Study, Training):
    """All parts; `epochs` and `data` are of the papers' net, for the edge."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress] = ROWS
    """The parts."""
    model: Annotated[CNN, tyro.conf.Suppress] = dataclasses.field(default_factory=CNN)
    """The papers' net."""
    optimizer: Adam = dataclasses.field(default_factory=lambda: Adam(learning_rate=2e-3))
    """Of its training."""
    cifar: Path = resnet20.FOLDER
    """Holds `weights/` and `cifar10_subset/`, for the ResNet-20 that others trained."""
    tasks: tuple[at_edge.Task, ...] = (at_edge.FASHION, at_edge.CIFAR)
    """Which networks are cut."""
    units: tuple[int, ...] = (1, 2, 3)
    """Into how many units the net is cut; the first is what the others are compared with."""
    images: int = 32
    """A call whose time is measured."""
    rounds: int = 15
    """Of a timing."""
    tries: int = 4
    """Of a timing whose A/A is off."""
    bits: tuple[int, ...] = (2, 3, 4)
    """Of a value that crosses."""
    known: int = 200
    """Training images that tables are made of."""
    test_images: int | None = None
    """At the edge, at most; None: all."""
    mbits: tuple[float, ...] = (0.5, 2.0, 8.0, 32.0)
    """Rates of links."""
    rtt_ms: float = 10.0
    """Of all links."""
    slower: float = 8.0
    """How many times slower the edge is than the cloud."""
    request: int = 8
    """Images of a request whose latency is measured."""
    requests: int = 15
    """Of each way."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(3, "rounds")
        yield from self.at_least(1, "images", "tries", "known", "test_images", "request", "requests", "slower")
        if not self.units or min(self.units) < 1:
            yield f"units: numbers from 1 on; got {self.units}"
        if any(not 2 <= bits <= 8 for bits in self.bits):
            yield f"bits: from 2 to 8; got {self.bits}"

    @property
    def cells(self) -> list[Cell]:
        """What each part measures."""
        found = []
        for row in self.chosen:
            for name, settings in CELLS[row.part](self):
                label = "-".join([row.part, name, *map(str, settings.values())])
                label = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in label)
                found.append(Cell(row=row, name=name, settings={"part": row.part, **settings}, label=label))
        return found

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        return report.parts(results)


Named = list[tuple[str, dict[str, Any]]]


def _layers(config: SinglePoint) -> Named:
    names = [f"{kind} {number}" for number, _ in enumerate(config.model.features, 1) for kind in ("convolution", "pool")]
    pairs = [("XLA", "forward"), ("XLA", "derivatives"), ("ONNX Runtime", "forward")]
    return [
        (name, {"what": what, "engine": engine}) for engine, what in pairs if _there(engine) for name in [*names, layers.DENSE]
    ]


def _units(config: SinglePoint) -> Named:
    names = ["whole" if count == 1 else f"{count} units" for count in config.units]
    return [(name, {"engine": engine}) for engine in layers.ENGINES if _there(engine) for name in names]


def _branches(_: SinglePoint) -> Named:
    return [(name, {}) for name in branches.BRANCHES]


def _edge(config: SinglePoint) -> Named:
    found: Named = []
    for task in config.tasks:
        found.append(("float", {"task": task, "cut": 0, "bits": 32}))
        places = range(1, at_edge.CUTS[task] + 1)
        found += [(f"cut {place}", {"task": task, "cut": place, "bits": bits}) for place in places for bits in config.bits]
    return found


def _latency(config: SinglePoint) -> Named:
    return [
        (way, {"task": task, "mbit": mbit})
        for task in config.tasks
        for mbit in config.mbits
        for way in latency.options(at_edge.CUTS[task])
    ]


def _there(engine: str) -> bool:
    return engine == "XLA" or layers.is_engine_there()


CELLS: dict[str, Callable[[SinglePoint], Named]] = {
    "layers": _layers,
    "units": _units,
    "branches": _branches,
    "edge": _edge,
    "latency": _latency,
}


class Runner(study.Runner[SinglePoint]):
    """Measures the parts, each with every seed."""

    @cached_property
    def dataset(self) -> Dataset:
        """Of the papers' net."""
        return self.study.data.load()

    @cached_property
    def nets(self) -> dict[at_edge.Task, list[at_edge.Trained]]:
        """The trained networks of each task, a seed each."""
        return {}

    def trained(self, task: at_edge.Task) -> list[at_edge.Trained]:
        """Train a task's networks, or load them; once."""
        if task not in self.nets:
            self.nets[task] = self._fashion() if task == at_edge.FASHION else self._cifar()
        return self.nets[task]

    def _fashion(self) -> list[at_edge.Trained]:
        config = self.study
        args = (config, self.dataset, config.optimizer, self.seeds)
        state = members.trained(*args, epochs=config.epochs, name="beforehand", run_dir=self.run_dir)
        runs = [{"params": run.params, **run.model_state} for run in stacked.apart(state)]
        return [self._made(config.model.apply, run, self.dataset, at_edge.FASHION, s) for run, s in zip(runs, self.seeds)]

    def _cifar(self) -> list[at_edge.Trained]:
        train, test = resnet20.lossless_splits(self.study.cifar)
        data = Dataset(train=train, validation=train, test=test, num_classes=10, name=at_edge.CIFAR)
        variables = resnet20.load_variables(self.study.cifar)
        return [self._made(resnet20.MODEL.apply, variables, data, at_edge.CIFAR, seed) for seed in self.seeds]

    def _made(self, apply: Any, variables: Any, data: Dataset, task: at_edge.Task, seed: int) -> at_edge.Trained:
        known = shuffled(data.train, seed=seed, epoch=0).images[: self.study.known]
        test = data.test if self.study.test_images is None else _some(data.test, self.study.test_images)
        return at_edge.Trained(apply, variables, known, test, task)

    def together(self, cell: Cell) -> Any:
        part, settings = cell.row.part, cell.settings
        group = {"units": ("engine",), "edge": ("task", "cut"), "latency": ("task",)}.get(part)
        return cell.label if group is None else (part, *(settings[name] for name in group))

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        begun = time.perf_counter()
        found = getattr(self, f"_of_{cells[0].row.part}")(cells)  # for each seed a result of each cell
        seconds = (time.perf_counter() - begun) / len(cells)
        return [
            {**{name: [one[number][name] for one in found] for name in found[0][number]}, "seconds": seconds}
            for number in range(len(cells))
        ]

    def _of_layers(self, cells: Sequence[Cell]) -> list[list[dict[str, float]]]:
        config, [cell] = self.study, cells
        where = (cell.name, cell.settings["what"], cell.settings["engine"])
        how = (config.rounds, config.tries)
        return [[layers.measure_layer(config.model, seed, config.images, *where, *how)] for seed in self.seeds]

    def _of_units(self, cells: Sequence[Cell]) -> list[list[dict[str, float]]]:
        config, engine = self.study, cells[0].settings["engine"]
        how = (config.rounds, config.tries)
        return [layers.measure_units(config.model, seed, config.images, config.units, engine, *how) for seed in self.seeds]

    def _of_branches(self, cells: Sequence[Cell]) -> list[list[dict[str, float]]]:
        return [[branches.side_by_side(cells[0].name, seed, self.study.rounds)] for seed in self.seeds]

    def _of_edge(self, cells: Sequence[Cell]) -> list[list[dict[str, float]]]:
        place, nets = cells[0].settings["cut"], self.trained(cells[0].settings["task"])
        if not place:
            sizes = [float(np.prod(net.test.images.shape[1:])) for net in nets]
            return [[{"error": net.whole_error, "raw_bytes": 4 * size, "image_bytes": size}] for net, size in zip(nets, sizes)]
        return [at_edge.figures(net, place, [cell.settings["bits"] for cell in cells]) for net in nets]

    def _of_latency(self, cells: Sequence[Cell]) -> list[list[dict[str, float]]]:
        config, folder = self.study, self.run_dir / "files"
        folder.mkdir(parents=True, exist_ok=True)
        links = [Link(mbit, config.rtt_ms) for mbit in config.mbits]
        how: dict[str, Any] = {"bits": 4, "images": config.request, "slower": config.slower, "rounds": config.requests}
        nets = self.trained(cells[0].settings["task"])
        return [[way for link in latency.measure(net, links, folder, **how) for way in link] for net in nets]


def _some(split: Any, count: int) -> Any:
    return type(split)(images=split.images[:count], labels=split.labels[:count])
