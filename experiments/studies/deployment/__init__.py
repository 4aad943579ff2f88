"""Networks on engines: bytes, accuracy and time of each compression, on XLA, ONNX Runtime, OpenVINO and LiteRT.

"W8A8" has weights and activations in eight bits, placed as engines fuse them; "W4A8" weights of four bits by GPTQ, which
engines hold a byte each. "half the channels" has lost the half of them of least absolute weights, "low rank" has weights as
products of two of a quarter of their rank; both have then learned from the whole network's outputs on inputs without labels. On
XLA the rows with eight bits are the simulation of an engine's integers, which says their numbers and is slow.

Ratios are the float network's time over the row's on the same engine, by processor time on one core, in turns (`deploy.gate`),
with 95 % intervals; where the first against itself is more than 5 % apart, they are marked. Accuracy is what the engine's
outputs give on the first test examples; networks of random weights have none.
"""

import dataclasses
import importlib.util
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.common import resnet20, study
from experiments.common.columns import Column, accuracy, change, figure, plain, reference, setting, tabulate
from experiments.common.results import Result
from experiments.common.study import Cell, Parts
from experiments.studies.deployment import ways
from experiments.studies.deployment.networks import Network, Row
from lepton_jax import ArtifactError, Model, deploy

Engine = Literal["xla", "onnxruntime", "openvino", "litert"]
_NEEDS: dict[str, tuple[str, ...]] = {
    "xla": (),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "litert": ("litert_converter", "ai_edge_litert"),
}
NAMES = {"xla": "XLA", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment(study.Study):
    """A table: a line a network, an engine and a way."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The networks."""
    engines: tuple[Engine, ...] = ("onnxruntime", "litert", "openvino", "xla")
    """Those that are installed are measured."""
    ways: tuple[str, ...] = tuple(ways.WAYS)
    """What is done with each network; the first is what the others are compared with."""
    batches: tuple[int, ...] = (1, 16)
    """Examples in a call."""
    known: int = 2048
    """Training inputs."""
    test_images: int = 2000
    """At most."""
    steps: int = 150
    """Of learning from the whole network."""
    rounds: int = 15
    """Of a timing."""
    text: Path = resnet20.FOLDER / "tinyshakespeare" / "input.txt"
    """Of the characters."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(3, "rounds")
        yield from self.at_least(1, "known", "test_images", "steps")
        yield from (f"ways: there is no {way!r}; there are {', '.join(ways.WAYS)}" for way in self.ways if way not in ways.WAYS)
        if not self.ways or not self.batches or min(self.batches, default=0) < 1:
            yield "ways, batches: at least one, batches of 1 or more"

    @property
    def cells(self) -> list[Cell]:
        """Every way on every engine that is there."""
        there = [engine for engine in self.engines if all(importlib.util.find_spec(name) for name in _NEEDS[engine])]
        return [
            Cell(
                row=row,
                name=way,
                settings={"network": row.name, "engine": engine},
                label=f"{row.name}-{engine}-{way}".replace(", ", "-").replace(" ", "_"),
            )
            for row in self.chosen
            for engine in there
            for way in self.ways
        ]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        compare = reference(results, self.ways[0], "network", "engine")
        absent = [NAMES[engine] for engine in self.engines if engine not in {r["settings"]["engine"] for r in results}]
        notes = [
            f"- {r['settings']['network']}, {NAMES[r['settings']['engine']]}, {r['row']}: {r['refused']}"
            for r in results
            if "refused" in r
        ]
        parts: Parts = []
        for network in dict.fromkeys(r["settings"]["network"] for r in results):
            mine = [result for result in results if result["settings"]["network"] == network]
            parts += [f"## {network}", tabulate(mine, _columns(mine, self.batches), compare)]
        parts += ["## Refused", "\n".join(notes)] if notes else []
        return [*parts, *([f"Not installed, so not measured: {', '.join(absent)}."] if absent else [])]


def _columns(results: Sequence[Result], batches: Sequence[int]) -> list[Column | str]:
    judged: list[Column | str] = []
    if any("error" in result for result in results):
        judged = [accuracy("accuracy"), change("change")]
    elif any("perplexity" in result for result in results):
        judged = [figure("perplexity", "perplexity", 3)]
    times = [plain(f"{title}, {batch}", partial(cell, str(batch))) for batch in batches for title, cell in _TIMES]
    return [setting("engine", "engine", NAMES.__getitem__), "row", plain("file, kB", _kilobytes), *judged, *times]


def _kilobytes(result: Result) -> str:
    return f"{result['deployed_bytes'] / 1000:,.0f}" if "deployed_bytes" in result else ""


def _ratio(batch: str, result: Result) -> str:
    if batch not in result.get("times", {}):
        return ""
    found = result["times"][batch]
    return f"{found['ratio']:.2f} [{found['low']:.2f}-{found['high']:.2f}]{'' if found['trusted'] else ' (A/A off)'}"


def _milliseconds(batch: str, result: Result) -> str:
    return f"{result['times'][batch]['ms']:.3f}" if batch in result.get("times", {}) else ""


_TIMES: tuple[tuple[str, Callable[[str, Result], str]], ...] = (("ratio", _ratio), ("ms", _milliseconds))


class Runner(study.Runner[Deployment]):
    """Makes every form of a network once, and measures it on an engine."""

    def __init__(self, study: Deployment, seeds: Sequence[int], run_dir: Path) -> None:
        super().__init__(study, seeds, run_dir)
        self._networks: dict[str, list[Network]] = {}
        self._ready: dict[tuple[str, int], dict[str, Model]] = {}

    def together(self, cell: Cell) -> Hashable:
        return cell.row.name, cell.settings["engine"]

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        begun, row, engine = time.perf_counter(), cells[0].row, cells[0].settings["engine"]
        config = self.study
        if row.name not in self._networks:
            limits = {"known": config.known, "test": config.test_images, "text": config.text, "steps": config.max_steps}
            self._networks = {row.name: row.networks(self.seeds, self.run_dir, **limits)}
        names = [cell.name for cell in cells]
        found: dict[str, Result] = {name: {} for name in names}
        with tempfile.TemporaryDirectory() as folder:
            for seed, net in zip(self.seeds, self._networks[row.name]):
                runs = {name: self._runs(name, net, seed, engine, Path(folder), found[name]) for name in names}
                for name, run in runs.items():
                    self._judge(net, run, found[name])
                if seed == self.seeds[0]:
                    self._time(net, {name: run for name, run in runs.items() if run}, found)
        seconds = (time.perf_counter() - begun) / len(cells)
        return [{**found[name], "seconds": seconds} for name in names]

    def _runs(
        self, name: str, net: Network, seed: int, engine: Engine, folder: Path, result: Result
    ) -> dict[int, Callable[[np.ndarray], Any]]:
        """A way as a function for each size of batch; none if the engine does not take it."""
        steps = self.study.steps if self.study.max_steps is None else min(self.study.steps, self.study.max_steps)
        ready = self._ready.setdefault((str(id(net)), seed), {})
        try:
            model = ways.made(name, net, steps, ready)
            return {batch: self._run(name, model, net, engine, batch, folder, result) for batch in self.study.batches}
        except (ValueError, TypeError, ArtifactError) as error:
            result["refused"] = str(error).splitlines()[0][:200]
            return {}

    def _run(
        self, name: str, model: Model, net: Network, engine: Engine, batch: int, folder: Path, result: Result
    ) -> Callable[[np.ndarray], Any]:
        model = Model(model.apply, model.variables, (net.known[:batch],))
        target = "onnxruntime" if engine == "xla" else engine
        placed = deploy.place(model, ways.batches_of(net.known, 8), target) if ways.WAYS[name][1] else None
        if engine == "xla":
            run: Any = placed.simulate if placed else model
            return lambda x: [run(x)]
        path = folder / f"{name}-{batch}{'.tflite' if engine == 'litert' else '.onnx'}"
        if placed:
            placed.save(path)
        else:
            deploy.save(model, path)
        result.setdefault("deployed_bytes", path.stat().st_size)
        return deploy.runner(path, engine=engine)

    def _judge(self, net: Network, runs: dict[int, Callable[[np.ndarray], Any]], result: Result) -> None:
        if net.labels is None or not runs:
            return
        batch = max(runs)
        starts = range(0, len(net.test) - batch + 1, batch)
        outputs = [np.asarray(runs[batch](net.test[start : start + batch])[0]) for start in starts]
        for metric, value in ways.wrong(outputs, net.labels).items():
            result.setdefault(metric, []).append(value)

    def _time(self, net: Network, runs: dict[str, dict[int, Callable[[np.ndarray], Any]]], found: dict[str, Result]) -> None:
        for batch in self.study.batches if runs else ():
            inputs = np.resize(net.test[:batch], (batch, *net.test.shape[1:]))
            measured = deploy.gate({name: partial(run[batch], inputs) for name, run in runs.items()}, self.study.rounds)
            for name, (ratio, low, high) in measured.ratios.items():
                times = {"ratio": ratio, "low": low, "high": high, "ms": 1e3 * measured.seconds[name]}
                found[name].setdefault("times", {})[str(batch)] = {**times, "trusted": measured.is_trusted}
