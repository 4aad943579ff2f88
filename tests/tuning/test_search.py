"""A search of settings: it goes on after kills, loses nothing, keeps its budget, and is judged on validation data alone."""

import importlib
import math
import signal
import subprocess
import sys

import pytest

pytest.importorskip("optuna")

from lepton_jax.tuning import Budget, Range, search

SPACE = {
    "rate": Range(low=1e-4, high=1.0, log=True),
    "bits": [2, 3, 4, 8],
    "order": [("prune", "quantize"), ("quantize", "prune")],
}
DEADLY = """
import os, signal
from pathlib import Path
from lepton_jax.tuning import Budget, Range, search

FOLDER = Path(__file__).parent
SPACE = {"rate": Range(low=1e-4, high=1.0, log=True), "bits": [2, 3, 4, 8]}


def train(settings, *, seed, report):
    with open(FOLDER / "calls", "a") as calls:
        calls.write(f"{settings}\\n")
    if len((FOLDER / "calls").read_text().splitlines()) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    report(0, settings["rate"])
    return {"loss": settings["rate"] + 1 / settings["bits"], "bytes": 100.0 * settings["bits"]}


def go(workers):
    return search(train, SPACE, Budget(bytes=400), storage=FOLDER / "x.journal", trials=12, workers=workers, retrain=2)


if __name__ == "__main__":
    go(1)
"""


def train(settings, *, seed, report):
    loss = math.log10(settings["rate"] / 0.01) ** 2 + 1 / settings["bits"] + 0.001 * seed
    loss += 0.2 * (settings["order"][0] == "quantize")
    for step in range(3):
        report(step, loss * (3 - step))
    return {"loss": loss, "bytes": 100.0 * settings["bits"], "test": 2 * loss}


def test_the_best_within_the_budget_on_validation_data(tmp_path):
    found = search(train, SPACE, Budget(bytes=300), storage=tmp_path / "x.journal", trials=50, retrain=4, seed=3)
    assert found.settings["bits"] == 3  # 4 and 8 are better, and over the budget
    assert 0.002 < found.settings["rate"] < 0.05
    assert found.settings["order"] == ("prune", "quantize")
    assert (found.finished, found.pruned > 0) == (50, True)
    # Fresh seeds: 4 to 7; figures that were not chosen by are reported too.
    same = [found.loss + 0.001 * number for number in (1, 2, 3, 4)]
    assert found.retrained["loss"] == pytest.approx(same)
    assert found.retrained["test"] == pytest.approx([2 * loss for loss in same])
    again = search(train, SPACE, Budget(bytes=300), storage=tmp_path / "x.journal", trials=50, retrain=4, seed=3)
    assert again == found  # nothing is run again
    assert search(train, SPACE, Budget(bytes=300), storage=tmp_path / "y.journal", trials=50, retrain=4, seed=3) == found


def test_a_front_is_what_nothing_beats(tmp_path):
    found = search(train, {**SPACE, "rate": [0.01, 0.1]}, storage=tmp_path / "x.journal", trials=60, front="bytes", retrain=0)
    assert [cost for cost, _, _ in found.front] == [200.0, 300.0, 400.0, 800.0]
    assert [loss for _, loss, _ in found.front] == pytest.approx([1 / 2, 1 / 3, 1 / 4, 1 / 8])
    assert found.pruned == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_loses_nothing_that_is_finished(workers, tmp_path, monkeypatch):
    """The process of the fifth trial is killed in its midst: its settings are tried again."""
    name = f"deadly_{workers}"
    (tmp_path / f"{name}.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    if workers == 1:
        done = subprocess.run([sys.executable, tmp_path / f"{name}.py"], capture_output=True, timeout=200, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    found = importlib.import_module(name).go(workers)
    assert found.finished == 12
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 12 + 1 + 2  # the trials, that which was killed, and the best anew
    assert calls.count(calls[4]) >= 2
    if workers == 1:
        assert calls[5] == calls[4]


def test_an_interrupted_search_ends_as_one_that_was_not(tmp_path):
    for trials in (3, 7, 20):
        found = search(train, SPACE, storage=tmp_path / "x.journal", trials=trials, retrain=1)
    assert found == search(train, SPACE, storage=tmp_path / "y.journal", trials=20, retrain=1)


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    journal = tmp_path / "x.journal"
    search(train, SPACE, Budget(bytes=900), storage=journal, trials=1, retrain=0)
    with open(journal, "ab") as half:
        half.write(b'{"op_code": 5, "worker')  # a process was killed as it wrote
    assert search(train, SPACE, Budget(bytes=900), storage=journal, trials=2, retrain=0).finished == 2
    for space, budget, more in (
        (SPACE, Budget(bytes=5), {}),
        ({"bits": [2, 3]}, Budget(bytes=900), {}),
        (SPACE, None, {"front": "bytes"}),
    ):
        with pytest.raises(ValueError, match="is the journal of another study; name another file") as refused:
            search(train, space, budget, storage=journal, trials=2, **more)
        assert "\n" not in str(refused.value)
    (tmp_path / "no.journal").write_text("no journal\n")
    with pytest.raises(ValueError, match=r"no\.journal is no journal"):
        search(train, SPACE, storage=tmp_path / "no.journal", trials=1)
    with pytest.raises(ValueError, match=r"no trial is within the budget; the least there was: bytes=[2348]00"):
        search(train, SPACE, Budget(bytes=10), storage=tmp_path / "a", trials=3)
    with pytest.raises(ValueError, match="train must return bytes besides loss"):
        search(lambda settings, *, seed, report: {"loss": 1.0}, SPACE, Budget(bytes=10), storage=tmp_path / "b", trials=3)
    with pytest.raises(ValueError, match="train must be a function of a module"):
        search(lambda settings, *, seed, report: {"loss": 1.0}, SPACE, storage=tmp_path / "c", trials=3, workers=2)
    for wrong in ({}, {"rate": []}, {"rate": "ab"}, {"rate": 3}):
        with pytest.raises((ValueError, TypeError), match="search: space"):
            search(train, wrong, storage=tmp_path / "d")
    for low, high, log in ((1.0, 1.0, False), (0.0, 1.0, True)):
        with pytest.raises(ValueError, match="Range"):
            Range(low=low, high=high, log=log)
