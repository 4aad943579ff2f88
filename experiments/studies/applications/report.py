"""The report of a study of applications: a table a network, what was aimed at, accuracy against bytes."""

from collections.abc import Sequence
from pathlib import Path

from experiments.common.figures import accuracy_against, point
from experiments.common.results import Result, accuracies, gain, save_report, shown, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.applications.recipe import DENSE
from experiments.studies.applications.study import Study

_AIMS = {
    "int8": (4.0, 1.0, "4x smaller at 1 point lost at most"),
    "small": (4.0, 1.0, "4x smaller at 1 point lost at most"),
    "pruned": (1 / 0.7, 2.0, "30 % smaller at 2 points lost at most"),
}
"""Row -> how many times smaller, points that may be lost, the same in words."""


def write(run_dir: Path, study: Study, results: Sequence[Result]) -> None:
    """Write `report.md`, `accuracy.png` and `summary.json`, and print the table.

    Args:
      run_dir: the run's folder.
      study: the settings.
      results: of every task and row.
    """
    lines = table(results)
    plot(run_dir / "accuracy.png", results)
    seconds = sum(result["seconds"] for result in results)
    seeds = ", ".join(map(str, results[0]["seeds"]))
    text = [
        f"# {study.name}",
        _about(study, seeds),
        "\n".join(markdown_table(lines)),
        "## Aims",
        "\n".join(f"- {note}" for note in aims(results)) or "The rows that have one were not run.",
        *(["![accuracy against bytes](accuracy.png)"] if study.files else []),
        f"{provenance({result['revision'] for result in results}, 'applications')} The rows took {seconds / 60:.1f} minutes.",
    ]
    save_report(run_dir / "report.md", study.name, text, results)
    print("\n".join(aligned(lines)))
    print(f"{seconds:.0f} s; report in {run_dir / 'report.md'}")


def _about(study: Study, seeds: str) -> str:
    """Say what was done, and how to read the table."""
    trained = "; ".join(f"`{task.name}`: {task.dense_epochs} epochs, then {task.epochs} a row" for task in study.tasks)
    removed = "; ".join(f"{row.name}: {100 * row.removed:g} %" for row in study.rows if row.removed) or "none"
    return (
        f"Every row fine-tunes the same dense networks (seeds {seeds}). {trained}. Pruned rows lose whole channels, as many of "
        f"every group, those of least absolute weights, until so much of the parameters is gone: {removed}. Rows in int8 "
        "train the weights with two axes or more through their rounding, one scale a leaf; vectors are bfloat16. Accuracy on "
        "the test split in percent, mean and standard deviation over seeds, after the last epoch, and after that in which "
        "validation was best. Bytes are those of the first seed's file without its program; `smaller` is against the dense "
        "row's file. Time is the packed network's over the dense one's, compiled by XLA, at 1 and 128 examples: below 1 is "
        "faster."
    )


def table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line for each task and row."""
    columns = ("best epoch", "validation", "parameters", "bytes", "MACs", "time, 1", "time, 128")
    lines: list[tuple[str, ...]] = [("network", "row", "accuracy", "change", "smaller", *columns)]
    for result in results:
        dense = _dense(results, result)
        ratio = _smaller(result, dense)
        change = "" if dense is None or dense is result else f"{gain(result, dense):+.2f}"
        smaller = "" if ratio is None else f"{ratio:.2f}x"
        about = (result["task"], result["row"], spread(accuracies(result)), change, smaller)
        lines.append((*about, *shown(result, columns)))
    return lines


def aims(results: Sequence[Result]) -> list[str]:
    """Say of every row that has an aim what it reached."""
    notes = []
    for result in results:
        dense, aim = _dense(results, result), _AIMS.get(result["row"])
        ratio = _smaller(result, dense)
        if aim is None or dense is None or ratio is None:
            continue
        times, points, words = aim
        change = gain(result, dense)
        word = "reached" if ratio >= times and change >= -points else "missed"
        notes.append(f"{result['task']}, {result['row']}: {words}: {word}, with {ratio:.2f}x and {change:+.2f} points.")
    return notes


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw every row's accuracy against the bytes of its file, a panel a network."""
    shown = [result for result in results if "file_bytes" in result]
    points = [
        point(result, "file_bytes", series=result["row"], label=result["row"], task=result["task"], panel=result["task"])
        for result in shown
    ]
    if points:
        accuracy_against(path, points, cost="bytes of the file without its program")


def _dense(results: Sequence[Result], result: Result) -> Result | None:
    return next((other for other in results if other["task"] == result["task"] and other["row"] == DENSE), None)


def _smaller(result: Result, dense: Result | None) -> float | None:
    if dense is None or "file_bytes" not in dense or "file_bytes" not in result:
        return None
    return float(dense["file_bytes"] / result["file_bytes"])
