"""A search that is killed again and again: all trials that were finished stay, and those that were not are tried again.

    python -m experiments.benchmarks.search_resume --trials 100 --kills 5 --out experiments/results/search_resume.md

A search runs with several workers; after a random number of trials it is killed with all of them (SIGKILL), and started anew,
so many times; then it runs to its end. What a trial trains is a function that takes a moment: what is tested is the journal.
It ends with 1 if a finished trial was lost or changed, or the number of finished trials is another.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.harness import arguments, origin, publish, yes
from lepton_jax.tuning import Budget, Range, Searched, search
from lepton_jax.tuning.space import Space

ROOT = Path(__file__).parents[2]
SPACE: Space = {"rate": Range(low=1e-4, high=1.0, log=True), "bits": [2, 3, 4, 8], "epochs": Range(low=1, high=6)}
BUDGET = Budget(bytes=400)
_MOMENT = 0.02
"""Seconds of an epoch."""


def train(settings: Mapping[str, Any], *, seed: int, report: Callable[[int, float], None]) -> dict[str, float]:
    """Return the figures of settings, as if they had been trained with."""
    loss = math.inf
    for epoch in range(settings["epochs"]):
        time.sleep(_MOMENT)
        loss = math.log10(settings["rate"] / 0.01) ** 2 + 1 / settings["bits"] + 1 / (epoch + 1) + 0.01 * (seed % 7)
        report(epoch, loss)
    return {"loss": loss, "bytes": 100.0 * settings["bits"]}


def go(folder: Path, trials: int, workers: int) -> Searched:
    """Search, or go on."""
    return search(train, SPACE, BUDGET, storage=folder / "x.journal", trials=trials, workers=workers)


def finished(folder: Path) -> dict[int, Any]:
    """The trials that are finished, by number: settings, state and values."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if not (folder / "x.journal").exists():
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / "x.journal")))
    if not storage.get_all_studies():
        return {}
    trials = optuna.load_study(study_name="search", storage=storage).trials
    return {one.number: (one.params, one.state.name, one.values) for one in trials if one.state.name in ("COMPLETE", "PRUNED")}


def killed_at(folder: Path, count: int, command: list[str]) -> int:
    """Start the search, and kill it and its workers once so many trials are finished; how many are finished then."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(finished(folder)) < count and process.poll() is None:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.2)  # until the system has ended its workers, too
    return len(finished(folder))


def main() -> int:
    args = arguments(
        __doc__,
        out=True,
        trials=(100, "how many are to be finished"),
        kills=(5, "how often it is killed"),
        workers=(2, "processes"),
        seed=(0, "of the moments"),
        folder=("", "of a search that is to be gone on with; for the processes that this script starts"),
    )
    if args.folder:
        print(go(Path(args.folder), args.trials, args.workers))
        return 0
    moments = sorted(random.Random(args.seed).sample(range(5, args.trials - 5), args.kills))
    with tempfile.TemporaryDirectory() as name:
        folder, lost, rows = Path(name), 0, []
        before: dict[int, Any] = {}
        command = [sys.executable, "-m", "experiments.benchmarks.search_resume", "--folder", name]
        command += ["--trials", str(args.trials), "--workers", str(args.workers)]
        for number, moment in enumerate(moments, 1):
            there = killed_at(folder, moment, command)
            after = finished(folder)
            gone = sum(after.get(key) != value for key, value in before.items())
            rows.append(f"| {number} | {there} | {gone} |")
            lost, before = lost + gone, after
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        after = finished(folder)
    lost += sum(after.get(key) != value for key, value in before.items())
    good = done.returncode == 0 and len(after) == args.trials and not lost
    lines = [
        "# A search that is killed",
        "",
        f"Made by {origin(f'search_resume --trials {args.trials} --kills {args.kills}')} {args.workers} workers.",
        "",
        "| kill | trials finished by then | of those before, lost or changed |",
        "|---|---|---|",
        *rows,
        f"| none: the end | {len(after)} | {lost} in all |",
        "",
        f"{len(after)} of {args.trials} trials finished after {args.kills} kills, none lost: {yes(good)}.",
        "",
        "```",
        (done.stdout or done.stderr).strip(),
        "```",
    ]
    publish(lines, args.out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
