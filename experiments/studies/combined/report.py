"""The report of a study of combinations: a table, a matrix of pairs, accuracy against bytes, and what pairs gain."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.figures import accuracy_against, point
from experiments.common.results import Result, accuracies, gain, save_report, shown, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.combined.study import DENSE, Study

Cells = Mapping[frozenset[str], Result]
"""Results of one phase, by their techniques; of two orders of the same ones, the first."""


def write(run_dir: Path, study: Study, results: Sequence[Result]) -> None:
    """Write `report.md`, `pairs.png`, `accuracy.png` and `summary.json`, and print the table.

    Args:
      run_dir: the run's folder.
      study: the settings.
      results: of every row.
    """
    lines = table(results)
    plot_pairs(run_dir / "pairs.png", results)
    plot_accuracy(run_dir / "accuracy.png", results)
    seconds = sum(result["seconds"] for result in results)
    seeds = ", ".join(map(str, results[0]["seeds"]))
    text = [
        f"# {study.name}",
        _about(study, seeds),
        "\n".join(markdown_table(lines)),
        "![change of accuracy and bytes of every pair](pairs.png)",
        *(["![accuracy against bytes](accuracy.png)"] if study.files else []),
        "## What combining gives",
        "\n".join(f"- {note}" for note in pair_notes(results)) or "No pair was run with both of its techniques.",
        "## Order",
        "\n".join(f"- {note}" for note in order_notes(results)) or "No combination was run in two orders.",
        f"{provenance({result['revision'] for result in results}, 'combined')} Training took {seconds / 60:.1f} minutes.",
    ]
    save_report(run_dir / "report.md", study.name, text, results)
    print("\n".join(aligned(lines)))
    print(f"{seconds:.0f} s; report in {run_dir / 'report.md'}")


def _about(study: Study, seeds: str) -> str:
    """Say what was done, and how to read the table."""
    strength = study.techniques
    return (
        f"Every row fine-tunes the same dense networks (seeds {seeds}; {study.dense_epochs} epochs) for {study.epochs} epochs "
        f"of batches of {study.batch_size}; phases share them equally. prune: {100 * strength.sparsity:g} % of all kernels (or "
        f"of their factors), by magnitude; quantize: {strength.bits} bits, a scale a column; low_rank: "
        f"{100 * strength.kept:g} % of the multiplications; cast: parameters in bfloat16; distil: {100 * strength.soft:g} % of "
        "the loss by a larger network's answers. Techniques of one phase are views in the order of their names; `then` "
        "separates phases, and what an earlier one did stays. Accuracy on the test split in percent, mean and standard "
        "deviation over seeds, after the last epoch, and after that of the second half of the last phase in which validation "
        "was best. Non-zeros are those stored; MACs are a packed network's, zeros included. Bytes are those of the first "
        "seed's file without its program. Time is the packed network's over the dense one's, compiled by XLA, at 1 and 128 "
        "images: below 1 is faster."
    )


def table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line a row."""
    columns = ("best epoch", "non-zeros", "bytes", "MACs", "time, 1", "time, 128")
    dense = next((result for result in results if result["row"] == DENSE), None)
    lines: list[tuple[str, ...]] = [("row", "accuracy", "change", "smaller", *columns)]
    for result in results:
        both = dense is not None and "file_bytes" in dense and "file_bytes" in result
        smaller = f"{dense['file_bytes'] / result['file_bytes']:.1f}x" if dense is not None and both else ""
        change = "" if dense is None or dense is result else f"{gain(result, dense):+.2f}"
        lines.append((result["row"], spread(accuracies(result)), change, smaller, *shown(result, columns)))
    return lines


def in_one_phase(results: Sequence[Result]) -> dict[frozenset[str], Result]:
    """Return the results of one phase by their techniques.

    Example:
      >>> found = in_one_phase([{"row": "dense", "phases": [[]]}, {"row": "a+b", "phases": [["a", "b"]]}])
      >>> [sorted(names) for names in found]
      [[], ['a', 'b']]
    """
    found: dict[frozenset[str], Result] = {}
    for result in results:
        if len(result["phases"]) == 1:
            found.setdefault(frozenset(result["phases"][0]), result)
    return found


def pair_notes(results: Sequence[Result]) -> list[str]:
    """Say of every pair whether it has a smaller file than both of its techniques, and what that costs in accuracy."""
    cells, notes = in_one_phase(results), []
    for names, pair in cells.items():
        alone = [cells[frozenset({name})] for name in sorted(names) if frozenset({name}) in cells]
        if len(names) != 2 or len(alone) != 2 or "file_bytes" not in pair:
            continue
        smallest = min(alone, key=lambda result: result["file_bytes"])
        ratio, points = smallest["file_bytes"] / pair["file_bytes"], gain(pair, smallest)
        best = max(alone, key=lambda result: statistics.mean(accuracies(result)))
        words = "smaller than either" if ratio > 1.02 else "no smaller than the smaller one"
        notes.append(
            f"`{pair['row']}`: {words} ({ratio:.2f}x of `{smallest['row']}`), {points:+.2f} points against that, "
            f"{gain(pair, best):+.2f} against `{best['row']}`, the more accurate one."
        )
    return notes


def order_notes(results: Sequence[Result]) -> list[str]:
    """Compare rows of the same techniques in other orders with the first of them."""
    groups: dict[frozenset[str], list[Result]] = {}
    for result in results:
        groups.setdefault(frozenset(name for phase in result["phases"] for name in phase), []).append(result)
    notes = []
    for first, *others in groups.values():
        for other in others:
            bytes_too = f", {other['file_bytes']:,} against {first['file_bytes']:,} bytes" if "file_bytes" in other else ""
            notes.append(f"`{other['row']}`: {gain(other, first):+.2f} points against `{first['row']}`{bytes_too}.")
    return notes


def plot_pairs(path: Path, results: Sequence[Result]) -> None:
    """Draw two matrices of techniques: change of accuracy against dense, and bytes; on the diagonal, each alone."""
    cells = in_one_phase(results)
    names = [result["phases"][0][0] for key, result in cells.items() if len(key) == 1]
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if names and frozenset() in cells:
        dense = cells[frozenset()]
        _matrix(left, names, cells, lambda cell: gain(cell, dense), "{:+.2f}", "accuracy against dense (points)", "RdYlGn")
        _matrix(right, names, cells, lambda cell: cell.get("file_bytes", np.nan) / 1000, "{:.3g}", "kilobytes", "viridis_r")
    figure.savefig(path, dpi=120)


def _matrix(axis: Any, names: Sequence[str], cells: Cells, value: Any, form: str, title: str, colors: str) -> None:
    pairs = [[cells.get(frozenset({a, b})) for b in names] for a in names]
    values = np.array([[np.nan if cell is None else value(cell) for cell in line] for line in pairs])
    axis.imshow(np.log(values) if colors == "viridis_r" else values, cmap=colors, alpha=0.75)
    for (line, column), number in np.ndenumerate(values):
        if np.isfinite(number):
            axis.text(column, line, form.format(number), ha="center", va="center", fontsize=11)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set_title(f"{title}; on the diagonal, alone")


def plot_accuracy(path: Path, results: Sequence[Result]) -> None:
    """Draw every row's accuracy against the bytes of its file."""
    shown = [result for result in results if "file_bytes" in result]
    if shown:
        points = [point(result, "file_bytes", series=result["row"], label=result["row"]) for result in shown]
        accuracy_against(path, points, cost="bytes of the file without its program")
