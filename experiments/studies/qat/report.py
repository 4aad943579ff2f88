"""The report of a study of bits: one table of accuracies, one of sizes, one figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.results import Result, accuracies, gain, save_report, shown, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.qat.study import PLAIN, Study


def write(run_dir: Path, config: Study, results: Sequence[Result]) -> None:
    """Write `report.md`, `accuracy.png` and `summary.json`, and print the table.

    Args:
      run_dir: the run's folder.
      config: the study.
      results: that in float32, then every row's.
    """
    plain, *rounded = results
    lines = accuracy_table(plain, rounded)
    plot(run_dir / "accuracy.png", plain, rounded)
    seconds = sum(result["seconds"] for result in results)
    seeds = ", ".join(map(str, plain["seeds"]))
    reference = f"float32, {plain['parameters']:,} parameters, has {spread(accuracies(plain))}"
    begun = f"was trained for {config.float_epochs} epochs in float32" if config.weights is None else "is the published one"
    text = [
        f"# {config.name}",
        f"Accuracy on the test split in percent after the last epoch, mean and standard deviation over seeds {seeds}. Every "
        f"seed's network {begun}, and from there trained for {config.epochs} epochs of batches of {config.batch_size} in every "
        f"row: {reference} after the same. `gap` is the mean over seeds of the difference from it. "
        "Weights of kernels and inputs of dots and convolutions are rounded; the first and the last layer have 8 bits, biases "
        "and norms stay float32.",
        "\n".join(markdown_table(lines)),
        "![accuracy against bits](accuracy.png)",
        "## Validation and cost",
        "Validation is on examples held out of the training split, on which choices were made. Bytes are those of the first "
        "seed's file without its program.",
        "\n".join(markdown_table(cost_table(results))),
        f"{provenance({result['revision'] for result in results}, 'qat_bits')} Training took {seconds / 60:.1f} minutes.",
    ]
    save_report(run_dir / "report.md", config.name, text, results)
    print("\n".join(aligned(lines)))
    print(f"{reference}; {seconds:.0f} s; report in {run_dir / 'report.md'}")


def widths(results: Sequence[Result]) -> list[int]:
    """Return the numbers of bits there are, most first.

    Example:
      >>> widths([{"bits": 2}, {"bits": 8}, {"bits": 2}])
      [8, 2]
    """
    return sorted({result["bits"] for result in results}, reverse=True)


def accuracy_table(plain: Result, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line a method, two columns for each number of bits."""
    cells = {(result["row"], result["bits"]): result for result in results}
    lines = [("method", *(title for bits in widths(results) for title in (f"W{bits}A{bits}", "gap")))]
    for row in dict.fromkeys(result["row"] for result in results):
        line: list[str] = []
        for bits in widths(results):
            line += (
                [spread(accuracies(cells[row, bits])), f"{gain(cells[row, bits], plain):+.2f}"]
                if (row, bits) in cells
                else ["", ""]
            )
        lines.append((row, *line))
    return lines


def cost_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line for each row and number of bits."""
    columns = ("validation", "best epoch", "bytes", "MACs", "time, 1", "time, 128", "seconds a run")
    lines: list[tuple[str, ...]] = [("method", "bits", *columns)]
    for result in results:
        lines.append((result["row"], "32" if result["bits"] is None else str(result["bits"]), *shown(result, columns)))
    return lines


def plot(path: Path, plain: Result, results: Sequence[Result]) -> None:
    """Draw every method's accuracy against the bits, each seed a dot."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    places = {bits: place for place, bits in enumerate(widths(results))}
    rows = list(dict.fromkeys(result["row"] for result in results))
    for number, row in enumerate(rows):
        color, shift = f"C{number}", 0.06 * (number - (len(rows) - 1) / 2)
        own = sorted((result for result in results if result["row"] == row), key=lambda result: -result["bits"])
        x, values = [places[result["bits"]] + shift for result in own], [accuracies(result) for result in own]
        axis.plot(x, [statistics.mean(some) for some in values], "o-", color=color, label=row, linewidth=1, markersize=5)
        for at, some in zip(x, values):
            axis.plot([at] * len(some), some, ".", color=color, alpha=0.4)
    mean = statistics.mean(accuracies(plain))
    axis.axhline(mean, color="0.4", linestyle="--", linewidth=1, label=PLAIN)
    axis.set_xticks(list(places.values()), [f"W{bits}A{bits}" for bits in places])
    axis.set(xlabel="bits of weights and activations", ylabel="test accuracy (%)")
    axis.grid(color="0.92")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
