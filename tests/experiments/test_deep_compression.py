"""The main job: its figures, its files, its resumption, and what it says when something is wrong."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lepton_jax
from experiments.common import cli
from experiments.common.config import load_config, load_sweep
from experiments.common.methods import LearnedStepSize
from lepton_jax.data import load_digits

CONFIGS = sorted((cli.ROOT / "configs").glob("deep_compression_*.py"))


def one_line(capsys) -> str:
    """The one line that an error ends in."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_the_main_job_whole(command, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert command("--run-dir", run_dir) == 0
    printed = capsys.readouterr().out
    summary = json.loads((run_dir / "summary.json").read_text())
    assert [line.split()[0] for line in printed.splitlines() if line[:1].isalpha()][1:6] == [
        "stage", "dense", "pruned", "quantized", "file",
    ]  # fmt: skip
    for name in ("config.json", "metrics.jsonl", "report.md", "training.png", "bytes.png", "model.lepton"):
        assert (run_dir / name).stat().st_size > 0, name

    # The figures are the file's, counted here once more.
    file = run_dir / "model.lepton"
    model, test = lepton_jax.load(file), load_digits().test
    wrong = np.mean(np.asarray(model(test.images)).argmax(-1) != test.labels)
    weights = [np.asarray(w) for layer in model.variables["params"].values() for w in layer.values()]
    parameters = sum(w.size for w in weights)
    assert summary["error"] == pytest.approx(wrong)
    assert summary["parameters"] == parameters
    assert summary["dense_bytes"] == 4 * parameters
    assert summary["nonzeros"] == sum(np.count_nonzero(w) for w in weights)
    assert summary["file_bytes"] == file.stat().st_size
    assert summary["ratio"] == pytest.approx(4 * parameters / (file.stat().st_size - summary["program_bytes"]))
    assert summary["file_ratio"] == pytest.approx((4 * parameters + summary["program_bytes"]) / file.stat().st_size)

    assert summary["macs"] == sum(w.size for w in weights if w.ndim == 2)  # a multiplication a weight, zeros included

    # The best epoch by validation error among those that are as sparse as the last; errors of both splits are logged.
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in logged if row["phase"] == "quantized" and "eval_error" in row]
    assert last[-1]["eval_test_error"] == pytest.approx(wrong)
    least = min(row["eval_error"] for row in last)
    assert summary["best_error"] in {row["eval_test_error"] for row in last if row["eval_error"] == least}

    # One seed's figures; the means over seeds are in the committed results.
    assert summary["ratio"] >= 80
    assert summary["error"] <= summary["dense_error"] + 0.01
    assert summary["dense_error"] < 0.04


SMALL = """
from dataclasses import replace
from pathlib import Path

from experiments.common.config import load_config
from experiments.studies.deep_compression.stages import stages_off


def get_config():
    config = load_config(Path({path!r}))
    sizes = {{"hidden": (30, 10)}} if hasattr(config.model, "hidden") else {{"features": (4, 6, 30)}}
    return replace(config, model=config.model.clone(**sizes))


def sweep():
    return {{name: row for name, row in stages_off(get_config()).items() if name in ("pruning_alone", "no_pruning")}}
"""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_two_steps(command, path, tmp_path, capsys, small_images):
    """With fewer units: coding the whole network's hardly pruned weights takes a minute."""
    config = tmp_path / "small.py"
    config.write_text(SMALL.format(path=str(path)))
    assert command("--config", config, "--run-dir", tmp_path / "run", "--max-steps", 2) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["name"] == load_config(path).name
    assert summary["parameters"] > 1000
    assert 0 <= summary["error"] <= 1


def test_a_sweep_keeps_what_is_finished_and_ends_in_one_report(command, tmp_path, capsys, small_images):
    config, folder = tmp_path / "small.py", tmp_path / "run"
    config.write_text(SMALL.format(path=str(CONFIGS[0])))
    few = ("--config", config, "--run-dir", folder, "--max-steps", 2, "--sweep")
    assert command(*few, "--only", "no_pruning") == 0, capsys.readouterr().err
    first = (folder / "no_pruning" / "seed0" / "model.lepton").stat().st_mtime_ns
    assert command(*few, "--resume") == 0, capsys.readouterr().err
    assert (folder / "no_pruning" / "seed0" / "model.lepton").stat().st_mtime_ns == first
    report = (folder / "report" / "report.md").read_text()
    assert report.startswith("# deep_compression_digits: no_pruning, pruning_alone\n")
    assert [line.split(" | ")[0] for line in report.splitlines()[4:8]] == ["| no_pruning"] * 2 + ["| pruning_alone"] * 2
    assert report.count("deep_compression_digits_") == 0  # the rows have names of their own
    assert (folder / "report" / "bytes.png").stat().st_size > 5000
    assert command(*few, "--only", "nothing") == 1
    assert "there is no row nothing; there are no_pruning, pruning_alone" in capsys.readouterr().err


def test_rows_of_a_sweep_differ_in_what_they_say():
    whole = load_config(CONFIGS[0])
    rows = load_sweep(CONFIGS[0])
    assert rows["whole"].phases == whole.phases
    kinds = {name: [type(method).__name__ for phase in row.phases for method in phase.transforms] for name, row in rows.items()}
    assert kinds["whole"] == ["Prune", "TrainedCodebook", "FakeQuant"]
    assert kinds["no_pruning"] == ["TrainedCodebook", "FakeQuant"]
    assert kinds["no_codebook"] == ["Prune", "FakeQuant"]
    assert kinds["no_bias_bits"] == ["Prune", "TrainedCodebook"]
    assert kinds["pruning_alone"] == ["Prune"]
    assert all(phase.l2 == 0 for phase in rows["no_l2"].phases)
    assert rows["no_augmentation"].warp is None
    epochs = {name: [phase.epochs for phase in row.phases] for name, row in rows.items()}
    assert all(some == epochs["whole"] for some in epochs.values())
    kept = {name: 1 - row.phases[1].transforms[0].sparsity for name, row in rows.items() if name.startswith("weights")}
    assert {name: kept[name] / (1 - whole.phases[1].transforms[0].sparsity) for name in kept} == pytest.approx(
        {"weights_x0.5": 0.5, "weights_x2": 2.0, "weights_x4": 4.0}
    )
    assert len({row.name for row in rows.values()}) == len(rows)


def test_learned_steps_are_a_stage_like_codebooks():
    rows = load_sweep(cli.ROOT / "configs" / "deep_compression_mnist_lenet300.py")
    kinds = {name: [type(method).__name__ for phase in row.phases for method in phase.transforms] for name, row in rows.items()}
    assert kinds["whole"] == ["Prune", "LearnedStepSize", "FakeQuant"]
    assert kinds["no_learned_steps"] == ["Prune", "FakeQuant"]
    assert kinds["pruning_alone"] == ["Prune"]
    assert "no_codebook" not in rows
    with pytest.raises(ValueError, match="bits"):
        LearnedStepSize(bits=1)


def start(config: Path, run_dir: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.deep_compression", "--config", str(config), "--run-dir", str(run_dir)]
    return subprocess.Popen([*command, *more], cwd=cli.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_and_resume_end_in_the_same_file(command, tiny, tmp_path):
    assert command("--config", tiny, "--run-dir", tmp_path / "whole") == 0
    process = start(tiny, tmp_path / "cut")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while not (metrics.exists() and '"pruned"' in metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said
    assert not (tmp_path / "cut" / "model.lepton").exists()
    assert command("--config", tiny, "--run-dir", tmp_path / "cut", "--resume") == 0
    for name in ("model.lepton", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_folder_is_kept_from_others(command, tiny, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert command("--config", tiny, "--run-dir", run_dir, "--max-steps", 1) == 0
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert command("--config", tiny, "--run-dir", run_dir, "--max-steps", 1, "--seed", 1) == 1
    assert "belongs to another config (it differs in: seed)" in one_line(capsys)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before

    (run_dir / "summary.json").unlink()
    assert command("--config", tiny, "--run-dir", run_dir, "--max-steps", 1) == 1
    assert "unfinished run: add --resume" in one_line(capsys)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("mine")
    assert command("--config", tiny, "--run-dir", foreign) == 1
    assert "no run's folder" in one_line(capsys)
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--phases.1.transforms.0.sparsity", "1.9"], "sparsity must be in [0, 1)"),
        (["--batch-size", "100000"], "batch_size"),
        (["--phases.1.transforms.0.select", "*/kernal"], "matches no floating leaf"),
    ],
)
def test_a_wrong_value_ends_in_one_line(command, tiny, tmp_path, capsys, arguments, says):
    assert command("--config", tiny, "--run-dir", tmp_path / "run", "--max-steps", 1, *arguments) == 1
    assert says in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config():\n    return {'name': 'mine'}\n", "it returned dict"),
        ("from experiments.common.methods import Prune\ndef get_config():\n    return Prune(sparsty=0.9)\n", "sparsty"),
        ("from experiments.common.methods import Prun\n", "Prun"),
    ],
)
def test_a_wrong_config_ends_in_one_line(command, tmp_path, capsys, text, says):
    (tmp_path / "mine.py").write_text(text)
    assert command("--config", tmp_path / "mine.py", "--run-dir", tmp_path / "run") == 1
    assert says in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_option_is_named(command, tiny, capsys):
    assert command("--config", tiny, "--sead", 1) == 1
    said = one_line(capsys)
    assert "--sead" in said
    assert "Perhaps you meant: --seed" in said


def test_help_has_examples(command, capsys):
    assert command("--help") == 0
    said = capsys.readouterr().out
    assert "python -m experiments.deep_compression --resume" in said
    assert "--phases.1.transforms.0.sparsity" in said


def test_a_full_disk_ends_in_one_line(command, tiny, tmp_path, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert command("--config", tiny, "--run-dir", tmp_path / "run", "--max-steps", 1) == 1
    assert "No space left on device" in one_line(capsys)
    assert not (tmp_path / "run" / "model.lepton").exists()
