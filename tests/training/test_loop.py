"""The loop: resuming after a kill and after Ctrl-C, losses that are not finite, what is logged when."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import identity
from lepton_jax.training import Checkpoints, FitSettings, MetricsWriter, create, fit, make_train_step, read_metrics

SCRIPT = Path(__file__).with_name("resumable_run.py")
ROOT = SCRIPT.parents[2]
STEPS = 60


def start(folder, scan=1, pause=0.0):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **cache, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(SCRIPT), str(folder), str(STEPS), str(scan), str(pause)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait; return the steps whose batches were read."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [int(line) for line in out.split()]


def stop_at(process, step, number):
    """Send a signal once the batch of `step` is read."""
    for line in process.stdout:
        if int(line) == step:
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=120)
    return err


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(folder)) == list(range(STEPS))
    return folder


def assert_same_run(folder, expected):
    """The same metrics to the byte, the same state to the bit."""
    assert (folder / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    with np.load(folder / "final.npz") as found, np.load(expected / "final.npz") as wanted:
        assert found.files == wanted.files
        assert {"step", "params|a", "model_state|seen", "key"} <= set(found.files)
        for name in wanted.files:
            assert found[name].dtype == wanted[name].dtype
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
        assert int(found["step"]) == int(found["model_state|seen"]) == STEPS


def test_a_killed_run_resumes_to_the_same_result(tmp_path, uninterrupted):
    process = start(tmp_path, pause=0.05)
    stop_at(process, 33, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    steps = finish(start(tmp_path))
    assert steps in (list(range(30, STEPS)), list(range(20, STEPS)))  # 20: it was killed before step 30 was on disk
    assert_same_run(tmp_path, uninterrupted)


def test_ctrl_c_saves_where_it_is(tmp_path, uninterrupted):
    process = start(tmp_path, pause=0.05)
    err = stop_at(process, 24, signal.SIGINT)
    assert process.returncode not in (0, None)
    last = err.strip().splitlines()[-1]
    assert last.startswith("KeyboardInterrupt: interrupted after step 25; saved in ")
    assert str(tmp_path / "checkpoints") in last
    assert "press Ctrl-C again to stop at once" in err
    assert finish(start(tmp_path)) == list(range(25, STEPS))
    assert_same_run(tmp_path, uninterrupted)


def loss_fn(params, model_state, batch, key):
    """Linear in `a`; `b` gets a gradient of NaN for a batch of zero, though the loss is finite."""
    return jnp.sum(params["a"] * batch) + jnp.sqrt(jnp.abs(params["b"] * batch)), (model_state, {"twice": 2 * jnp.max(batch)})


def start_state():
    return create({"a": jnp.ones(()), "b": jnp.float32(1)}, {}, optax.sgd(1e-3), identity(), jax.random.key(0))


def simple_step():
    return make_train_step(loss_fn, optax.sgd(1e-3), identity())


@pytest.mark.parametrize("scan", [1, 4])
def test_what_is_logged_when(tmp_path, scan):
    evaluated = []

    def evaluate(state):
        evaluated.append(int(state.step))
        return {"error": float(state.step) / 100}

    settings = FitSettings(steps=22, log_every=8, evaluate_every=10, checkpoint_every=9, scan=scan)
    metrics, calls = MetricsWriter(tmp_path / "m.jsonl", phase="p"), []

    def batch_at(number):
        calls.append(number)
        return np.float32(number + 1)

    with Checkpoints(tmp_path / "c", max_to_keep=9) as checkpoints:
        state = fit(
            start_state(), simple_step(), batch_at, settings, evaluate=evaluate, checkpoints=checkpoints, metrics=metrics
        )
        for step in (9, 18, 22):
            assert int(checkpoints.restore(state, step)[0].step) == step
    rows = read_metrics(tmp_path / "m.jsonl")
    assert calls == list(range(22))
    assert evaluated == [10, 20, 22]
    assert [(row["step"], row["eval_error"]) for row in rows if "eval_error" in row] == [(10, 0.1), (20, 0.2), (22, 0.22)]
    means = [(row["step"], row["twice"]) for row in rows if "twice" in row]
    assert means == [(8, 2 * np.mean(range(1, 9))), (16, 2 * np.mean(range(9, 17))), (22, 2 * np.mean(range(17, 23)))]
    assert [list(row)[:2] for row in rows] == [["phase", "step"]] * 6
    assert int(state.step) == 22


def test_a_gradient_that_is_not_finite_stops_with_step_and_leaf(tmp_path):
    """The loss is finite at step 13, the gradient of b is not; the checkpoint of step 10 stays the newest."""
    settings = FitSettings(steps=30, log_every=10, checkpoint_every=10)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FloatingPointError, match=r"step 13 gave loss 0.0, and left params/b not finite") as error:
            fit(start_state(), simple_step(), lambda k: np.float32(0 if k == 13 else 1), settings, checkpoints=checkpoints)
        assert "the checkpoint of step 10 is good" in str(error.value)
        assert checkpoints.latest_step == 10
        good, _ = checkpoints.restore(start_state())
    assert np.isfinite(float(good.params["b"]))


@pytest.mark.parametrize("scan", [1, 5])
def test_a_loss_that_is_not_finite_stops_with_step_and_batch(scan):
    settings = FitSettings(steps=30, log_every=10, scan=scan)
    with pytest.raises(FloatingPointError, match=r"step 17 gave loss nan, and left params/a, params/b not finite") as error:
        fit(start_state(), simple_step(), lambda k: {True: np.float32(1), False: np.float32("nan")}[k != 17], settings)
    assert "the batch of this step is not finite" in str(error.value)
    assert "no checkpoint was asked for" in str(error.value)


def test_parameters_are_checked_before_they_are_saved(tmp_path):
    """A NaN that the loss does not show, at the last step, is never saved."""
    settings = FitSettings(steps=8, log_every=8)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FloatingPointError, match=r"step 7 .* params/b not finite.*there is no checkpoint yet"):
            fit(start_state(), simple_step(), lambda k: np.float32(k != 7), settings, checkpoints=checkpoints)
        assert checkpoints.latest_step is None


def test_checkpoints_are_not_overwritten_by_a_new_run(tmp_path):
    settings = FitSettings(steps=2)
    with Checkpoints(tmp_path) as checkpoints:
        first = fit(start_state(), simple_step(), lambda k: np.float32(1), settings, checkpoints=checkpoints)
        again = fit(start_state(), simple_step(), {}.__getitem__, settings, checkpoints=checkpoints, resume=True)
        assert float(again.params["a"]) == float(first.params["a"])  # finished already: no batch is read
        with pytest.raises(ValueError, match="holds a checkpoint of step 2; resume it, or choose another folder"):
            fit(start_state(), simple_step(), lambda k: np.float32(1), settings, checkpoints=checkpoints)


def test_ctrl_c_without_checkpoints_and_in_a_thread():
    def press(k):
        if k == 3:
            signal.raise_signal(signal.SIGINT)
        return np.float32(1)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 4; without checkpoints the run cannot be resumed"):
        fit(start_state(), simple_step(), press, FitSettings(steps=9))
    assert signal.getsignal(signal.SIGINT) is before
    done = []
    thread = threading.Thread(
        target=lambda: done.append(fit(start_state(), simple_step(), lambda k: np.float32(1), FitSettings(steps=9)))
    )
    thread.start()
    thread.join()
    assert int(done[0].step) == 9


def test_bad_settings_are_all_named():
    with pytest.raises(ValueError, match="FitSettings") as error:
        FitSettings(steps=0, scan=-1)
    assert str(error.value).splitlines()[1:] == ["  steps: must be at least 1; got 0", "  scan: must be at least 1; got -1"]
