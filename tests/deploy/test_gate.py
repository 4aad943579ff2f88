"""The gate: ratios that are known, noise that is noticed, and what it leaves as it was."""

import gc
import os
import time

import numpy as np
import pytest

from lepton_jax import deploy
from lepton_jax.deploy.gate import Gate


def work(amount):
    return lambda: sum(range(amount * 1000))


def test_known_ratios_are_found(monkeypatch):
    """By a clock of which it is known how far each function moves it, with noise of 3 %."""
    now, random = [0.0], np.random.default_rng(0)

    def moving(seconds):
        def run():
            now[0] += seconds * (1 + 0.03 * random.normal())

        return run

    monkeypatch.setattr(time, "process_time", lambda: now[0])
    found = deploy.gate({"one": moving(0.02), "half": moving(0.01), "same": moving(0.02), "tenth": moving(0.002)}, rounds=15)
    assert found.is_trusted
    assert found.ratios["one"] == (1.0, 1.0, 1.0)
    for name, expected in (("half", 2.0), ("tenth", 10.0), ("same", 1.0)):
        ratio, low, high = found.ratios[name]
        assert low <= ratio <= high
        assert ratio == pytest.approx(expected, rel=0.04)
    assert found.kept == ("half", "tenth")
    assert found.seconds["half"] == pytest.approx(0.01, rel=0.04)
    lines = str(found).splitlines()
    assert lines[0].split() == ["name", "ms", "ratio", "interval"]
    assert lines[2].endswith("faster")
    assert not lines[3].endswith("faster")


def test_the_time_that_a_function_waits_is_not_counted():
    found = deploy.gate({"work": work(20), "asleep": lambda: time.sleep(2e-3) or work(2)()}, rounds=5)
    assert found.ratios["asleep"][0] > 2  # a tenth of the work, ten times the wall time


def test_an_interval_holds_the_truth_and_narrows_with_rounds():
    from lepton_jax.deploy.gate import _ratio

    random, widths, inside = np.random.default_rng(0), {}, 0
    for rounds in (7, 60):
        spans = []
        for _ in range(60):
            base, other = (np.exp(random.normal(0, 0.05, rounds)) * scale for scale in (3.0, 2.0))
            ratio, low, high = _ratio(base, other)
            assert low <= ratio <= high
            inside += low <= 1.5 <= high
            spans.append(high - low)
        widths[rounds] = np.mean(spans)
    assert inside / 120 > 0.85
    assert widths[60] < widths[7] / 1.5


def test_nothing_is_believed_if_the_first_differs_from_itself():
    ratios = {"a": (1.0, 1.0, 1.0), "b": (3.0, 2.9, 3.1)}
    found = Gate(ratios=ratios, seconds={"a": 3.0, "b": 1.0}, again=(1.08, 1.0, 1.2), rounds=15)
    assert found.kept == ()
    assert "nothing here is to be believed" in str(found)


def test_cores_and_collector_are_left_as_they_were():
    cores = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError):
        deploy.gate({"bad": lambda: 1 // 0})
    assert os.sched_getaffinity(0) == cores
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("functions", "rounds", "message"), [({}, 5, "needs functions"), ({"a": work(1)}, 2, "rounds must be")]
)
def test_bad_calls_are_refused(functions, rounds, message):
    with pytest.raises(ValueError, match=message):
        deploy.gate(functions, rounds=rounds)
    with pytest.raises(TypeError, match="functions must be"):
        deploy.gate({"a": 3})
