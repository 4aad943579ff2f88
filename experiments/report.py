"""Put finished runs side by side: one table, and accuracy against bytes and against multiplications.

    python -m experiments.report runs/gradual_pruning
    python -m experiments.report runs/gradual_pruning runs/sparse_training --out runs/sparsity
    python -m experiments.report runs/deep_compression_digits-seed0 runs/deep_compression_digits-seed1
    python -m experiments.report experiments/results/deep_compression_*

A run is a folder with a `summary.json`, or a folder of such folders, e.g. one a seed: seeds of one config are joined. Writes
`report.md`, `bytes.png` and `macs.png`, the figures only where rows differ in what they would be drawn against.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.common.cli import errors_in_one_line
from experiments.common.columns import Column, accuracy, explained, plain, tabulate
from experiments.common.figures import Point, accuracy_against, point_of
from experiments.common.finished import Row, environment_of, labels, read, runs_in
from experiments.common.results import Result, spread
from experiments.common.tables import aligned, markdown_table
from lepton_jax.core.files import write_text

_MOST_SERIES = 40
"""With more rows' names than these, a series of the figure is a run."""
_ALONE = "the only one on its data"
"""The panel of rows that are compared with no other."""
COSTS = {"file_bytes": ("bytes.png", "bytes of the file"), "macs": ("macs.png", "multiply-accumulates of one example")}
"""Figures: what is drawn against, the file's name, the axis's."""
COUNTS = {"parameters": "parameters", "non-zeros": "nonzeros", "MACs": "macs", "bytes": "file_bytes"}
"""Columns of counts, and the figures that they show."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=Path("runs/report"), help="the report's folder; by default runs/report")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        write(options.runs, options.out)


def write(folders: Sequence[Path], out: Path, *, family: str = "") -> None:
    """Write `report.md` and its figures, and print the table.

    Args:
      folders: of runs.
      out: made if it is not there; may be no run's own folder.
      family: what all the runs' names begin with; it is said once, in the title.

    Raises:
      ValueError: if a folder is no finished run's, or the report would replace a run's.
    """
    if (out / "config.json").exists() or (out / "summary.json").exists():
        raise ValueError(f"{out} is a run's folder and has a report of its own. Choose another --out; nothing was overwritten.")
    rows = [replace(row, run=row.run.removeprefix(f"{family}_")) for row in read(folders)]
    lines = table(rows)
    out.mkdir(parents=True, exist_ok=True)
    title = ", ".join(dict.fromkeys(row.run for row in rows))
    text = [f"# {family}: {title}" if family else f"# {title}", "\n".join(markdown_table(lines)), explained(lines[0])]
    for figure, (file, axis) in COSTS.items():
        some = points(rows, figure)
        for earlier in out.glob(f"{Path(file).stem}.*"):  # of an earlier report, which may have had other rows
            earlier.unlink()
        if len({one.cost for one in some}) > 1:
            accuracy_against(out / file, some, cost=axis)
            text.append(f"![accuracy against {axis}]({file})")
    text += ["## What made the figures", "\n".join(_origins(folders, rows))]
    write_text(out / "report.md", "\n\n".join(text) + "\n")
    print("\n".join(aligned(lines)))
    print(f"report in {out / 'report.md'}")


def named(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Return the rows with their names, which tell apart those of one run and config."""
    names: dict[int, str] = {}
    for run in dict.fromkeys((row.run, row.config) for row in rows):
        mine = [row for row in rows if (row.run, row.config) == run]
        names |= {id(row): name for row, name in zip(mine, labels(mine))}
    return [(names[id(row)], row) for row in rows]


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the cells, the header first, without the columns that no row fills.

    Example:
      >>> result = {"row": "a", "seeds": [0, 1], "error": [0.1, 0.2], "parameters": [1000], "latency_ratio": {"1": [0.5]}}
      >>> table([Row(run="r", config="", task="", result=result)])
      [('row', 'seeds', 'accuracy %, last epoch', 'parameters', 'time, batch 1'), ('a', '2', '85.00 ± 7.07', '1,000', '0.50')]
    """
    batches = sorted({batch for row in rows for batch in row.result.get("latency_ratio", {})}, key=int)
    columns = (
        plain("seeds", lambda result: str(len(result.get("seeds", [])) or "")),
        accuracy("accuracy %, last epoch"),
        accuracy("accuracy %, best epoch", "best_error"),
        *(_count(title, name) for title, name in COUNTS.items()),
        *(_latency(batch) for batch in batches),
        plain("the paper's figure", lambda result: result.get("reference", "")),
        plain("its source", lambda result: result.get("source", "")),
    )
    names, (titles, *lines) = named(rows), tabulate([row.result for row in rows], columns)
    own = ["" if "error" in row.result else "; ".join(f"{n} {spread(v)}" for n, v in row.own.items()) for row in rows]
    cells = [[name for name, _ in names], *map(list, zip(*lines))]
    heads = ["row", *titles]
    heads.insert(4, "own figures")
    cells.insert(4, own)
    if len({(row.run, row.config) for row in rows}) > 1:
        cells.insert(0, [row.run for row in rows])
        heads.insert(0, "run")
    kept = [(title, column) for title, column in zip(heads, cells) if any(column)]
    return [tuple(title for title, _ in kept), *zip(*(column for _, column in kept))]


def _count(title: str, name: str) -> Column:
    """Return the column of a count; its deviation only where the seeds differ."""

    def cell(result: Result) -> str:
        values = result.get(name, [])
        return "" if not values else spread(values if len(set(values)) > 1 else values[:1], 0)

    return plain(title, cell)


def _latency(batch: str) -> Column:
    return plain(f"time, batch {batch}", lambda r: spread(r["latency_ratio"][batch]) if batch in r["latency_ratio"] else "")


def points(rows: Sequence[Row], figure: str) -> list[Point]:
    """Return a point for every row that has an accuracy and a figure, e.g. "macs"."""
    drawn = [(name, row) for name, row in named(rows) if "error" in row.result and row.result.get(figure)]
    tasks: dict[str, list[Row]] = {}
    for _, row in drawn:
        tasks.setdefault(row.task, []).append(row)
    several = any(len(some) == 1 or len({row.run for row in some}) > 1 for some in tasks.values()) and len(drawn) > 1
    crowded = len({(row.run, row.name) for _, row in drawn}) > _MOST_SERIES
    found = []
    for name, row in drawn:
        rivals = tasks[row.task]
        runs = list(dict.fromkeys(rival.run for rival in rivals))
        alone = sum(rival.run == row.run for rival in rivals) == 1
        made = point_of(
            row.result,
            figure,
            series=row.name if not several else row.run if alone or crowded else f"{row.run}: {row.name}",
            label=row.run if alone and (len(runs) > 1 or len(rivals) == 1) else name,
            task=row.task,
            panel=_ALONE if len(rivals) == 1 else ", ".join([*runs, *_task(row)]),
        )
        found.append(made)
    return found


def _task(row: Row) -> list[str]:
    return [str(row.settings["task"])] if "task" in row.settings else []


def _origins(folders: Sequence[Path], rows: Sequence[Row]) -> list[str]:
    """Return a line a run, its revisions, seeds and time, and a line for each environment of theirs."""
    lines = []
    for title in dict.fromkeys(row.run for row in rows):
        mine = [row for row in rows if row.run == title]
        revisions = ", ".join(sorted({row.result["revision"] for row in mine if "revision" in row.result})) or "unknown"
        seeds = ", ".join(map(str, sorted({seed for row in mine for seed in row.seeds}))) or "not said"
        minutes = sum(row.result.get("seconds", 0.0) for row in mine) / 60
        lines.append(f"- {title}: revision {revisions}; seeds {seeds}; {minutes:.1f} minutes.")
    made: dict[str, list[str]] = {}
    for given, run in ((each, run) for each in folders for run in runs_in(each)):
        said = _said(environment_of(run))
        name = "/".join([given.resolve().name, *run.relative_to(given).parts])
        made[said] = [*made.get(said, []), name]
    same = len(made) == 1 and len(lines) > 1
    return [*lines, *(f"- {'all' if same else ', '.join(names)}: {said}." for said, names in made.items() if said)]


def _said(made: Mapping[str, Any]) -> str:
    """Write a run's environment; nothing where there is none."""
    if not made:
        return ""
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    return f"`{made['command']}`; Python {made['python']}, {packages}, on {made['backend']}, {made['cores']} cores"


if __name__ == "__main__":
    main()
