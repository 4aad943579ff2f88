"""The report of a distillation study: one table of accuracies, one of sizes, one figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.common.results import Result, accuracies, deviation, gain, save_report, shown, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.common.training_settings import Training

_PLAIN = "none"
"""The row that learns from labels alone, the reference of all others."""


def write(run_dir: Path, config: Training, results: Sequence[Result]) -> None:
    """Write `report.md`, `accuracy.png` and `summary.json`, and print the table.

    Args:
      run_dir: the run's folder.
      config: the study.
      results: the teacher's, then every row's.
    """
    teacher, *students = results
    lines = accuracy_table(students)
    plot(run_dir / "accuracy.png", teacher, students)
    seconds = sum(result["seconds"] for result in results)
    seeds = ", ".join(map(str, teacher["seeds"]))
    reference = f"the teacher, {teacher['parameters']:,} parameters, has {spread(accuracies(teacher))}"
    text = [
        f"# {config.name}",
        f"Accuracy on the test split in percent after the last epoch, mean and standard deviation over seeds {seeds}; "
        f"{config.epochs} epochs of batches of {config.batch_size} for every student of {students[0]['parameters']:,} "
        f"parameters; {reference}. `gain` is the mean over seeds of the difference from the row `{_PLAIN}` of the same bits "
        "and seed. At few bits kernels are trained through their rounding, biases stay float32.",
        "\n".join(markdown_table(lines)),
        "![accuracy by method, and against temperature](accuracy.png)",
        "## Validation and cost",
        "Validation is on examples held out of the training split, on which choices were made. Bytes are those of the first "
        "seed's file without its program.",
        "\n".join(markdown_table(cost_table(results))),
        f"{provenance({result['revision'] for result in results}, 'distillation')} Training took {seconds / 60:.1f} minutes.",
    ]
    save_report(run_dir / "report.md", config.name, text, results)
    print("\n".join(aligned(lines)))
    print(f"{reference}; {seconds:.0f} s; report in {run_dir / 'report.md'}")


def by_bits(results: Sequence[Result]) -> dict[int | None, dict[str, Result]]:
    """Group results by bits and row, in their order.

    Example:
      >>> list(by_bits([{"row": "a", "bits": None}, {"row": "a", "bits": 4}]))
      [None, 4]
    """
    groups: dict[int | None, dict[str, Result]] = {}
    for result in results:
        groups.setdefault(result["bits"], {})[result["row"]] = result
    return groups


def accuracy_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line a method, two columns for each number of bits."""
    groups = by_bits(results)
    lines = [("learns from", *(title for bits in groups for title in (_bits(bits), "gain")))]
    for row in dict.fromkeys(result["row"] for result in results):
        cells: list[str] = []
        for group in groups.values():
            cells += _cells(group[row], group.get(_PLAIN)) if row in group else ["", ""]
        lines.append((row, *cells))
    return lines


def _cells(result: Result, plain: Result | None) -> list[str]:
    mine = accuracies(result)
    if plain is None or plain is result:
        return [spread(mine), ""]
    return [spread(mine), f"{gain(result, plain):+.2f}"]


def cost_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line for each row and number of bits."""
    columns = ("validation", "best epoch", "bytes", "MACs", "time, 1", "time, 128", "seconds a run")
    lines: list[tuple[str, ...]] = [("learns from", "weights", *columns)]
    for result in results:
        lines.append((result["row"], _bits(result["bits"]), *shown(result, columns)))
    return lines


def _bits(bits: int | None) -> str:
    return "float32" if bits is None else f"{bits} bits"


def plot(path: Path, teacher: Result, results: Sequence[Result]) -> None:
    """Draw every method's accuracy, each seed a dot, and accuracy against temperature."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = list(dict.fromkeys(result["row"] for result in results))
    groups = by_bits(results)
    for number, (bits, group) in enumerate(groups.items()):
        shift, color, marker = 0.25 * (number - (len(groups) - 1) / 2), f"C{number}", "osD^"[number % 4]
        for row, result in group.items():
            x, values = rows.index(row) + shift, accuracies(result)
            left.plot([x] * len(values), values, ".", color=color, alpha=0.4)
            left.errorbar(x, statistics.mean(values), deviation(values), fmt=marker, color=color, capsize=3)
        _temperatures(right, group, _bits(bits), color, marker)
    left.set_xticks(range(len(rows)), rows, rotation=35, ha="right")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.set_xlabel("temperature of the soft targets (dashed: labels alone)")
    left.set_ylabel("test accuracy (%)")
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=9)
    left.set_title(f"teacher: {spread(accuracies(teacher))} %", fontsize=10)
    for axis in (left, right):
        axis.grid(color="0.92")
    figure.savefig(path, dpi=120)


def _temperatures(axis: Any, group: dict[str, Result], label: str, color: str, marker: str) -> None:
    series = sorted((r["temperature"], accuracies(r)) for r in group.values() if r["temperature"] is not None)
    if series:
        means, deviations = [statistics.mean(v) for _, v in series], [deviation(v) for _, v in series]
        axis.errorbar([t for t, _ in series], means, deviations, label=label, color=color, marker=marker, capsize=3)
    if _PLAIN in group:
        axis.axhline(statistics.mean(accuracies(group[_PLAIN])), color=color, linestyle="--", linewidth=1)
