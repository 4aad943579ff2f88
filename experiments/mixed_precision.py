"""Train one model in several precisions from several seeds: one table and one figure.

    python -m experiments.mixed_precision --config configs/mixed_precision_fashion_mnist.py --seeds 3
    python -m experiments.mixed_precision --config configs/mixed_precision_characters.py --seeds 3 --task.text FOLDER/input.txt
    python -m experiments.mixed_precision --config configs/mixed_precision_fashion_mnist.py --max-steps 2 --only float32

Masters and optimiser are float32; dots run in the row's dtype, softmax, norms and losses in float32 (`autocast`). Evaluation is
in the precision of training. Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common import cli
from experiments.common.config import to_json
from experiments.common.results import Result, save_report, save_result, spread
from experiments.common.run_dir import claim
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.precision.study import Study, run_row


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
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        axis.plot([number] * len(values), values, ".", color="C0", alpha=0.4)
        axis.errorbar(number, statistics.mean(values), deviation, fmt="o", color="C0", capsize=4)
    axis.set_xticks(range(len(results)), [result["row"] for result in results], rotation=20, ha="right")
    axis.set_ylabel(figure)
    axis.grid(axis="y", color="0.92")
    canvas.savefig(path, dpi=120)


def main(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study, folder = options.setting, options.folder
    seeds = range(study.seed, study.seed + options.seeds)
    claim(folder, {**to_json(dataclasses.replace(study, only=())), "seeds": list(seeds)}, resume=options.resume)
    results = []
    for row in study.rows:
        if study.only and row.name not in study.only:
            continue
        path = folder / "rows" / f"{row.name}.json"
        if not path.exists():
            save_result(path, run_row(study, row, seeds))
        results.append(json.loads(path.read_text()))
    lines = table(results, study.task.figure)
    plot(folder / "figure.png", results, study.task.figure)
    text = [
        f"# {study.name}",
        f"Seeds {', '.join(map(str, seeds))}; after the last step, mean and standard deviation. `difference` is that of each "
        "seed from the same seed of the first row. The scale is that of the loss at the end; skipped steps are by seed.",
        "\n".join(markdown_table(lines)),
        f"![{study.task.figure} by precision](figure.png)",
        provenance({result["revision"] for result in results}, "mixed_precision"),
    ]
    save_report(folder / "report.md", study.name, text, results)
    print("\n".join(aligned(lines)))
    print(f"report in {folder / 'report.md'}")


if __name__ == "__main__":
    cli.run(main, default_config="mixed_precision_fashion_mnist.py", description=__doc__, kind=Study)
