"""The report of a run: the table, `summary.json`, `report.md` and the plots."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.common.config import Config
from experiments.common.deployed import BATCHES
from experiments.common.figures import save_figure
from experiments.common.measuring import best_errors
from experiments.common.tables import aligned, markdown_table, provenance, revision
from experiments.studies.deep_compression.measure import Row
from lepton_jax.core.files import write_json, write_text
from lepton_jax.training import read_metrics

SEED_FIGURES = (
    ("dense_error", 100, 2),
    ("error", 100, 2),
    ("best_error", 100, 2),
    ("ratio", 1, 1),
    ("file_ratio", 1, 1),
    ("nonzeros", 1, 0),
    ("macs", 1, 0),
    ("file_bytes", 1, 0),
    ("program_bytes", 1, 0),
    ("seconds", 1, 1),
)
"""What is averaged over seeds: name, factor, digits."""
PARTS = ("values", "positions", "codebook", "scales", "tables")


def write(run_dir: Path, config: Config, rows: list[Row], *, macs: int, seconds: float) -> None:
    """Write everything and print the table.

    Args:
      run_dir: the run's folder.
      config: the experiment.
      rows: dense first, the loaded file last.
      macs: multiply-accumulates of one image.
      seconds: of the whole command.
    """
    summary = summarise(config, rows, _best_errors(run_dir), macs, seconds)
    lines = table(rows)
    plot_training(run_dir)
    plot_bytes(run_dir, rows[-1])
    write_text(run_dir / "report.md", markdown(config, rows, lines, summary))
    write_json(run_dir / "summary.json", summary)
    print("\n".join(aligned(lines)))
    print(f"ratio {summary['ratio']:.1f}x: float32 parameters over the file without its program")
    print(f"file_ratio {summary['file_ratio']:.1f}x: float32 parameters and program over the whole file")
    print(f"{summary['seconds']:.1f} s; report in {run_dir / 'report.md'}")


def _best_errors(run_dir: Path) -> dict[str, float]:
    """Return the test error of every phase when its validation error was least, among those as sparse as at its end."""
    phases: dict[str, list[dict[str, Any]]] = {}
    for row in read_metrics(run_dir / "metrics.jsonl"):
        if "eval_error" in row:
            test, validation = row["eval_test_error"], row["eval_error"]
            figures = {"error": [test], "validation_error": [validation], "nonzeros": [1 - row["eval_sparsity"]]}
            phases.setdefault(row["phase"], []).append(figures)
    return {phase: best_errors(history)[0] for phase, history in phases.items()}


def summarise(config: Config, rows: list[Row], best: dict[str, float], macs: int, seconds: float) -> dict[str, Any]:
    """Return the figures of the table for machines; errors are fractions, of the loaded file where it is not said."""
    dense, file = rows[0], rows[-1]
    return {
        "name": config.name,
        "seed": config.seed,
        "dense_error": dense.error,
        "dense_best_error": best[config.phases[0].name],
        "error": file.error,
        "best_error": best[config.phases[-1].name],
        "dense_bytes": file.account.dense_bytes,
        "file_bytes": file.account.total,
        "program_bytes": file.account.program,
        "ratio": file.account.ratio,
        "file_ratio": file.account.file_ratio,
        "nonzeros": file.account.nonzeros,
        "parameters": file.account.parameters,
        "macs": macs,
        "bits_per_weight": file.account.bits_per_weight,
        "latency_ratio": file.latency,
        "stage_errors": {row.name: row.error for row in rows},
        "seconds": seconds,
        "revision": revision(),
        "reference": config.reference,
        "source": config.source,
    }


def table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Return the table's cells, its header first."""
    speeds = [f"speed at batch {batch}" for batch in BATCHES]
    lines: list[tuple[str, ...]] = [
        ("stage", "error %", "non-zeros", "bits/weight", "file bytes", "of it program", "ratio", "file_ratio", *speeds)
    ]
    for row in rows:
        a = row.account
        sizes = (f"{a.nonzeros:,}", f"{a.bits_per_weight:.3f}", f"{a.total:,}", f"{a.program:,}")
        ratios = (f"{a.ratio:.1f}x", f"{a.file_ratio:.1f}x", *(f"{ratio:.2f}x" for ratio in row.latency.values()))
        lines.append((row.name, f"{100 * row.error:.2f}", *sizes, *ratios))
    return lines


def markdown(config: Config, rows: list[Row], lines: list[tuple[str, ...]], summary: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    figures = "\n".join(f"| {name} | {value} |" for name, value in summary.items() if not isinstance(value, dict))
    return f"""# {config.name}, seed {config.seed}

{chr(10).join(markdown_table(lines))}

Errors are of the test split, last epoch; `best_error` is that of the evaluation whose validation error was least. The row
"file" is `model.lepton`, loaded in a process of its own without the model's code; its outputs equal the live view's bit for
bit. `ratio` is the float32 bytes of the dense parameters over all bytes of the file but the program's; `file_ratio` is (those
bytes and the program's) over the whole file. Speed is the dense model's time over the file's, both run by XLA on this machine,
the median of calls in pairs; zeros alone make nothing faster.

![error and sparsity](training.png)

![bytes](bytes.png)

```
{rows[-1].account}
```

| figure | value |
| --- | --- |
{figures}
"""


def write_seeds(folder: Path, summaries: list[dict[str, Any]]) -> None:
    """Write and print the mean and standard deviation over seeds, as `seeds.md`.

    Args:
      folder: of the runs.
      summaries: the `summary.json` of each seed.
    """
    lines: list[tuple[str, ...]] = [("figure", "mean", "deviation", *(f"seed {summary['seed']}" for summary in summaries))]
    for name, scale, digits in SEED_FIGURES:
        values = [scale * summary[name] for summary in summaries]
        figures = (statistics.mean(values), statistics.stdev(values), *values)
        lines.append((name + (" %" if scale == 100 else ""), *(f"{value:,.{digits}f}" for value in figures)))
    parts = [f"# {summaries[0]['name']}, {len(summaries)} seeds", "\n".join(markdown_table(lines))]
    parts.append(provenance({summary["revision"] for summary in summaries}))
    write_text(folder / "seeds.md", "\n\n".join(parts) + "\n")
    print("\n".join(aligned(lines)))


def plot_training(run_dir: Path) -> None:
    """Draw validation error and sparsity over the steps of all phases."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    right = axis.twinx()
    steps: list[int] = []
    errors: list[float] = []
    zeros: list[float] = []
    begin, phases = 0, [""]
    for row in read_metrics(run_dir / "metrics.jsonl"):
        if row["phase"] != phases[-1]:
            begin = steps[-1] if steps else 0
            phases.append(row["phase"])
            axis.axvline(begin, color="0.85", linewidth=1)
            above = 4 + 12 * (len(phases) % 2)  # in two rows, since the name of a short phase is wider than it
            place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axis.annotate(phases[-1], (begin, 1), xytext=(0, above), **place)
        if "eval_error" in row:
            steps.append(begin + row["step"])
            errors.append(100 * row["eval_error"])
            zeros.append(100 * row["eval_sparsity"])
    (first,) = axis.plot(steps, errors, color="C0", label="validation error")
    (second,) = right.plot(steps, zeros, color="C1", label="sparsity")
    axis.set(xlabel="step", ylabel="validation error (%)", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    right.set(ylabel="sparsity (%)", ylim=(-2, 102))
    axis.legend(handles=[first, second], loc="center right")
    save_figure(figure, run_dir / "training.png")


def plot_bytes(run_dir: Path, row: Row) -> None:
    """Draw where the file's bytes are."""
    account = row.account
    names = [tensor.path.removeprefix("params/") for tensor in account.tensors] + ["program", "manifest and head"]
    figure = Figure(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    left = [0] * len(names)
    for part in PARTS:
        sizes = [tensor.bytes.get(part, 0) for tensor in account.tensors] + [0, 0]
        axis.barh(names, sizes, left=left, label=part)
        left = [done + size for done, size in zip(left, sizes)]
    whole = [0] * len(account.tensors) + [account.program, account.manifest + account.head]
    axis.barh(names, whole, color="0.6", label="program, manifest, head")
    for y, total in enumerate(done + size for done, size in zip(left, whole)):
        axis.annotate(f"{total:,}", (total, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set(xlabel="bytes in the file")
    axis.legend(fontsize=8)
    save_figure(figure, run_dir / "bytes.png")
