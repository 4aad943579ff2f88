"""``lepton bench``: how fast files are, one against the other."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tyro.conf import Positional

from lepton_jax.artifact import load
from lepton_jax.command_line.console import Answer, Command
from lepton_jax.core.extras import pyplot
from lepton_jax.core.tables import table
from lepton_jax.deploy import litert
from lepton_jax.deploy.engine import runner, session
from lepton_jax.deploy.gate import gate
from lepton_jax.interchange.npz import read_npy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure files against the first of them: .lepton by XLA, .onnx by ONNX Runtime or OpenVINO, .tflite by LiteRT.

    Processor time on one core, in turns, with an interval; and how far outputs are from the first's.

    Examples:
      lepton bench float.onnx int8.onnx
      lepton bench float.onnx int8.onnx --engine openvino
      lepton bench model.lepton model.onnx --input images.npy --batch 16 --plot bench.png
    """

    files: Positional[tuple[Path, ...]]
    """Files of one model, .lepton, .onnx or .tflite."""
    input: tuple[Path, ...] = ()
    """A .npy file for each input; without it, random numbers, of whole numbers 0 and 1."""
    batch: int = 1
    """Examples in a call, where the batch may have any length."""
    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """What runs .onnx files."""
    activations: Literal["float32", "int8"] = "float32"
    """Whether ONNX Runtime may round to eight bits what meets weights of few bits: less exact, and faster."""
    rounds: int = 15
    """How often each is measured."""
    plot: Path | None = None
    """A picture of the ratios."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("give one file or more, .lepton, .onnx or .tflite.")
        if self.batch < 1:
            raise ValueError(f"--batch must be 1 or more; got {self.batch}.")

    def answer(self) -> Answer:
        given = [read_npy(path)[: self.batch] for path in self.input]
        runs: dict[str, Callable[[], Any]] = {}
        outputs = {}
        for path in self.files:
            name = str(path) if str(path) not in runs else f"{path} ({len(runs)})"
            runs[name] = _runner(path, given, self.batch, self.engine, self.activations)
            outputs[name] = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(runs[name]())]
        found = gate(runs, rounds=self.rounds)
        first = next(iter(outputs.values()))
        rows: list[Any] = [("file", "bytes", "ms", "ratio", "interval", "difference", "agreement")]
        facts = []
        for path, (name, (ratio, low, high)) in zip(self.files, found.ratios.items(), strict=True):
            far, same = _compared(first, outputs[name])
            size, ms = path.stat().st_size, 1e3 * found.seconds[name]
            interval = f"{low:.2f}-{high:.2f}"
            rows.append((name, size, f"{ms:.3f}", f"{ratio:.2f}", interval, f"{far:.3g}", f"{100 * same:.1f} %"))
            facts.append({"file": name, "bytes": size, "ms": ms, "ratio": ratio, "low": low, "high": high, "difference": far})
        if self.plot is not None:
            _plot(found.ratios, self.plot)
        said = str(found).splitlines()[-1]
        return Answer({"files": facts, "again": found.again, "trusted": found.is_trusted}, f"{table(rows)}\n{said}")


def _runner(path: Path, given: list[np.ndarray], batch: int, engine: Any, activations: Any) -> Callable[[], Any]:
    if path.suffix == ".lepton":
        model = load(path)
        inputs = given or [
            _numbers(_length(leaf.shape, names, batch), leaf.dtype)
            for leaf, names in zip(jax.tree.leaves(model.example_inputs), model.axes, strict=True)
        ]
        return partial(model, *map(jax.numpy.asarray, inputs))
    if path.suffix == ".tflite":
        given = given or [_numbers(shape, dtype) for shape, dtype in litert.ports(path, name="bench")]
    elif path.suffix == ".onnx":
        given = given or [_numbers(shape, dtype) for shape, dtype in _ports(path, batch)]
    else:
        raise ValueError(f"bench: files must be .lepton, .onnx or .tflite; got {path}.")
    return partial(
        runner(path, engine=engine if path.suffix == ".onnx" else None, activations=activations, name="bench"), *given
    )


def _ports(path: Path, batch: int) -> list[tuple[list[int], str]]:
    kinds = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool"}
    return [
        (
            [n if isinstance(n, int) else batch if axis == 0 else 8 for axis, n in enumerate(one.shape)],
            kinds.get(one.type, one.type.removeprefix("tensor(").removesuffix(")")),
        )
        for one in session(path, optimized=False, name="bench").get_inputs()
    ]


def _length(shape: Any, names: dict[int, str], batch: int) -> list[int]:
    return [batch if axis == 0 and axis in names else n for axis, n in enumerate(shape)]


def _numbers(shape: Any, dtype: Any) -> np.ndarray:
    random = np.random.default_rng(0)
    floating = np.issubdtype(np.dtype(dtype), np.floating)
    return (random.normal(size=shape) if floating else random.integers(0, 2, shape)).astype(dtype)


def _compared(first: list[np.ndarray], other: list[np.ndarray]) -> tuple[float, float]:
    """The largest difference, and how often the largest output is the same one."""
    pairs = [(a, b) for a, b in zip(first, other) if a.shape == b.shape]
    far = max((float(np.abs(a - b).max(initial=0)) for a, b in pairs), default=float("nan"))
    same = [np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in pairs if a.ndim and a.size]
    return far, float(min(same, default=1.0))


def _plot(ratios: Any, path: Path) -> None:
    plt = pyplot()

    figure, axes = plt.subplots(figsize=(6, 0.6 * len(ratios) + 1))
    middle = [ratio for ratio, _, _ in ratios.values()]
    spans = [[ratio - low for ratio, low, _ in ratios.values()], [high - ratio for ratio, _, high in ratios.values()]]
    axes.barh(list(ratios), middle, xerr=spans)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as the first")
    axes.set_title("Speed, with 95 % intervals")
    axes.invert_yaxis()
    try:
        figure.savefig(path, bbox_inches="tight")  # names may be long
    finally:
        plt.close(figure)
