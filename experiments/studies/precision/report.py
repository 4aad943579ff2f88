"""The report of a study of mixed precision: one table, one figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.results import Result, deviation, save_report, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.precision.study import Study


def write(run_dir: Path, study: Study, results: Sequence[Result]) -> None:
    """Write `report.md`, `figure.png` and `summary.json`, and print the table.

    Args:
      run_dir: the run's folder.
      study: the settings.
      results: of every row, the reference first.
    """
    lines = table(results, study.task.figure)
    plot(run_dir / "figure.png", results, study.task.figure)
    text = [
        f"# {study.name}",
        f"Seeds {', '.join(map(str, results[0]['seeds']))}; after the last step, mean and standard deviation. `difference` is "
        "that of each seed from the same seed of the first row. The scale is that of the loss at the end; skipped steps are by "
        "seed.",
        "\n".join(markdown_table(lines)),
        f"![{study.task.figure} by precision](figure.png)",
        provenance({result["revision"] for result in results}, "mixed_precision"),
    ]
    save_report(run_dir / "report.md", study.name, text, results)
    print("\n".join(aligned(lines)))
    print(f"report in {run_dir / 'report.md'}")


def table(results: Sequence[Result], figure: str) -> list[tuple[str, ...]]:
    """Return the cells: a line a precision.

    Example:
      >>> rows = [
      ...     {"row": "float32", "figure": [2.0, 3.0]},
      ...     {"row": "half", "figure": [2.5, 3.0]},
      ... ]
      >>> [line[:3] for line in table(rows, "accuracy")]
      [('precision', 'accuracy', 'difference'), ('float32', '2.50 ± 0.71', ''), ('half', '2.75 ± 0.35', '+0.25 ± 0.35')]
    """
    lines: list[tuple[str, ...]] = [("precision", figure, "difference", "last scale", "skipped steps")]
    base = results[0]
    for result in results:
        scale = ", ".join(f"{value:g}" for value in sorted(set(result["scale"]))) if "scale" in result else ""
        skipped = ", ".join(map(str, result["skipped"])) if "skipped" in result else ""
        difference = ""
        if result is not base:
            each = [a - b for a, b in zip(result["figure"], base["figure"], strict=True)]
            difference = f"{'+' if statistics.mean(each) >= 0 else ''}{spread(each)}"
        lines.append((result["row"], spread(result["figure"]), difference, scale, skipped))
    return lines


def plot(path: Path, results: Sequence[Result], figure: str) -> None:
    """Draw every seed's figure as a dot, and means with bars of one standard deviation."""
    canvas = Figure(figsize=(7, 3.6), layout="constrained")
    axis = canvas.subplots()
    for number, result in enumerate(results):
        values = result["figure"]
        axis.plot([number] * len(values), values, ".", color="C0", alpha=0.4)
        axis.errorbar(number, statistics.mean(values), deviation(values), fmt="o", color="C0", capsize=4)
    axis.set_xticks(range(len(results)), [result["row"] for result in results], rotation=20, ha="right")
    axis.set_ylabel(figure)
    axis.grid(axis="y", color="0.92")
    canvas.savefig(path, dpi=120)
