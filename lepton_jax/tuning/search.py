"""The best settings of a training within a budget: a search that goes on after whatever killed it."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import pickle
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, one_line
from lepton_jax.core.tables import table
from lepton_jax.tuning.budget import Budget
from lepton_jax.tuning.journal import Journal
from lepton_jax.tuning.space import Space, check_space, settings_of, suggested

Train = Callable[..., Mapping[str, float]]
"""``train(settings, seed=..., report=...) -> {"loss": ..., ...}``"""
FINISHED = ("COMPLETE", "PRUNED")
_STARTUP = 8
"""Trials before others are compared with the median, and before TPE begins."""
_REVIVALS = 20
"""How often workers that were killed are begun anew."""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched:
    """What `search` found.

    Attributes:
      settings: the best, by the loss on validation data, of those within the budget.
      loss: its loss in the search.
      retrained: by name, the figures of trainings with fresh seeds.
      front: (cost, loss, settings) of those of which none was both cheaper and better, the cheapest first; of one objective,
        the best alone, with cost 0.
      finished: trials that ended, those that were given up early among them.
      pruned: of these, those that were given up early.

    Example:
      >>> found = Searched(
      ...     settings={"bits": 3},
      ...     loss=0.2,
      ...     retrained={"loss": (0.21, 0.23)},
      ...     front=((0.0, 0.2, {"bits": 3}),),
      ...     finished=9,
      ...     pruned=2,
      ... )
      >>> print(found)
      best of 9 trials (2 given up early): bits=3, loss 0.2
      retrained   mean  deviation  runs
      loss       0.22     0.01414     2
    """

    settings: Mapping[str, Any]
    loss: float
    retrained: Mapping[str, tuple[float, ...]]
    front: tuple[tuple[float, float, Mapping[str, Any]], ...]
    finished: int
    pruned: int

    def __str__(self) -> str:
        said = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        head = f"best of {self.finished} trials ({self.pruned} given up early): {said}, loss {self.loss:.4g}"
        rows: list[tuple[Any, ...]] = [("retrained", "mean", "deviation", "runs")]
        for name, values in self.retrained.items():
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            rows.append((name, f"{statistics.mean(values):.4g}", f"{deviation:.4g}", len(values)))
        return f"{head}\n{table(rows)}" if self.retrained else head


@checked
def search(
    train: Train,
    space: Space,
    budget: Budget | None = None,
    *,
    storage: str | os.PathLike[str],
    trials: int = 100,
    workers: int = 1,
    front: str = "",
    retrain: int = 3,
    seed: int = 0,
) -> Searched:
    """Train with many settings, and find the best: for what no table can foretell, rates, epochs, orders, distillation.

    Settings are chosen by the tree-structured Parzen estimator, or with `front` by NSGA-II. All is kept in a journal as it
    happens: the same call goes on where the last one was killed. A trial whose process was killed is tried again.

    Args:
      train: ``train(settings, seed=, report=)``, which returns ``{"loss": ...}``, on validation data, what the budget limits by
        its names, and any other figures, which the search does not look at. ``report(step, loss)`` says how it goes; it ends
        the training if more than half of the others were better at that step. With several workers, a function of a module.
      space: by name, a `Range` or a list.
      budget: what settings may cost; those that cost more are never the best. Its "loss" limits the loss of `train`.
      storage: the journal's file. For several machines, see `Source`.
      trials: how many are to be finished, those of earlier calls among them.
      workers: processes.
      front: the name of a cost, such as "bytes", to be made least besides the loss; nothing is given up early then.
      retrain: how many times the best is trained again, with the seeds ``seed + 1, seed + 2, ...``; trials have `seed`.
      seed: with one worker, the same seed chooses the same settings, however often the search was interrupted.

    Raises:
      ImportError: if Optuna is not installed; says how to.
      ValueError: for the journal of another study, a space with nothing in it, or a budget that no trial kept.

    Example:
      >>> import tempfile
      >>> from lepton_jax.tuning import Range
      >>> def train(settings, *, seed, report):
      ...     return {"loss": (settings["rate"] - 0.3) ** 2 + 0.1 / settings["bits"], "bytes": 100 * settings["bits"]}
      >>> space = {"rate": Range(low=0.0, high=1.0), "bits": [2, 4, 8]}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     found = search(train, space, Budget(bytes=400), storage=f"{folder}/x.journal", trials=25)
      >>> found.settings["bits"], found.finished, len(found.retrained["loss"])
      (4, 25, 3)

    Source: Akiba et al. 2019, "Optuna"; on several machines Optuna's own `RDBStorage` takes the journal's place: the page "I
    want to search on several machines" has the lines for it, around the same `train`.
    """
    check_space(space)
    for name, number in (("trials", trials), ("workers", workers)):
        check_whole(f"search: {name}", number, 1)
    check_whole("search: retrain", retrain, 0)
    job = _Job(train, space, budget.limits if budget else {}, os.fspath(storage), trials, front, seed)
    journal = job.journal()
    if workers == 1:
        _work(job, journal)
    else:
        _side_by_side(job, journal, workers)
    return _found(job, journal, retrain)


@dataclasses.dataclass(frozen=True)
class _Job:
    train: Train
    space: Space
    limits: Mapping[str, float]
    storage: str
    trials: int
    front: str
    seed: int

    def journal(self) -> Journal:
        space = {name: repr(given) for name, given in self.space.items()}
        about = json.dumps({"space": space, "limits": dict(self.limits), "front": self.front}, sort_keys=True)
        return Journal(self.storage, about, directions=2 if self.front else 1)

    def sampler(self, optuna: Any, number: int) -> Any:
        """One a trial, so that nothing of it has to outlive a process."""
        seed = (self.seed * 1_000_003 + number) % 2**32
        if self.front:
            return optuna.samplers.NSGAIISampler(population_size=max(min(self.trials // 4, 50), 4), seed=seed)
        return optuna.samplers.TPESampler(n_startup_trials=_STARTUP, multivariate=True, seed=seed)


def _work(job: _Job, journal: Journal) -> None:
    """Run trials until there are enough."""
    with journal.quiet(), journal.working():
        while True:
            with journal.turn():
                journal.put_back()
                if journal.count(*FINISHED, "RUNNING") >= job.trials:
                    return
                journal.study.sampler = job.sampler(journal.optuna, len(journal.study.get_trials(deepcopy=False)))
                trial = journal.study.ask()
                journal.taken(trial)
                settings = suggested(trial, job.space)
            _run(job, journal, trial, settings)


def _run(job: _Job, journal: Journal, trial: Any, settings: dict[str, Any]) -> None:
    states = journal.optuna.trial.TrialState
    pruner = journal.optuna.pruners.MedianPruner(n_startup_trials=_STARTUP)

    def report(step: int, loss: float) -> None:
        if job.front:
            return
        trial.report(float(loss), int(step))
        frozen = next(one for one in journal.trials("RUNNING") if one.number == trial.number)
        if not math.isfinite(loss) or pruner.prune(journal.study, frozen):
            raise journal.optuna.TrialPruned

    try:
        figures = {name: float(value) for name, value in job.train(settings, seed=job.seed, report=report).items()}
        missing = [name for name in ("loss", *job.limits, *([job.front] if job.front else [])) if name not in figures]
        if missing:
            raise ValueError(f"search: train must return {', '.join(missing)} besides {', '.join(figures)}.")
    except journal.optuna.TrialPruned:
        journal.study.tell(trial, state=states.PRUNED)
        return
    except Exception as error:
        trial.set_user_attr("error", one_line(error))
        journal.study.tell(trial, state=states.FAIL)
        raise
    trial.set_user_attr("figures", figures)
    for name, limit in job.limits.items():  # above 0 is not feasible
        trial.set_constraint(name, figures[name] / limit - 1)
    values = [figures["loss"], *([figures[job.front]] if job.front else [])]
    values = [value if math.isfinite(value) else 1e30 for value in values]
    journal.study.tell(trial, values)


def _worker(job: _Job) -> None:
    _work(job, job.journal())


def _side_by_side(job: _Job, journal: Journal, workers: int) -> None:
    """Run processes; those that are killed are begun anew."""
    try:
        pickle.dumps(job)
    except Exception as error:
        raise ValueError("search: with several workers, train must be a function of a module, not of a function.") from error
    context = multiprocessing.get_context("spawn")
    for _ in range(_REVIVALS):
        if journal.count(*FINISHED) >= job.trials:
            return
        processes = [context.Process(target=_worker, args=(job,)) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any((process.exitcode or 0) > 0 for process in processes):
            errors = [trial.user_attrs["error"] for trial in journal.trials("FAIL") if "error" in trial.user_attrs]
            raise RuntimeError(f"search: a worker failed: {errors[-1] if errors else 'see what it printed'}")
    raise RuntimeError(f"search: workers were killed {_REVIVALS} times; call again to go on.")


def _found(job: _Job, journal: Journal, retrain: int) -> Searched:
    """Choose by the loss alone, then train the best anew."""
    with journal.quiet():
        done = [trial for trial in journal.trials("COMPLETE") if _fits(job, trial)]
        if not done:
            least = {
                name: min((t.user_attrs["figures"][name] for t in journal.trials("COMPLETE")), default=0) for name in job.limits
            }
            said = ", ".join(f"{name}={value:,g}" for name, value in least.items()) or "no trial ended with a finite loss"
            raise ValueError(f"search: no trial is within the budget; the least there was: {said}.")
        best = min(done, key=lambda trial: (trial.values[0], trial.number))
        kept: dict[str, Any] = journal.study.user_attrs.get("retrained", {})
        again = kept.get("figures", []) if kept.get("number") == best.number and kept.get("seed") == job.seed else []
        settings = settings_of(best.params, job.space)
        for number in range(len(again), retrain):
            figures = job.train(settings, seed=job.seed + 1 + number, report=lambda step, loss: None)
            again = [*again, {name: float(value) for name, value in figures.items()}]
            journal.study.set_user_attr("retrained", {"number": best.number, "seed": job.seed, "figures": again})
    names = again[0] if again[:retrain] else ()
    return Searched(
        settings=settings,
        loss=best.values[0],
        retrained={name: tuple(figures[name] for figures in again[:retrain]) for name in names},
        front=_front(job, done if job.front else [best]),
        finished=journal.count(*FINISHED),
        pruned=journal.count("PRUNED"),
    )


def _fits(job: _Job, trial: Any) -> bool:
    figures = trial.user_attrs["figures"]
    return math.isfinite(figures["loss"]) and all(figures[name] <= limit for name, limit in job.limits.items())


def _front(job: _Job, done: list[Any]) -> tuple[tuple[float, float, Mapping[str, Any]], ...]:
    kept: list[tuple[float, float, Mapping[str, Any]]] = []
    for trial in sorted(done, key=lambda trial: (*reversed(trial.values), trial.number)):
        cost = trial.values[1] if job.front else 0.0
        if not kept or trial.values[0] < kept[-1][1]:
            kept.append((cost, trial.values[0], settings_of(trial.params, job.space)))
    return tuple(kept)
