"""The comparison of training for size, two steps of its config, and how it is read at equal bytes."""

import json

import pytest

from experiments import entropy_training
from experiments.common import cli
from experiments.common.config import Tfds, load_config, to_json
from experiments.studies.entropy_training import EntropyTraining, at_equal_bytes
from lepton_jax.models import LeNet300

CONFIGS = sorted((cli.ROOT / "configs").glob("entropy_training_*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps_of_every_config(path, small_images, run_script, tmp_path):
    trial = ("--max-steps", "2", "--batch-size", "16", "--run-dir", str(tmp_path / "run"))
    rows = ("--rates", "1e-6", "1e-3", "--fewer-bits", "3", "--sparsities", "0.9")
    assert run_script(entropy_training, "--config", path, *trial, *rows, "--no-files") == 0
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert [result["row"] for result in results] == ["rate 1e-06", "rate 0.001", "4 bits", "3 bits", "90 % zero"]
    # The rate reaches the loss: every bit more than the answers are worth sends weights to zero.
    assert results[1]["reached"][0] > results[0]["reached"][0] > results[2]["reached"][0]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "rows").iterdir()}
    assert len(kept) == len(results) == 5
    assert run_script(entropy_training, "--config", path, *trial, *rows, "--no-files", "--resume") == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "| on | rate 0.001 |" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_config_is_data(path):
    assert json.loads(json.dumps(to_json(load_config(path, EntropyTraining))))["name"] == path.stem


def test_equal_bytes_are_read_between_rows_only():
    off = [
        {"settings": {"kind": "off, pruned"}, "row": "", "error": [e], "file_bytes": [b]}
        for e, b in ((0.05, 100), (0.03, 10_000))
    ]
    on = [{"settings": {"kind": "on"}, "row": str(b), "error": [0.02], "file_bytes": [b]} for b in (50, 100, 1000, 20_000)]
    assert at_equal_bytes([*off, *on]) == {"100": pytest.approx(0.05), "1000": pytest.approx(0.04)}


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="rates"):
        EntropyTraining(name="a", data=Tfds(name="mnist"), model=LeNet300(), epochs=1, rates=(2.0,))
