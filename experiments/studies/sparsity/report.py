"""The report of a study: one table of accuracies, one of sizes, one figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.results import Result, accuracies, deviation, save_report, shown, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.common.training_settings import Training

_MARKERS = "os^vDPX*<>hp"
_TICKS = (10, 30, 50, 60, 70, 75, 80, 82, 84, 85, 86, 87, 88, 89, 90, 92, 94, 95, 96, 97, 98, 99, 99.5)
"""Accuracies that may stand at the axis."""


def write(run_dir: Path, config: Training, results: Sequence[Result], *, script: str, about: str) -> None:
    """Write `report.md`, `accuracy.png` and `summary.json`, and print the table.

    Args:
      run_dir: the run's folder.
      config: the study.
      results: of every row and sparsity; the row "dense" is the reference.
      script: the experiment's module.
      about: a paragraph that says how to read the table.
    """
    lines = accuracy_table(results)
    plot(run_dir / "accuracy.png", results)
    seconds = sum(result["seconds"] for result in results)
    seeds = ", ".join(map(str, results[0]["seeds"]))
    text = [
        f"# {config.name}",
        f"Accuracy on the test split in percent after the last epoch, mean and standard deviation over seeds {seeds}; "
        f"{config.epochs} epochs of batches of {config.batch_size} for every run. {about}",
        "\n".join(markdown_table(lines)),
        "![accuracy against sparsity](accuracy.png)",
        "## Sizes",
        "Sparsity is that of the kernels, as counted in the trained network; non-zeros are of all parameters. Bytes are those "
        "of the first seed's file without its program. Validation is on examples held out of the training split, on which "
        "choices were made; the best epoch is that of the best validation, among those as sparse as the last. Time is that of "
        "the packed network over the dense one's, compiled by XLA, at 1 and 128 examples: below 1 is faster.",
        "\n".join(markdown_table(size_table(results))),
        f"{provenance({result['revision'] for result in results}, script)} Training took {seconds / 60:.1f} minutes.",
    ]
    save_report(run_dir / "report.md", config.name, text, results)
    print("\n".join(aligned(lines)))
    print(f"{seconds:.0f} s; report in {run_dir / 'report.md'}")


def by_row(results: Sequence[Result]) -> dict[str, dict[float, Result]]:
    """Group results by row and sparsity, in their order.

    Example:
      >>> list(by_row([{"row": "a", "sparsity": 0.5}, {"row": "a", "sparsity": 0.9}])["a"])
      [0.5, 0.9]
    """
    rows: dict[str, dict[float, Result]] = {}
    for result in results:
        rows.setdefault(result["row"], {})[result["sparsity"]] = result
    return rows


def accuracy_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line a row, a column a sparsity; the dense network stands in the column of 0 %."""
    levels = sorted({result["sparsity"] for result in results})
    lines: list[tuple[str, ...]] = [("method", *(f"{100 * level:.4g} %" for level in levels))]
    for row, cells in by_row(results).items():
        lines.append((row, *(spread(accuracies(cells[level])) if level in cells else "" for level in levels)))
    return lines


def size_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line for each row and sparsity."""
    columns = ("non-zeros", "bytes", "validation", "best epoch", "time, 1", "time, 128", "seconds a run")
    lines: list[tuple[str, ...]] = [("method", "asked", "sparsity", *columns)]
    for result in results:
        asked, reached = f"{100 * result['sparsity']:.4g} %", f"{100 * statistics.mean(result['reached']):.2f} %"
        lines.append((result["row"], asked, reached, *shown(result, columns)))
    return lines


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw accuracy against the sparsity reached, one line a row, bars of one standard deviation.

    Rows that name a panel are drawn in it alone, all others in every one.
    """
    panels = list(dict.fromkeys(result["panel"] for result in results if result.get("panel"))) or [""]
    columns = 1 if len(panels) == 1 else 2
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(9, 6.5) if len(panels) == 1 else (10, 3.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis, panel in zip(axes.flat, panels):
        _draw(axis, by_row([result for result in results if result.get("panel", "") in ("", panel)]))
        axis.set_title(panel, fontsize=10)
        axis.legend(fontsize=8, **({} if panel else {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}))
    figure.supxlabel("sparsity of the kernels (%), by the logarithm of what is left", fontsize=10)
    figure.supylabel("test accuracy (%), by the logarithm of the error", fontsize=10)
    figure.savefig(path, dpi=120)


def _draw(axis: Any, rows: dict[str, dict[float, Result]]) -> None:
    sparse = [cell for row, cells in rows.items() if row != "dense" for cell in cells.values()]
    ticks = sorted({cell["sparsity"] for cell in sparse})
    left = [1 - level for level in ticks] + [_left(cell) for cell in sparse] or [1.0]
    axis.set_xscale("log")
    axis.set_xlim(1.15 * max(left), min(left) / 1.15)  # before there are points, since one alone has no range
    for number, (row, cells) in enumerate((row, cells) for row, cells in rows.items() if row != "dense"):
        values = [accuracies(cell) for cell in cells.values()]
        means = [statistics.mean(some) for some in values]
        deviations = [deviation(some) for some in values]
        look = {"marker": _MARKERS[number % len(_MARKERS)], "linestyle": ("-", "--", ":")[number // 10 % 3]}
        x = [_left(cell) for cell in cells.values()]
        axis.errorbar(x, means, deviations, label=row, markersize=5, capsize=3, linewidth=1.2, **look)
    if "dense" in rows:
        dense = accuracies(next(iter(rows["dense"].values())))
        axis.axhline(statistics.mean(dense), color="0.4", linestyle="--", linewidth=1, label="dense")
    axis.set_xticks([1 - level for level in ticks], [f"{100 * level:.3g}" for level in ticks])
    axis.set_yscale("function", functions=(_by_error, _from_error))
    low, high = axis.get_ylim()
    fine = 1 if high - low < 30 else 2
    axis.set_yticks([tick for tick in _TICKS if low <= tick <= high and (tick < 80 or tick % fine == 0)])
    axis.minorticks_off()
    axis.grid(color="0.92")


def _left(cell: Result) -> float:
    return 1 - statistics.mean(cell["reached"])


def _by_error(accuracy: Any) -> Any:
    return -np.log(np.maximum(100 - np.asarray(accuracy), 0.1))


def _from_error(height: Any) -> Any:
    return 100 - np.exp(-np.asarray(height))
