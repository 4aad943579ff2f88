"""What an ablation is: a config that is a `Study`, whose rows a `Runner` trains and measures, and a report of their results.

All that studies share is here: which rows are run, their results kept a file each in one form (see `results`), and the report
written from what the study declares. A new ablation whose procedure exists is one file in `configs/`, run by
``python -m experiments.study --config FILE``. A new procedure is one file in `experiments/studies/` besides, for example::

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Rounded(Study):
        weights: Path  # a field that the command line can override; its rows are `Row`s with what each needs

        def runner(self, seeds, run_dir):
            return RoundedRunner(self, seeds, run_dir)

        def report(self, results):  # tables of declared columns, drawings, notes; the rest is written around them
            columns = ("row", "accuracy", "change", "bytes", "time, 1", mean("steps", "steps"))
            return [tabulate(results, columns, reference(results, "float32")), *accuracy_by_bytes(results)]


    class RoundedRunner(Runner[Rounded]):
        def measure(self, cells):  # of those that are trained together, by default one; a result each, of its figures alone
            [cell] = cells
            return [{"error": [wrong(cell.row, seed) for seed in self.seeds], "seconds": 1.0}]

What several rows need is a `functools.cached_property` of the runner; where a row's file goes is ``self.path(cell, ...)``. A
study whose table has more lines than rows (a line a row and a number of bits) returns them from ``cells``, with their
``settings``. A study of networks that are trained here inherits from `training_study.TrainingStudy`, and so does its runner.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import tyro

from experiments.common import cli, processes
from experiments.common.columns import explained
from experiments.common.config import Checked
from experiments.common.figures import Drawing
from experiments.common.results import Result, load_result, save_report, save_result
from experiments.common.run_dir import claim_study
from experiments.common.tables import Lines, aligned, markdown_table, provenance, revision
from lepton_jax.training import multihost

Parts = list[str | Lines | Drawing]
"""Of a report: paragraphs and headings, tables, drawings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Checked):
    """One way to do it: base of the rows of studies."""

    reserved: ClassVar[tuple[str, ...]] = ()
    """Names that a study gives to rows of its own."""

    name: str
    """Of the row."""

    def problems(self) -> Iterator[str]:
        besides = "".join(f" other than {name!r}" for name in self.reserved)
        if not self.name.replace("-", "_").isidentifier() or self.name in self.reserved:
            yield f"name: must be a word{besides}, since it names files"

    @property
    def settings(self) -> dict[str, Any]:
        """What else tells it from rows of the same name; columns and reports read them."""
        return {}

    @property
    def label(self) -> str:
        """Unique in a study; names files."""
        return self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One line to be measured: a row under some settings."""

    row: Any
    """The study's own."""
    name: str
    """Of the row."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else tells it from cells of the same name."""
    label: str
    """Unique in the study; names files."""


def check_rows(names: Sequence[str], only: Sequence[str], *, field: str = "rows") -> Iterator[str]:
    """Say what is wrong with the names of rows, and with those that are to be run.

    Example:
      >>> list(check_rows(["a", "a"], ["b"]))
      ["rows: at least one, each with a name of its own; got ['a', 'a']", "only: there is no row 'b'; there are a"]
    """
    if not names or len(set(names)) < len(names):
        yield f"{field}: at least one, each with a name of its own; got {list(names)}"
    known = dict.fromkeys(names)
    for name in only:
        if name not in known:
            yield f"only: there is no {field.removesuffix('s')} {name!r}; there are {', '.join(known)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Checked):
    """Base of all studies: the settings of one ablation."""

    passing: ClassVar[tuple[str, ...]] = ("only",)
    """Fields that say nothing about what is in the run's folder: which rows are run now, where data lie."""

    name: str
    """Names the run folder."""
    rows: Annotated[tuple[Any, ...], tyro.conf.Suppress] = ()
    """What is compared."""
    seed: int = 0
    """The first seed: of all that is random."""
    max_steps: int | None = None
    """Stop every training after so many steps, for a trial run."""
    only: tuple[str, ...] = ()
    """Run only the rows of these names."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.check_rows()
        yield from self.at_least(1, "max_steps")
        yield from self.at_least(0, "seed")

    def check_rows(self) -> Iterator[str]:
        """Say what is wrong with the rows' names; several rows of one name differ in their labels."""
        labels = [row.label for row in self.rows]
        named = dict.fromkeys(row.name for row in self.rows)
        yield from check_rows(list(named), self.only)
        if len(set(labels)) < len(labels):
            yield f"rows: each with a name of its own, or other settings; got {labels}"

    @property
    def chosen(self) -> tuple[Any, ...]:
        """The rows to run."""
        return tuple(row for row in self.rows if not self.only or row.name in self.only)

    @property
    def cells(self) -> list[Cell]:
        """What is to be measured, in the order of the report: by default a line a row."""
        return [Cell(row=row, name=row.name, settings=row.settings, label=row.label) for row in self.chosen]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner[Any]":
        """Return what trains and measures."""
        raise TypeError(f"{type(self).__name__} must define runner")

    @property
    def said(self) -> str:
        """The settings that are numbers or words, for the report."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        listed = {
            name: value if isinstance(value, tuple) else (value,) for name, value in fields.items() if name not in _UNSAID
        }
        plain = {n: some for n, some in listed.items() if all(isinstance(one, int | float | str) for one in some)}
        return "; ".join(f"{name} {', '.join(map(str, some))}" for name, some in plain.items())

    def report(self, results: Sequence[Result]) -> Parts:
        """Return the parts of the report, in order: tables, drawings, paragraphs.

        What stands before them is the documentation of the study's module, the settings and what the columns mean.
        """
        raise TypeError(f"{type(self).__name__} must define report")


_UNSAID = ("name", "rows", "seed", "only", "files", "scan", "vmap", "latency_rounds", "known")
"""Fields that the report does not name among the settings."""

S = TypeVar("S", bound=Study)


class Runner(Generic[S]):
    """Measures a study's cells, each once: finished ones are kept in the run's folder.

    Args:
      study: the settings.
      seeds: of the runs.
      run_dir: gets a JSON file for each finished cell.
    """

    def __init__(self, study: S, seeds: Sequence[int], run_dir: Path) -> None:
        self.study, self.seeds, self.run_dir = study, tuple(seeds), run_dir

    def measure(self, cells: Sequence[Cell]) -> Sequence[Result]:
        """Train and measure cells that go together; return the figures of each, with ``seconds``."""
        raise TypeError(f"{type(self).__name__} must define measure")

    def together(self, cell: Cell) -> Hashable:
        """Say which cells are measured in one call: neighbours of the same value. By default each is alone."""
        return cell.label

    def path(self, cell: Cell, folder: str = "rows", ending: str = "json") -> Path:
        """Return where a cell's result is, or another file of it."""
        place = self.run_dir / folder / f"{cell.label}.{ending}"
        return place if folder == "rows" else processes.own(place)

    def run(self) -> list[Result]:
        """Measure what is missing; return all results, in the order of the cells."""
        missing = [cell for cell in self.study.cells if not self.path(cell).exists()]
        for _, some in itertools.groupby(missing, key=self.together):
            group = list(some)
            for cell, figures in zip(group, self.measure(group), strict=True):
                self.keep(cell, figures)
        processes.after("the rows")
        return [load_result(self.path(cell)) for cell in self.study.cells]

    def keep(self, cell: Cell, figures: Result) -> Result:
        """Write a cell's result, in the one form of all studies."""
        about = {"row": cell.name, "settings": dict(cell.settings), "seeds": list(self.seeds)}
        result = {**about, **figures, "revision": revision()}
        if multihost.is_first():
            save_result(self.path(cell), result)
        return result


def conduct(options: cli.Options[Study]) -> None:
    """Claim a folder, measure what is missing, and report it."""
    study, seeds, folder = claim_study(options, besides=options.setting.passing)
    results = study.runner(seeds, folder).run()
    if multihost.is_first():
        write_report(folder, study, results)


def write_report(folder: Path, study: Study, results: Sequence[Result]) -> None:
    """Write `report.md`, its drawings and `summary.json`, and print the first table."""
    parts = study.report(results)
    titles = [title for part in parts if isinstance(part, list) for title in part[0]]
    about = (inspect.getdoc(inspect.getmodule(type(study))) or "").split("\n\n")
    settings = f"Seeds {', '.join(map(str, results[0]['seeds']))}; {study.said}."
    text = [f"# {study.name}", *(" ".join(some.split()) for some in about), settings, explained(titles)]
    for part in parts:
        if isinstance(part, Drawing):
            part.draw(folder / part.file)
            text.append(f"![{part.alternative}]({part.file})")
        else:
            text.append(part if isinstance(part, str) else "\n".join(markdown_table(part)))
    seconds = sum(result["seconds"] for result in results)
    text = [some for some in text if some]
    text.append(f"{provenance({result['revision'] for result in results}, None)} It took {seconds / 60:.1f} minutes.")
    save_report(folder / "report.md", study.name, text, results)
    print("\n".join(aligned(next(part for part in parts if isinstance(part, list)))))
    print(f"{seconds:.0f} s; report in {folder / 'report.md'}")


def script(description: str | None, default_config: str, kind: type[Study]) -> Callable[[], None]:
    """Return the ``main`` of a study's module, which reads the command line.

    Args:
      description: shown by ``--help``, with examples.
      default_config: name of a file in `configs/`.
      kind: the class of its configs.
    """
    return partial(cli.run, conduct, default_config=default_config, description=description, kind=kind)
