"""The report of the study of filter pruning: accuracies, sizes and times, and one figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.results import Result, accuracies, deviation, save_report, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.filter_pruning.study import Study

_MARKERS = "os^vDPX*<>"


def write(run_dir: Path, study: Study, results: Sequence[Result]) -> None:
    """Write `report.md`, `accuracy.png` and `summary.json`, and print the tables.

    Args:
      run_dir: the run's folder.
      study: the settings.
      results: of every row and cut.
    """
    lines = accuracy_table(results)
    plot(run_dir / "accuracy.png", results)
    minutes = sum(result["seconds"] for result in results) / 60
    seeds = ", ".join(map(str, results[0]["seeds"]))
    text = [
        f"# {study.name}",
        "Accuracy in percent on 1,000 lossless test images of CIFAR-10, mean and standard deviation over seeds "
        f"{seeds}; one image is 0.1 points, the standard error of an accuracy about 0.9. `base` is the published network, "
        "`change` the tuned one's difference from it, `speed-up` dense by remaining multiply-accumulates. Tuning: "
        f"{study.epochs} passes over {study.tune_images:,} JPEG-compressed training images, others for every seed; the row "
        "`dense` is tuned alike. Criteria look at whole groups of coupled filters; `global` compares them over all groups by "
        "one threshold, all other rows cut the same fraction of every group.",
        "\n".join(markdown_table(lines)),
        "The best epoch is chosen by the test images. The papers' networks are deeper and were tuned for 20 and more epochs on "
        "all 50,000 lossless images; their figures show the form, not the aim.",
        "![accuracy against multiply-accumulates](accuracy.png)",
        "## Sizes and times",
        "Of the first seed. Bytes are those of its file without the program; latency is the time of a call in units of the "
        "dense network's, calls interleaved, by batch; `difference` is the largest relative one of masked and shrunk logits.",
        "\n".join(markdown_table(size_table(results))),
        f"{provenance({result['revision'] for result in results}, 'filter_pruning')} It took {minutes:.1f} minutes.",
    ]
    save_report(run_dir / "report.md", study.name, text, results)
    print("\n".join(aligned([line[:-1] for line in lines])))
    print("\n".join(aligned(size_table(results))))


def accuracy_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line for each row and cut.

    Example:
      >>> cell = {"row": "l1", "fraction": 0.3, "macs": 5, "dense_macs": 10, "reference": "", "source": ""}
      >>> accuracy_table([{**cell, "dense_error": 0.25, "cut_error": [0.75], "error": [0.5], "best_error": [0.5]}])[1]
      ('l1', '30 %', '75.0', '25.0', '50.0', '50.0', '-25.0', '2.00x', '')
    """
    lines: list[tuple[str, ...]] = [
        ("criterion", "MACs cut", "base", "after the cut", "tuned", "best epoch", "change", "speed-up", "reference")
    ]
    for result in results:
        base, tuned = 100 * (1 - result["dense_error"]), accuracies(result)
        reference = f"{result['reference']} ({result['source']})" if result["reference"] else ""
        lines.append(
            (
                result["row"],
                f"{100 * result['fraction']:g} %",
                f"{base:.1f}",
                spread(accuracies(result, "cut_error"), 1),
                spread(tuned, 1),
                spread(accuracies(result, "best_error"), 1),
                f"{statistics.mean(tuned) - base:+.1f}",
                f"{result['dense_macs'] / result['macs']:.2f}x",
                reference,
            )
        )
    return lines


def size_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line for each row and cut."""
    batches = list(results[0]["latency_ratio"])
    heads = [f"latency, batch {batch}" for batch in batches]
    lines: list[tuple[str, ...]] = [
        ("criterion", "MACs cut", "parameters", "MACs", "bytes", *heads, "difference", "seconds a run")
    ]
    for result in results:
        lines.append(
            (
                result["row"],
                f"{100 * result['fraction']:g} %",
                f"{result['parameters']:,}",
                f"{result['macs']:,}",
                f"{result['file_bytes']:,}",
                *(f"{result['latency_ratio'][batch]:.2f}" for batch in batches),
                f"{result['difference']:.0e}",
                f"{result['seconds'] / len(result['seeds']):.0f}",
            )
        )
    return lines


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw accuracy against multiply-accumulates, after the cut and after tuning, a line a row."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=False)
    base = 100 * (1 - results[0]["dense_error"])
    for axis, name, title in zip(panels, ("cut_error", "error"), ("after the cut", "after tuning")):
        rows = dict.fromkeys(result["row"] for result in results if result["fraction"])
        for number, row in enumerate(rows):
            cells = sorted((r for r in results if r["row"] == row), key=lambda result: result["macs"])
            values = [accuracies(cell, name) for cell in cells]
            deviations = [deviation(some) for some in values]
            x, y = [100 * cell["macs"] / cell["dense_macs"] for cell in cells], [statistics.mean(some) for some in values]
            axis.errorbar(x, y, deviations, label=row, marker=_MARKERS[number % len(_MARKERS)], capsize=3, linewidth=1.2)
        for tuned in [result for result in results if not result["fraction"] and name == "error"]:
            mean = statistics.mean(accuracies(tuned))
            axis.axhline(mean, color="0.4", linestyle="--", linewidth=1, label="dense, tuned alike")
        axis.axhline(base, color="0.7", linewidth=1, label="published")
        axis.set(title=title, xlabel="multiply-accumulates (% of dense)", ylabel="test accuracy (%)")
        axis.grid(color="0.92")
    panels[1].legend(fontsize=8)
    figure.savefig(path, dpi=120)
