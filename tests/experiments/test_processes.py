"""A command that trains by two processes: one result, one voice, and what is said when one of them is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import quantum
from experiments.common import processes
from experiments.common.cli import ROOT

ONE_PHASE = """
from experiments.common.config import Config, Digits, Phase
from lepton_jax.models import LeNet300


def get_config():
    dense = Phase(name="dense", epochs=4)
    return Config(name="small", data=Digits(), model=LeNet300(hidden=(8,)), phases=(dense,), batch_size=64)
"""


@pytest.fixture
def alone(monkeypatch):
    """No variable says that this process is one of several."""
    for words in processes.multihost._VARIABLES.values():
        for word in words:
            monkeypatch.delenv(word, raising=False)


def begin(*words):
    command = [sys.executable, "-m", "experiments.deep_compression", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process):
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(number) for number in listed]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed by Linux")
def test_a_lost_process_ends_the_command_which_then_goes_on(alone, tmp_path):
    config, folder = tmp_path / "small.py", tmp_path / "run"
    config.write_text(ONE_PHASE)
    words = ("--config", config, "--run-dir", folder, "--processes", 2)
    killed, saved = begin(*words), folder / "checkpoints" / "dense"
    for _ in range(1200):
        if killed.poll() is not None or list(saved.glob("*/commit_success.txt")):
            break
        time.sleep(0.05)
    os.kill(children(killed)[1], signal.SIGKILL)
    began = time.monotonic()
    _, said = killed.communicate(timeout=120)
    assert killed.returncode == 1
    assert "error: process 1 of 2 was ended by signal 9.\nGo on with the same command and --resume.\n" in said
    assert said.count("Go on") == 1
    assert "Traceback" not in said
    assert time.monotonic() - began < 60
    assert not (folder / "summary.json").exists()

    again = begin(*words, "--resume")
    printed, said = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert printed.count("results in") == 1  # process 0 alone speaks
    assert printed.count("report in") == 1
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "eval_error" in row]
    assert steps == sorted(set(steps))  # written once, by one of them
    assert json.loads((folder / "summary.json").read_text())["parameters"] == 64 * 8 + 8 + 8 * 10 + 10


def test_numbers_that_do_not_fit_are_refused_in_one_line(alone, run_script, tmp_path, capsys, monkeypatch):
    assert run_script(quantum, "--run-dir", tmp_path / "a", "--processes", 0) == 1
    assert "error: --processes must be at least 1; got 0." in capsys.readouterr().err
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    assert run_script(quantum, "--run-dir", tmp_path / "a", "--processes", 2) == 1
    assert "error: --processes says 2, and the environment 3. Start all processes alike." in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
