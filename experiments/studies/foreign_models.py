"""ONNX files of others: how near our function is to ONNX Runtime's, and what compression makes of them.

"imported" is the function that is read, compared with ONNX Runtime on the file. "int8" has the weights in eight bits, one scale
an output channel, written back into the file's own graph. "w8a8" has activations in eight bits too, placed as ONNX Runtime
fuses them. "channels" has lost whole channels, those of least absolute weights, until 30 % of the parameters are gone, what
is left in multiples of 8 where it can be, and has then learned from the original's outputs on inputs without labels.

Inputs are drawn at random, others for calibration and learning than for the test, where a figure is of one seed's inputs. A
difference of outputs is the norm of the difference over the norm of the original's; where a file has several outputs, of them
all together. "smaller" is of the `.lepton` file without its program, against the variables in float32. Times are processor time
on ONNX Runtime, one core, over the original file's.
"""

import dataclasses
import importlib.util
import tempfile
import time
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.common import study
from experiments.common.columns import Column, figure, mean, plain, setting, tabulate
from experiments.common.results import Result, numbers
from experiments.common.study import Cell, Parts
from lepton_jax import ArtifactError, Model, account, deploy, identity, quantize_model
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange import from_onnx, to_onnx
from lepton_jax.pruning import channels
from lepton_jax.training import create, make_train_step

Technique = Literal["imported", "int8", "w8a8", "channels"]
Inputs = tuple[np.ndarray, ...]
_FRACTION, _BLOCK = 0.3, 8
_AIMS = {"imported": ("parity", 1e-5), "int8": ("change", 2e-2)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """How an input is drawn."""

    kind: Literal["normal", "uniform", "whole", "as_is"] = "normal"
    """Normal, uniform in [0, 1), whole numbers below `size`, or what the file's example has."""
    size: float = 1.0
    """A factor of normal and uniform numbers; the bound of whole ones."""

    def __call__(self, rng: np.random.Generator, like: Any) -> np.ndarray:
        if self.kind == "as_is":
            return np.full(like.shape, self.size).astype(like.dtype)
        if self.kind == "whole":
            return rng.integers(0, int(self.size), like.shape).astype(like.dtype)
        drawn = rng.normal(size=like.shape) if self.kind == "normal" else rng.random(like.shape)
        return (self.size * drawn).astype(like.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One file of a package."""

    package: str
    """As pip calls it."""
    module: str
    """As Python calls it."""
    file: str
    """Within the package."""
    inputs: tuple[Draw, ...] = (Draw(),)
    """One for each input, or one for all."""
    parity: float = 1e-5
    """The difference from ONNX Runtime that is aimed at."""

    @property
    def path(self) -> Path | None:
        """Where the file is; None where it is not."""
        found = importlib.util.find_spec(self.module)
        places = (Path(place) / self.file for place in (found.submodule_search_locations or ()) if found) if found else ()
        return next((place for place in places if place.is_file()), None)

    def draw(self, seed: Sequence[int], example: Inputs) -> Inputs:
        """Return inputs like the example's."""
        rng, draws = np.random.default_rng(seed), self.inputs * (len(example) if len(self.inputs) == 1 else 1)
        return tuple(draw(rng, np.asarray(like)) for draw, like in zip(draws, example, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignModels(study.Study):
    """A table: a line a file and a technique."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The files."""
    techniques: tuple[Technique, ...] = ("imported", "int8", "w8a8", "channels")
    """What is done with each."""
    calibration: int = 8
    """Batches to find ranges on, and to learn from."""
    steps: int = 60
    """Of learning, for the row channels."""
    learning_rate: float = 3e-4
    """Of Adam there."""
    engine_rounds: int = 7
    """Of the times."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "calibration", "steps")
        yield from self.at_least(3, "engine_rounds")
        if self.chosen and all(row.path is None for row in self.chosen):
            yield f"rows: none of the files is there; {_get(self.chosen)}"

    @property
    def cells(self) -> list[Cell]:
        """Every technique for every file that is there."""
        return [
            Cell(row=row, name=name, settings={"file": row.name}, label=f"{row.name}-{name}")
            for row in self.chosen
            if row.path is not None
            for name in self.techniques
        ]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        there = {result["settings"]["file"] for result in results}
        absent = [row for row in self.rows if row.name not in there]
        notes = [f"{r['settings']['file']}, {r['row']}: {r['refused']}" for r in results if "refused" in r]
        missing = f"Not measured: {', '.join(row.name for row in absent)}. {_get(absent)}" if absent else ""
        return [
            tabulate(results, COLUMNS, lambda result: None),
            "## Aims",
            "\n".join(f"- {line}" for line in aims(results, {row.name: row for row in self.rows})),
            *(["## Refused", "\n".join(f"- {note}" for note in notes)] if notes else []),
            *([missing] if missing else []),
        ]


def _get(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(row.package for row in rows)
    return f"Get them by pip install --no-deps {' '.join(names)}"


COLUMNS: tuple[Column | str, ...] = (
    setting("file", "file"),
    "row",
    plain("operators", lambda r: f"{r['operators']} of {r['kinds']} kinds" if "operators" in r else ""),
    plain("from ONNX Runtime", lambda r: f"{max(numbers(r, 'parity')):.1e}" if "parity" in r else ""),
    figure("output change", "change", 4),
    mean("parameters", "parameters"),
    plain("smaller", lambda r: f"{r['ratio']:.2f}" if "ratio" in r else ""),
    plain("ONNX bytes", lambda r: f"{r['onnx_bytes']:,}" if "onnx_bytes" in r else ""),
    plain("time on ONNX Runtime", lambda r: f"{r['onnx_time']:.2f}" if "onnx_time" in r else ""),
)


def aims(results: Sequence[Result], rows: dict[str, Row]) -> list[str]:
    """Say for how many files what was aimed at is reached, and name the others."""
    said = []
    for name, (metric, aim) in _AIMS.items():
        mine = [result for result in results if result["row"] == name and metric in result]
        limits = {r["settings"]["file"]: rows[r["settings"]["file"]].parity if name == "imported" else aim for r in mine}
        over = [r["settings"]["file"] for r in mine if max(numbers(r, metric)) > limits[r["settings"]["file"]]]
        words = (
            f"difference from ONNX Runtime of {aim:g} at most" if name == "imported" else f"output change of {aim:g} at most"
        )
        said.append(f"{name}: {words}: {len(mine) - len(over)} of {len(mine)}" + (f"; not {', '.join(over)}." if over else "."))
    mine = [result for result in results if result["row"] == "int8" and "ratio" in result]
    over = [f"{r['settings']['file']} ({r['ratio']:.2f})" for r in mine if r["ratio"] < 4]
    said.append(
        f"int8: 4 times smaller: {len(mine) - len(over)} of {len(mine)}" + (f"; not {', '.join(over)}." if over else ".")
    )
    return said


def differs(got: Any, wanted: Any) -> float:
    """Return the norm of the difference of outputs over the norm of what is wanted, float64.

    Example:
      >>> differs([np.array([1.0, 1.0])], [np.array([1.0, 0.0])])
      1.0
    """
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(_listed(got), _listed(wanted), strict=True)]
    gone, whole = (
        float(np.sqrt(sum(np.sum(np.square(one)) for one in some)))
        for some in ([a - b for a, b in pairs], [b for _, b in pairs])
    )
    return gone / whole if whole else gone


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


class Runner(study.Runner[ForeignModels]):
    """Reads a file once, and measures every technique on it."""

    def together(self, cell: Cell) -> Hashable:
        return cell.row.name

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        row = cells[0].row
        assert row.path is not None
        jax.clear_caches()  # programs of the file before, several gigabytes after a dozen of them
        model, original = from_onnx(row.path), deploy.runner(row.path)
        tests = [row.draw((1, seed), model.example) for seed in self.seeds]
        wanted = [original(*x) for x in tests]
        return [self._measured(cell.name, row, model, original, tests, wanted) for cell in cells]

    def _measured(
        self, name: str, row: Row, model: Model, original: Any, tests: Sequence[Inputs], wanted: Sequence[Any]
    ) -> Result:
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder:
                made = getattr(self, f"_{name}")(row, model, Path(folder))
                figures = {**made, **self._there(Path(folder) / "row.onnx", original, tests, wanted)}
        except (ValueError, ArtifactError) as error:
            figures = {"refused": str(error).splitlines()[0][:300]}
        if name == "imported":
            figures["parity"] = [differs(model(*x), want) for x, want in zip(tests, wanted, strict=True)]
            figures.pop("change", None)
        return {**figures, "seconds": time.perf_counter() - start}

    def _there(self, file: Path, original: Any, tests: Sequence[Inputs], wanted: Sequence[Any]) -> Result:
        """What a file does on ONNX Runtime."""
        if not file.is_file():
            return {}
        run = deploy.runner(file, activations="int8")  # as the engine runs it if nothing is said
        change = [differs(run(*x), want) for x, want in zip(tests, wanted, strict=True)]
        measured = deploy.gate(
            {"original": partial(original, *tests[0]), "row": partial(run, *tests[0])}, self.study.engine_rounds
        )
        return {"change": change, "onnx_bytes": file.stat().st_size, "onnx_time": 1 / measured.ratios["row"][0]}

    def _batches(self, row: Row, model: Model) -> list[Inputs]:
        return [row.draw((0, number), model.example) for number in range(self.study.calibration)]

    def _saved(self, model: Model, folder: Path) -> Result:
        model.save(folder / "row.lepton", axes={})
        made = account(folder / "row.lepton")
        return {"parameters": made.parameters, "ratio": made.ratio, "lepton_bytes": made.total}

    def _imported(self, row: Row, model: Model, folder: Path) -> Result:
        import onnx

        assert row.path is not None
        kinds = [node.op_type for node in onnx.load(row.path, load_external_data=False).graph.node]
        to_onnx(model, folder / "row.onnx")
        return {"operators": len(kinds), "kinds": len(set(kinds)), **self._saved(model, folder)}

    def _int8(self, row: Row, model: Model, folder: Path) -> Result:
        small = quantize_model(model, 8)
        to_onnx(small, folder / "row.onnx")
        return self._saved(small, folder)

    def _w8a8(self, row: Row, model: Model, folder: Path) -> Result:
        deploy.place(model, self._batches(row, model)).save(folder / "row.onnx", axes={})
        return {}

    def _channels(self, row: Row, model: Model, folder: Path) -> Result:
        plan = partial(channels.plan, model.apply, model.variables, *model.example, fraction=_FRACTION, of="parameters")
        try:
            made = plan(round_to=_BLOCK)
        except ValueError:  # groups that are too small for it
            made = plan()
        apply, variables = made.rewrite(model.apply), jax.tree.map(jnp.asarray, made.shrink(model.variables))
        variables = self._taught(apply, variables, self._batches(row, model), model)
        small = Model(apply, variables, model.example)
        to_onnx(small, folder / "row.onnx", axes={})
        return self._saved(small, folder)

    def _taught(self, apply: Any, variables: PyTree, batches: Sequence[Inputs], model: Model) -> PyTree:
        """The variables after learning from the original's outputs; those under "params" learn."""
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def loss(params: PyTree, model_state: PyTree, batch: Any, key: Any) -> Any:
            inputs, wanted = batch
            pairs = list(zip(_listed(apply({"params": params, **model_state}, *inputs)), wanted, strict=True))
            pairs = [(a, b) for a, b in pairs if jnp.issubdtype(b.dtype, jnp.floating)]
            gone, whole = (
                sum(jnp.sum(jnp.square(one)) for one in some) for some in ([a - b for a, b in pairs], [b for _, b in pairs])
            )
            return gone / (whole + 1e-12), (model_state, {})

        answered = [(jax.tree.map(jnp.asarray, x), [jnp.asarray(y) for y in _listed(model(*x))]) for x in batches]
        steps = self.study.steps if self.study.max_steps is None else min(self.study.steps, self.study.max_steps)
        tx = optax.adam(optax.cosine_decay_schedule(self.study.learning_rate, steps))
        step = make_train_step(loss, tx, identity())
        state = create(variables["params"], rest, tx, identity(), jax.random.key(0))
        for number in range(steps):
            state, _ = step(state, answered[number % len(answered)])
        return {"params": state.params, **rest}
