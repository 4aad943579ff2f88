"""The report of the study of low rank: a table for each task, and one figure."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.results import save_report, spread
from experiments.common.tables import aligned, markdown_table, provenance
from experiments.studies.low_rank.study import METHODS, RULES, Result, Study, mean

_ERRORS = {"resnet20": "test error (%)", "char_lm": "perplexity a character"}
_COLORS = ("tab:blue", "tab:orange", "tab:green")


def write(run_dir: Path, study: Study, results: Sequence[Result]) -> None:
    """Write `low_rank.md`, `low_rank.png` and `summary.json`, and print the tables."""
    plot(run_dir / "low_rank.png", results)
    seeds = sorted({result["seed"] for result in results})
    text = [
        "# Low rank: error against multiply-accumulates",
        f"Means over seeds {', '.join(map(str, seeds))}. `MACs` are those of the whole model, as a share of the dense one's. "
        "Before and after the same tuning for every row, dense too. Factors by truncated SVD: of weights (plain), "
        "of the weights whitened by their inputs' covariance (activation-aware), of rows weighed by squared gradients "
        "(Fisher-weighted); convolutions as (height, width, in) by out. Layers stay dense where factors would be larger.",
    ]
    for task in dict.fromkeys(result["task"] for result in results):
        mine = [result for result in results if result["task"] == task]
        unit = _ERRORS.get(task, "error")
        text += [f"## {task}: {unit}", "### Methods, ranks by budget", "\n".join(markdown_table(method_table(mine)))]
        text += ["### Rules for ranks, plain SVD, at one budget", "\n".join(markdown_table(rule_table(mine)))]
        print(f"{task}: {unit}", *aligned(method_table(mine)), *aligned(rule_table(mine)), sep="\n")
    text.append("![error against multiply-accumulates](low_rank.png)")
    if "resnet20" in {result["task"] for result in results}:
        text.append(
            "ResNet-20: 1,000 test images; an error has a standard error of about 1 point, the loss is the finer figure."
        )
    minutes = sum(result["seconds"] for result in results) / 60
    text.append(f"{provenance({result['revision'] for result in results}, 'low_rank')} It took {minutes:.1f} minutes.")
    save_report(run_dir / "low_rank.md", study.name, text, results)


def _figures(results: Sequence[Result]) -> tuple[str, ...]:
    """MACs, parameters, and error and loss before and after tuning."""
    share, size = f"{100 * mean(results, 'macs'):.1f} %", f"{mean(results, 'parameters'):,.0f}"
    same = len({result["error"] for result in results}) == 1  # of one network, that others trained
    before = (spread([r["error"] for r in (results[:1] if same else results)]), f"{mean(results, 'loss'):.3f}")
    return (share, size, *before, spread([r["tuned_error"] for r in results]), f"{mean(results, 'tuned_loss'):.3f}")


_COLUMNS = ("MACs", "parameters", "error", "loss", "tuned: error", "tuned: loss")


def method_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line for each method and budget.

    Example:
      >>> cell = {"part": "dense", "row": "dense", "fraction": 1.0, "macs": 1.0, "parameters": 8}
      >>> method_table([{**cell, "error": 8.5, "loss": 0.3, "tuned_error": 8.0, "tuned_loss": 0.25}])[1]
      ('dense', '-', '100.0 %', '8', '8.50', '0.300', '8.00', '0.250')
    """
    lines: list[tuple[str, ...]] = [("method", "budget", *_COLUMNS)]
    lines += [("dense", "-", *_figures(rows)) for rows in [_of(results, "dense", "dense")] if rows]
    for name in METHODS:
        for fraction in sorted({r["fraction"] for r in results if r["part"] == "methods"}, reverse=True):
            lines.append((name, f"{100 * fraction:g} %", *_figures(_of(results, "methods", name, fraction))))
    return lines


def rule_table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells: a line for each rule."""
    found = [(name, _of(results, "rules", name)) for name in RULES]
    return [("ranks by", *_COLUMNS), *[(name, *_figures(rows)) for name, rows in found if rows]]


def _of(results: Sequence[Result], part: str, row: str, fraction: float | None = None) -> list[Result]:
    mine = [result for result in results if (result["part"], result["row"]) == (part, row)]
    return [result for result in mine if fraction is None or result["fraction"] == fraction]


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw error against multiply-accumulates, a panel a task; rules as crosses."""
    tasks = list(dict.fromkeys(result["task"] for result in results))
    figure = Figure(figsize=(6 * len(tasks), 4.5), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(panels, tasks):
        mine = [result for result in results if result["task"] == task]
        for name, color in zip(METHODS, _COLORS):
            cells = [
                _of(mine, "methods", name, fraction)
                for fraction in sorted({r["fraction"] for r in mine if r["part"] == "methods"})
            ]
            shares = [100 * mean(cell, "macs") for cell in cells]
            axis.plot(shares, [mean(cell, "error") for cell in cells], "o--", color=color, alpha=0.6, label=name)
            axis.plot(shares, [mean(cell, "tuned_error") for cell in cells], "o-", color=color, label=f"{name}, tuned")
        for name, marker in zip(RULES, "x+1_"):
            cell = _of(mine, "rules", name)
            axis.plot(
                100 * mean(cell, "macs"), mean(cell, "tuned_error"), marker, color="k", label=f"{name}, tuned", linestyle="none"
            )
        for dense in [mean(cell, "error") for cell in [_of(mine, "dense", "dense")] if cell]:
            axis.axhline(dense, color="0.7", linewidth=1, label="dense")
        axis.set(title=task, xlabel="multiply-accumulates (% of dense)", ylabel=_ERRORS.get(task, "error"), yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
