"""Methods of factorization, and rules for ranks, at several budgets of multiply-accumulates, before and after tuning.

Figures are means over seeds, before and after the same tuning for every row, dense too. MACs are those of the whole model, as
a share of the dense one's. Factors are by truncated SVD: of weights (plain), of the weights whitened by their inputs'
covariance (activation-aware), of rows weighed by squared gradients (Fisher-weighted); convolutions as (height, width, in) by
out. Layers stay dense where factors would be larger. An error of ResNet-20, on 1,000 test images, has a standard error of
about 1 point; its loss is the finer figure.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments.common import study
from experiments.common.columns import COLUMNS, ROW, mean, plain, setting, tabulate
from experiments.common.curves import Curve, Panel, draw
from experiments.common.figures import Drawing
from experiments.common.low_rank_tasks import Characters, ResNet20, Task
from experiments.common.results import Result, spread
from experiments.common.study import Cell, check_rows
from experiments.common.tables import Lines
from lepton_jax import freeze, identity, low_rank
from lepton_jax.lowrank import (
    Budget,
    Energy,
    Evbmf,
    Fraction,
    Method,
    RankReport,
    RankRule,
    Svd,
    activation_aware,
    choose_ranks,
    fisher_weighted,
)

METHODS: dict[str, Callable[[Task], Method]] = {
    "plain": lambda task: Svd(),
    "activation-aware": lambda task: activation_aware(task.moments).method,
    "Fisher-weighted": lambda task: fisher_weighted(task.fisher),
}
RULES: dict[str, Callable[[float], RankRule] | None] = {
    "EVBMF": lambda found: Evbmf(weaken=found),
    "energy": lambda found: Energy(energy=max(found, _LEAST)),
    "budget": None,
    "uniform": lambda found: Fraction(fraction=max(found, _LEAST)),
}
"""By a setting from 0 to 1, the rule; None: by marginal error, as the methods' ranks are chosen."""
_BISECTIONS = 16
_LEAST = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(study.Study):
    """Two tables a task: methods by budget, and rules for ranks at one budget."""

    passing = ("only", "data")

    tasks: dict[str, ResNet20 | Characters]
    """What is factorized, by name."""
    data: Path = Path("data")
    """Holds `weights`, `cifar10_subset`, `cifar10_jpeg` and `tinyshakespeare`."""
    fractions: tuple[float, ...] = (0.7, 0.5, 0.35)
    """Budgets of the methods: of the multiply-accumulates of the layers that may be factorized."""
    rules_fraction: float = 0.5
    """The budget that the rules for ranks are brought to: by their share of energy or rank, or by weakening EVBMF's ranks."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not all(0 < fraction < 1 for fraction in (*self.fractions, self.rules_fraction)):
            yield f"fractions, rules_fraction: must be in (0, 1); got {self.fractions}, {self.rules_fraction}"

    def check_rows(self) -> Iterator[str]:
        yield from check_rows(list(self.tasks), self.only, field="tasks")

    @property
    def cells(self) -> list[Cell]:
        """Of every task: the model as it was, every method at every budget, every rule at one."""
        lines = [("dense", "dense", 1.0), *(("methods", name, fraction) for name in METHODS for fraction in self.fractions)]
        lines += [("rules", name, self.rules_fraction) for name in RULES]
        return [_cell(task, *line) for task in self.tasks if not self.only or task in self.only for line in lines]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> list[str | Lines | Drawing]:
        parts: list[str | Lines | Drawing] = []
        for task in dict.fromkeys(result["settings"]["task"] for result in results):
            parts += [f"## {task}: {_unit(task)}", "### Methods, ranks by budget"]
            parts += [tabulate(_of(results, task, "dense", "methods"), (ROW._replace(title="method"), BUDGET, *COSTS))]
            parts += ["### Rules for ranks, plain SVD, at one budget"]
            parts += [tabulate(_of(results, task, "rules"), (ROW._replace(title="ranks by"), *COSTS))]
        title, file = "error against multiply-accumulates", "low_rank.png"
        return [*parts, Drawing(file=file, alternative=title, draw=partial(plot, results=results))]


def _cell(task: str, part: str, name: str, fraction: float) -> Cell:
    label = f"{task}-{part}-{name}-{100 * fraction:g}".replace(" ", "_")
    return Cell(row=None, name=name, settings={"task": task, "part": part, "fraction": fraction}, label=label)


def _unit(task: str) -> str:
    return {"resnet20": "test error (%)", "char_lm": "perplexity a character"}.get(task, "error")


def _of(results: Sequence[Result], task: str, *parts: str) -> list[Result]:
    return [r for r in results if r["settings"]["task"] == task and r["settings"]["part"] in parts]


def _figure(result: Result) -> str:
    values = result["figure"]
    return spread(values[:1] if len(set(values)) == 1 else values)  # all the same: of one network, that others trained


BUDGET = setting("budget", "fraction", lambda fraction: "-" if fraction == 1 else f"{100 * fraction:g} %")
COSTS = (
    plain("share of MACs", lambda r: f"{100 * statistics.mean(r['macs_share']):.1f} %"),
    COLUMNS["parameters"],
    plain("error", _figure),
    mean("loss", "loss", ".3f"),
    plain("tuned: error", lambda r: spread(r["tuned_figure"])),
    mean("tuned: loss", "tuned_loss", ".3f"),
)


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draw error against multiply-accumulates, a panel a task; rules as crosses."""
    panels = []
    for task in dict.fromkeys(result["settings"]["task"] for result in results):
        curves = []
        for number, name in enumerate(METHODS):
            cells = [r for r in _of(results, task, "methods") if r["row"] == name]
            color = f"C{number}"
            curves.append(_curve(name, cells, "figure", {"marker": "o", "linestyle": "--", "color": color, "alpha": 0.6}))
            curves.append(_curve(f"{name}, tuned", cells, "tuned_figure", {"marker": "o", "linestyle": "-", "color": color}))
        for cell, marker in zip(_of(results, task, "rules"), "x+1_"):
            look = {"marker": marker, "color": "k", "linestyle": "none"}
            curves.append(_curve(f"{cell['row']}, tuned", [cell], "tuned_figure", look))
        levels = {r["row"]: statistics.mean(r["figure"]) for r in _of(results, task, "dense")}
        panels.append(Panel(curves=curves, title=f"{task}: {_unit(task)}", levels=levels, y_scale="log"))
    draw(path, panels, x="multiply-accumulates (% of dense)", y="error", size=(6, 4.5))


def _curve(label: str, cells: Sequence[Result], name: str, look: dict[str, Any]) -> Curve:
    x = [100 * statistics.mean(cell["macs_share"]) for cell in cells]
    return Curve(label=label, x=x, y=[[statistics.mean(cell[name])] for cell in cells], look=look)


class Runner(study.Runner[LowRank]):
    """Factorizes, evaluates, tunes and evaluates every seed's model."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tasks: dict[tuple[str, int], Task] = {}
        self._methods: dict[tuple[Task, str], Method] = {}

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        begun, seeds = time.perf_counter(), [self._measure(cells[0], seed) for seed in self.seeds]
        return [{**{name: [one[name] for one in seeds] for name in seeds[0]}, "seconds": time.perf_counter() - begun}]

    def _task(self, name: str, seed: int) -> Task:
        """Return a seed's trained model and its data, loaded once."""
        if (name, seed) not in self._tasks:
            self._tasks[name, seed] = self.study.tasks[name].load(self.study.data, self.run_dir, seed)
        return self._tasks[name, seed]

    def _method(self, task: Task, name: str) -> Method:
        """Return a factorization, calibrated once for a task."""
        if (task, name) not in self._methods:
            self._methods[task, name] = METHODS[name](task)
        return self._methods[task, name]

    def _measure(self, cell: Cell, seed: int) -> Result:
        task, name = self._task(cell.settings["task"], seed), cell.name if cell.settings["part"] == "methods" else "plain"
        params, transform, total = task.params, identity(), sum(task.macs.values())
        spent, report = total, self._ranks(task, cell, self._method(task, name))
        if report is not None and report.ranks:
            made = low_rank(report.ranks, method=self._method(task, name), select=tuple(report.ranks))
            params, _ = made.init(params)
            transform = freeze(made, ())
            spent -= sum(task.macs[choice.path] for choice in report.choices) - _spent(task, report)
        before = task.evaluate(transform.view(params, ()), task.model_state)
        tuned = task.tune(params, transform, self.study.max_steps, f"{cell.label}-seed{seed}", self.run_dir)
        after = task.evaluate(transform.view(tuned.params, tuned.tstate), tuned.model_state)
        return {
            **before,
            **{f"tuned_{figure}": value for figure, value in after.items()},
            "macs_share": spent / total,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "ranks": {} if report is None else {path: list(_tuple(rank)) for path, rank in report.ranks.items()},
        }

    def _ranks(self, task: Task, cell: Cell, method: Method) -> RankReport | None:
        """Choose the ranks of a line; None: it stays dense."""
        part, fraction = cell.settings["part"], cell.settings["fraction"]
        if part == "dense":
            return None
        if (make := RULES[cell.name] if part == "rules" else None) is not None:
            return _at_most(task, make, fraction, method)
        macs = {path: count for path, count in task.macs.items() if count}
        return _choose(task, Budget(of="macs", macs=macs, fraction=fraction), method)


def _choose(task: Task, rule: RankRule, method: Method) -> RankReport:
    return choose_ranks(task.params, rule, method=method, select=task.select)


def _at_most(task: Task, make: Callable[[float], RankRule], fraction: float, method: Method) -> RankReport:
    """The ranks of the largest setting of a rule that costs no more than a fraction."""
    best = _choose(task, make(0.0), method)
    limit = fraction * sum(task.macs[choice.path] for choice in best.choices)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        report = _choose(task, make(middle), method)
        if _spent(task, report) <= limit:
            low, best = middle, report
        else:
            high = middle
    return best


def _spent(task: Task, report: RankReport) -> float:
    """Multiply-accumulates of the layers that may be factorized."""
    return sum(task.macs[c.path] * (c.factored / c.dense if c.rank is not None else 1) for c in report.choices)


def _tuple(rank: Any) -> tuple[int, ...]:
    return rank if isinstance(rank, tuple) else (rank,)
