"""What happens to a training that is killed, told to end, out of space, or whose checkpoints are damaged: nothing is lost."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import STEPS, assert_same_run, finish, simple_step, start, start_state, stop_at, uninterrupted

from lepton_jax.core.files import ArtifactError
from lepton_jax.training import Checkpoints, FitSettings, MetricsWriter, Terminated, fit, read_metrics

__all__ = ["uninterrupted"]
KILLS = int(os.environ.get("LEPTON_KILLS", "3"))
"""So many kills of one training."""


def test_a_training_that_is_killed_again_and_again_comes_to_the_same_end(tmp_path, uninterrupted):
    rng = np.random.default_rng(0)
    for _ in range(KILLS):
        process = start(tmp_path, pause=0.02)
        for line in process.stdout:
            if int(line) >= STEPS - 2 or rng.random() < 0.06:  # anywhere, also while a checkpoint is being written
                break
        process.kill()
        process.communicate()
    finish(start(tmp_path))
    assert_same_run(tmp_path, uninterrupted)


def test_sigterm_saves_where_it_is_and_ends_with_143(tmp_path, uninterrupted):
    process = start(tmp_path, pause=0.05)
    err = stop_at(process, 24, signal.SIGTERM)
    assert process.returncode == 143
    assert "interrupted after step 25; saved in " in err.strip().splitlines()[-1]
    assert finish(start(tmp_path)) == list(range(25, STEPS))
    assert_same_run(tmp_path, uninterrupted)


def train(folder, steps, **options):
    settings = FitSettings(steps=steps, log_every=5, checkpoint_every=5)
    with Checkpoints(folder / "c", run="r") as checkpoints:
        return fit(
            start_state(),
            simple_step(),
            options.pop("batch_at", lambda k: np.float32(k + 1) / 8),
            settings,
            checkpoints=checkpoints,
            metrics=MetricsWriter(folder / "m.jsonl"),
            **options,
        )


def test_sigterm_is_an_exit_and_the_handlers_come_back():
    def batch_at(number):
        if number == 3:
            signal.raise_signal(signal.SIGTERM)
        return np.float32(1)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Terminated, match="after step 4; without checkpoints the run cannot be resumed") as error:
        fit(start_state(), simple_step(), batch_at, FitSettings(steps=9))
    assert error.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder, 20)


def same(state, other):
    return all(np.asarray(state.params[name]).tobytes() == np.asarray(other.params[name]).tobytes() for name in state.params)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def files(folder, step):
    return sorted(path for path in (folder / "c" / str(step)).rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of reads that orbax had begun
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, trained):
    source, expected = trained
    found = []
    for number, path in enumerate(files(source, 20)):
        how = flip if path.parent.name == "d" else (cut, Path.unlink)[number % 2]  # what a bit more hits may be read as before
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        how(folder / path.relative_to(source))
        with warnings.catch_warnings(record=True) as seen, Checkpoints(folder / "c", run="r") as checkpoints:
            warnings.simplefilter("always", UserWarning)
            state, _ = checkpoints.restore(start_state())
        said = [str(warning.message) for warning in seen if warning.category is UserWarning]
        assert said or same(state, expected), path  # what was hit holds nothing that is needed
        assert all("damaged checkpoints (that of step 20: " in one and "Going on from step 15" in one for one in said)
        found += [how] * len(said)
    assert set(found) == {cut, flip, Path.unlink}


def test_a_run_goes_on_over_a_damaged_checkpoint_to_the_same_end(tmp_path, trained):
    source, expected = trained
    shutil.copytree(source, tmp_path / "run")
    for path in files(tmp_path / "run", 20):
        cut(path)
    with pytest.warns(UserWarning, match="Going on from step 15"):
        state = train(tmp_path / "run", 20, resume=True)
    assert same(state, expected)
    assert read_metrics(tmp_path / "run" / "m.jsonl") == read_metrics(source / "m.jsonl")
    state = train(tmp_path / "run", 20, resume=True)  # the damaged one was replaced: no warning
    assert same(state, expected)


def test_when_all_are_damaged_nothing_is_begun_anew_in_silence(tmp_path, trained):
    shutil.copytree(trained[0], tmp_path / "run")
    for path in [*files(tmp_path / "run", 15), *files(tmp_path / "run", 20)]:
        cut(path)
    before = [(path, path.read_bytes()) for path in files(tmp_path / "run", 20)]
    with pytest.raises(ValueError, match=r"damaged checkpoints .*step 15.*step 20.* Delete the folder to begin anew") as error:
        train(tmp_path / "run", 20, resume=True)
    assert "\n" not in str(error.value)
    assert [(path, path.read_bytes()) for path in files(tmp_path / "run", 20)] == before


@contextmanager
def no_file_larger_than(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_ends_a_training_that_can_be_resumed(tmp_path):
    expected = train(tmp_path / "whole", 20)
    train(tmp_path / "run", 10)
    for size in (0, 300):  # of metrics and checkpoints nothing more, or not all, can be written
        with no_file_larger_than(size), pytest.raises(ArtifactError, match=r"cannot write .*free space") as error:
            train(tmp_path / "run", 20, resume=True)
        assert "\n" not in str(error.value)
    state = train(tmp_path / "run", 20, resume=True)
    assert same(state, expected)
    assert read_metrics(tmp_path / "run" / "m.jsonl") == read_metrics(tmp_path / "whole" / "m.jsonl")


def test_metrics_that_cannot_be_written_leave_whole_rows(tmp_path):
    path = tmp_path / "m.jsonl"
    MetricsWriter(path).write(1, {"loss": 0.5})
    with no_file_larger_than(path.stat().st_size + 10), pytest.raises(ArtifactError, match=r"m\.jsonl.*as they were"):
        MetricsWriter(path).write(2, {"loss": 0.25})
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}]
    path.write_text('{"step": 1}\n{"st')
    with pytest.raises(ArtifactError, match=r"m\.jsonl is damaged: line 2 .* Delete that line"):
        read_metrics(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    checkpoints = Checkpoints(tmp_path / "file" / "c")
    with pytest.raises(ArtifactError, match=r"file/c: cannot write a checkpoint: .*choose another folder"):
        checkpoints.save(1, {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"Checkpoints: directory must be a folder; .*file is a file"):
        Checkpoints(tmp_path / "file")


OTHER = """
import sys, numpy as np
from lepton_jax.training import Checkpoints
with Checkpoints(sys.argv[1], run="r") as checkpoints:
    checkpoints.save(25, {"w": np.ones(2)})
"""


def test_of_two_processes_one_saves(tmp_path):
    command = [sys.executable, "-c", OTHER, str(tmp_path / "c")]
    place = {"cwd": Path(__file__).parents[2], "capture_output": True, "text": True}
    with Checkpoints(tmp_path / "c", run="r") as checkpoints:
        checkpoints.save(1, {"w": np.ones(2)})
        checkpoints.wait()
        done = subprocess.run(command, **place)
    assert f"ValueError: {tmp_path / 'c'} is in use by" in done.stderr.splitlines()[-1]
    if Path("/proc/locks").exists():
        assert f"process {os.getpid()}" in done.stderr
    assert subprocess.run(command, **place).returncode == 0  # its owner let it go
