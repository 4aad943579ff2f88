"""A study of low rank: methods and rules for ranks at several budgets of multiply-accumulates, before and after tuning."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax

from experiments.common.results import Result, kept
from experiments.common.rows import check_rows, chosen
from experiments.studies.low_rank.tasks import Characters, ResNet20, Task
from lepton_jax import freeze, identity, low_rank
from lepton_jax.core.errors import collect
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

METHODS = ("plain", "activation-aware", "Fisher-weighted")
RULES = ("EVBMF", "energy", "budget", "uniform")
_BISECTIONS = 16
_LEAST = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Two tables a task: methods by budget, and rules for ranks at one budget."""

    name: str
    """Names the run folder."""
    tasks: dict[str, ResNet20 | Characters]
    """What is factorized, by name."""
    data: Path = Path("data")
    """Holds `weights`, `cifar10_subset`, `cifar10_jpeg` and `tinyshakespeare`."""
    fractions: tuple[float, ...] = (0.7, 0.5, 0.35)
    """Budgets of the methods: of the multiply-accumulates of the layers that may be factorized."""
    rules_fraction: float = 0.5
    """The budget that the rules for ranks are brought to: by their share of energy or rank, or by weakening EVBMF's ranks."""
    seed: int = 0
    """The first seed: of the transformer's training, and of all tuning."""
    max_steps: int | None = None
    """Stop every tuning after so many steps, for a trial run."""
    only: tuple[str, ...] = ()
    """Run only the tasks of these names."""

    def __post_init__(self) -> None:
        with collect(f"Study {self.name!r}") as problems:
            check_rows(problems, list(self.tasks), self.only, field="tasks")
            if not all(0 < fraction < 1 for fraction in (*self.fractions, self.rules_fraction)):
                problems.append(f"fractions, rules_fraction: must be in (0, 1); got {self.fractions}, {self.rules_fraction}")


class Runner:
    """Runs a study.

    Args:
      study: the settings.
      seeds: of the runs.
      run_dir: gets a JSON file for each finished cell, which is not run again.
    """

    def __init__(self, study: Study, seeds: Sequence[int], run_dir: Path) -> None:
        self.study, self.seeds, self.run_dir = study, tuple(seeds), run_dir

    def run(self) -> list[Result]:
        """Run what is missing; return all results."""
        results = []
        for name, settings in chosen(self.study.tasks.items(), self.study.only, name=itemgetter(0)):
            for seed in self.seeds:
                cells = Cells(self, name, settings, seed)
                results += [cells.dense(), *cells.curve(), *cells.rules()]
        return results


class Cells:
    """The results of one task and seed; the model is loaded when the first one is missing."""

    def __init__(self, runner: Runner, name: str, settings: ResNet20 | Characters, seed: int) -> None:
        self.runner, self.study, self.name, self.settings, self.seed = runner, runner.study, name, settings, seed
        self._task: Task | None = None
        self._methods: dict[str, Method] = {"plain": Svd()}

    @property
    def task(self) -> Task:
        """The trained model and its data."""
        if self._task is None:
            self._task = self.settings.load(self.study.data, self.runner.run_dir, self.seed)
        return self._task

    def method(self, name: str) -> Method:
        """Return a factorization, with its calibration."""
        if name not in self._methods:
            made = {"activation-aware": self._activation_aware, "Fisher-weighted": self._fisher_weighted}[name]
            self._methods[name] = made()
        return self._methods[name]

    def _activation_aware(self) -> Method:
        return activation_aware(self.task.moments).method

    def _fisher_weighted(self) -> Method:
        return fisher_weighted(self.task.fisher)

    def dense(self) -> Result:
        """The model as it was, and after the same tuning."""
        return self._cell("dense", "dense", 1.0, lambda: None)

    def curve(self) -> list[Result]:
        """Every method at every budget, ranks by marginal error."""
        return [
            self._cell("methods", name, fraction, partial(self._budget, name, fraction))
            for name in METHODS
            for fraction in self.study.fractions
        ]

    def rules(self) -> list[Result]:
        """Every rule with plain SVD, at one budget."""
        share = self.study.rules_fraction
        makers: dict[str, Callable[[], RankReport]] = {
            "EVBMF": partial(self._at_most, lambda found: Evbmf(weaken=found), share),
            "energy": partial(self._at_most, lambda found: Energy(energy=max(found, _LEAST)), share),
            "uniform": partial(self._at_most, lambda found: Fraction(fraction=max(found, _LEAST)), share),
            "budget": partial(self._budget, "plain", share),
        }
        return [self._cell("rules", name, share, makers[name]) for name in RULES]

    def _choose(self, rule: RankRule, method: str = "plain") -> RankReport:
        return choose_ranks(self.task.params, rule, method=self.method(method), select=self.task.select)

    def _budget(self, method: str, fraction: float) -> RankReport:
        macs = {path: count for path, count in self.task.macs.items() if count}
        return self._choose(Budget(of="macs", macs=macs, fraction=fraction), method)

    def _at_most(self, make: Callable[[float], RankRule], fraction: float) -> RankReport:
        """The ranks of the largest setting of a rule that costs no more than a fraction."""
        best = self._choose(make(0.0))
        limit = fraction * sum(self.task.macs[choice.path] for choice in best.choices)
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            report = self._choose(make(middle))
            if self._spent(report) <= limit:
                low, best = middle, report
            else:
                high = middle
        return best

    def _spent(self, report: RankReport) -> float:
        """Multiply-accumulates of the layers that may be factorized."""
        macs = self.task.macs
        return sum(macs[c.path] * (c.factored / c.dense if c.rank is not None else 1) for c in report.choices)

    def _cell(self, part: str, name: str, fraction: float, choose: Callable[[], RankReport | None]) -> Result:
        label = f"{self.name}-{part}-{name}-{100 * fraction:g}-seed{self.seed}".replace(" ", "_")
        return kept(self.runner.run_dir / "rows" / f"{label}.json", lambda: self._made(label, part, name, fraction, choose))

    def _made(self, label: str, part: str, name: str, fraction: float, choose: Callable[[], RankReport | None]) -> Result:
        begun = time.perf_counter()
        about = {"task": self.name, "part": part, "row": name, "fraction": fraction, "seed": self.seed}
        result = {**about, **self._measure(label, choose(), name if part == "methods" else "plain")}
        print(f"{label}: {result['error']:.2f}, tuned {result['tuned_error']:.2f}", flush=True)
        return {**result, "seconds": time.perf_counter() - begun}

    def _measure(self, label: str, report: RankReport | None, method: str) -> Result:
        """Factorize, evaluate, tune, evaluate."""
        task, params, transform = self.task, self.task.params, identity()
        total = sum(task.macs.values())
        spent = total
        if report is not None and report.ranks:
            made = low_rank(report.ranks, method=self.method(method), select=tuple(report.ranks))
            params, _ = made.init(params)
            transform = freeze(made, ())
            spent -= sum(task.macs[choice.path] for choice in report.choices) - self._spent(report)
        before = task.figures(params, transform)
        tuned = task.tune(params, transform, self.study.max_steps, label, self.runner.run_dir)
        after = task.figures(tuned, transform)
        return {
            **before,
            **{f"tuned_{name}": value for name, value in after.items()},
            "macs": spent / total,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "ranks": {} if report is None else {path: list(_tuple(rank)) for path, rank in report.ranks.items()},
        }


def _tuple(rank: Any) -> tuple[int, ...]:
    return rank if isinstance(rank, tuple) else (rank,)


def mean(results: Sequence[Result], name: str) -> float:
    """Return the mean of a figure over seeds."""
    return statistics.mean(result[name] for result in results)
