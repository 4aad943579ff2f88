"""The same training of a small network, pruned as it goes, on 1, 2 and 4 devices of one host and by two processes.

Every row begins with the same weights and reads the same batches; rows are devices of the host's processor, so that times say
what the division costs, and nothing of accelerators. "wire" is what each device sends in a step, counted in the compiled
program as if devices formed a ring. Losses are compared step by step with those of one device, masks bit by bit after the last.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.common import study
from experiments.common.cli import ROOT
from experiments.common.columns import Column, figure, plain, reference, tabulate
from experiments.common.curves import Curve, Panel, draw
from experiments.common.figures import Drawing
from experiments.common.results import Result
from experiments.common.study import Cell, Parts
from lepton_jax.core.errors import check_fraction

ONE = "one_device"
KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One division."""

    devices: int = 1
    """Of all processes together."""
    processes: int = 1
    """How many share them."""
    placement: Literal["replicated", "fsdp"] = "replicated"
    """How weights, masks and moments lie."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "devices", "processes")
        if self.devices % self.processes:
            yield f"devices: must be a multiple of the processes; got {self.devices} and {self.processes}"

    @property
    def settings(self) -> dict[str, Any]:
        """All but the name."""
        return {"devices": self.devices, "processes": self.processes, "placement": self.placement}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(study.Study):
    """A table: rows are divisions of one training of LeNet-300-100's kind on scikit-learn's digits."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The divisions; the first is that of one device."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the layers."""
    steps: int = 300
    """Of every training."""
    batch: int = 64
    """Examples a step, of all devices together."""
    rate: float = 1e-3
    """Of Adam."""
    sparsity: float = 0.9
    """At the end, of all weights together."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(6, "steps")
        yield from self.at_least(1, "batch")
        check_fraction("Scaling: sparsity", self.sparsity)

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        one = reference(results, ONE)
        drawing = Drawing(file="scaling.png", alternative="differences of the losses", draw=partial(_plot, results=results))
        return [tabulate(results, COLUMNS, one), drawing]


def _far(result: Result, other: Result | None) -> str:
    return "" if other in (None, result) or other is None else f"{max(map(max, differences(result, other))):.1e}"


def _same(result: Result, other: Result | None) -> str:
    if other is None or other is result:
        return ""
    pairs = list(zip(result["masks"], other["masks"], strict=True))
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"


def differences(result: Result, other: Result) -> list[list[float]]:
    """Return how far each seed's losses are from another row's, step by step.

    Example:
      >>> differences({"losses": [[1.0, 2.0]]}, {"losses": [[1.0, 2.5]]})
      [[0.0, 0.5]]
    """
    return [[abs(a - b) for a, b in zip(*pair, strict=True)] for pair in zip(result["losses"], other["losses"], strict=True)]


COLUMNS: tuple[Column | str, ...] = (
    "row",
    plain("devices", lambda r: str(r["settings"]["devices"])),
    "accuracy",
    Column("largest difference of a loss", _far),
    Column("runs with the same masks", _same),
    figure("zeros", "zeros", 0),
    plain("wire, gathers (bytes)", lambda r: f"{r['sent'].get('all-gather', 0):,.0f}"),
    plain("wire, sums (bytes)", lambda r: f"{r['sent'].get('all-reduce', 0) + r['sent'].get('reduce-scatter', 0):,.0f}"),
    plain("wire, other (bytes)", lambda r: f"{sum(r['sent'].get(k, 0) for k in KINDS[2:4]):,.0f}"),
    figure("ms a step", "ms", 2),
    figure("processor ms a step", "cpu_ms", 2),
)


_WINDOW = 20
"""Steps of which the picture shows the largest difference."""


def _plot(path: Path, results: Sequence[Result]) -> None:
    curves = []
    for result in results[1:]:
        far = [max(seeds) for seeds in zip(*differences(result, results[0]), strict=True)]
        most = [max(far[first : first + _WINDOW]) for first in range(0, len(far), _WINDOW)]
        x = [min(first + _WINDOW, len(far)) for first in range(0, len(far), _WINDOW)]
        curves.append(Curve(label=result["row"], x=x, y=[[1e7 * one] for one in most]))
    draw(path, [Panel(curves=curves)], x="step", y=f"largest loss difference of {_WINDOW} steps (1e-7)", size=(8, 4.6))


class Runner(study.Runner[Scaling]):
    """Starts the processes of each row, one row after another."""

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        row, config = cells[0].row, self.study
        steps = config.steps if config.max_steps is None else max(6, min(config.steps, config.max_steps))
        words = {name: getattr(config, name) for name in ("hidden", "batch", "rate", "sparsity")}
        words |= {"steps": steps, "seeds": list(self.seeds), "placement": row.placement, "log_every": 1}
        begin = time.perf_counter()
        parts = run_row(words, row.devices, row.processes)
        first = parts[0]["seeds"]
        seconds = [[1e3 * part["seeds"][n]["cpu"] / steps for part in parts] for n in range(len(first))]
        result = {name: [one[name] for one in first] for name in ("error", "losses", "masks", "zeros")}
        times = {"ms": [1e3 * one["wall"] / steps for one in first], "cpu_ms": [sum(each) for each in seconds]}
        return [{**result, **times, "sent": parts[0]["sent"], "seconds": time.perf_counter() - begin}]


def run_row(words: dict[str, Any], devices: int, processes: int) -> list[Any]:
    """Return what each process of a row wrote.

    Raises:
      ValueError: if one ended badly; with its last lines.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices // processes}"
    common = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    group = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seen"
        command = [sys.executable, "-m", "experiments.studies.scaling_worker", json.dumps(words), str(out)]
        said = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        running = [
            subprocess.Popen(command, env={**common, **group, "JAX_PROCESS_ID": str(number)}, **said)  # type: ignore[call-overload]
            for number in range(processes)
        ]
        try:
            errors = [process.communicate(timeout=1800)[1] for process in running]
        finally:
            for process in running:
                process.kill()
        for process, error in zip(running, errors, strict=True):
            if process.returncode:
                raise ValueError(f"{devices} devices, {processes} processes: {' '.join(error.split()[-60:])}")
        return [json.loads(Path(f"{out}.{number}").read_text()) for number in range(processes)]
