"""Two processes train as one; when one is killed the other ends, and started again they come to the bits of a run without."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lepton_jax.training import Checkpoints, multihost

SCRIPT = Path(__file__).with_name("placed_run.py")


def begin(folder, steps, processes=2, kill_at=0, data=()):
    """Start the processes; return their exit codes, and what they said on their error streams."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    devices = 2 // processes
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    start = [sys.executable, str(SCRIPT)]
    rest = [str(processes), str(port), str(folder / "checkpoints"), str(steps), str(kill_at), *data]
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*start, str(number), *rest], **options) for number in range(processes)]
    try:
        said = [process.communicate(timeout=150)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], said


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_two_processes_are_one_run_and_survive_a_kill(tmp_path):
    """Of two devices the sums have two terms, in any order the same: two processes give the bits of one with two devices."""
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    for folder in (killed, alone):
        folder.mkdir()
    codes, _ = begin(killed, 6, kill_at=5)
    assert codes[1] == -9
    assert codes[0] != 0  # the survivor does not go on, nor hang
    assert not (killed / "result.json").exists()
    codes, said = begin(killed, 6)
    assert codes == [0, 0], said
    codes, said = begin(alone, 6, processes=1)
    assert codes == [0], said
    assert "data" in result(alone)["spec"]
    assert result(killed) == result(alone)


def test_grain_by_process(tmp_path):
    """The parts of a batch are those of one process, in their order: so is the training, bit by bit."""
    read = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        codes, said = begin(folder, 6, processes, data=["map"])
        assert codes == [0] * processes, said
        each = [json.loads((folder / f"read_{number}.json").read_text()) for number in range(processes)]
        read[processes] = [list(itertools.chain(*parts)) for parts in zip(*each)]
    assert read[1] == read[2]
    assert [len(batch) for batch in read[1]] == [8] * 6
    assert sorted(itertools.chain(*read[1][:4])) == list(range(32))  # an epoch has every example once
    assert result(tmp_path / "1") == result(tmp_path / "2")


def test_a_loader_of_grain_shards_by_process(tmp_path):
    codes, said = begin(tmp_path, 4, data=["loader"])
    assert codes == [0, 0], said
    one, other = (json.loads((tmp_path / f"read_{number}.json").read_text()) for number in range(2))
    assert [len(batch) for batch in one + other] == [4] * 8
    assert sorted(itertools.chain(*one, *other)) == list(range(32))
    assert result(tmp_path)["step"] == 4


@pytest.mark.parametrize(
    ("counts", "steps", "expected"),
    [
        ((2, 3), (0, 0), "must agree on the number of processes: process 0 says 2, process 1 says 3"),
        ((2, 2), (10, 20), "must agree on the newest checkpoint: process 0 says 10, process 1 says 20"),
        ((2, 2), (10, 10), "holds checkpoints of another configuration (run 'other', this one is 'mine')"),
    ],
)
def test_processes_that_disagree_end_with_one_line(tmp_path, counts, steps, expected):
    with Checkpoints(tmp_path / "run", run="other") as checkpoints:
        checkpoints.save(1, {"w": np.ones(2, np.float32)})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [(str(n), str(port), str(counts[n]), str(steps[n]), str(tmp_path / "run")) for n in range(2)]
    start = [sys.executable, str(SCRIPT.with_name("disagreeing_run.py"))]
    options = {
        "env": {**os.environ, "JAX_PLATFORMS": "cpu"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    running = [subprocess.Popen([*start, *mine], **options) for mine in words]
    try:
        said = [process.communicate(timeout=90)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert running[0].returncode == 3
    lines = [line for line in said[0].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]


def test_what_does_not_fit_together_is_refused_in_one_line(monkeypatch):
    for variables in multihost._VARIABLES.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
    assert multihost.initialize() == 0
    with pytest.raises(ValueError, match=r"process: not given, nor any of JAX_PROCESS_ID"):
        multihost.initialize("localhost:1", 2)
    with pytest.raises(ValueError, match="process: must be from 0 to 1; got 2"):
        multihost.initialize("localhost:1", 2, 2)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE must be a whole number; got 'two'"):
        multihost.initialize("localhost:1")
    with pytest.raises(ValueError, match="barrier: timeout"):
        multihost.barrier("here", timeout=0)
