"""The study of tuned recipes: budgets are kept row by row, what fits nothing is said, trained rows begin at the recipe."""

import json

import numpy as np

from experiments import study as any_study
from experiments import tuning

CONFIG = """
from experiments.common.config import Adam, Digits
from experiments.studies.tuning import Tuning, rows
from lepton_jax.models import LeNet300


def get_config():
    return Tuning(
        name="tiny_tuning",
        data=Digits(),
        model=LeNet300(hidden=(24,)),
        dense_epochs=3,
        epochs=1,
        dense_optimizer=Adam(learning_rate=1e-2),
        bits=(2, 4),
        sparsity=(0.5,),
        rank=(),
        trained_sparsity=(0.7,),
        calibration=100,
        evaluations=3,
        rows=rows((7,), trained=(7,)),
    )
"""


def test_every_row_of_a_tiny_study(run_script, tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(CONFIG)
    folder = tmp_path / "run"
    assert run_script(tuning, "--config", tmp_path / "tiny.py", "--seeds", 2, "--run-dir", folder) == 0, capsys.readouterr().err
    results = {one["row"]: one for one in json.loads((folder / "summary.json").read_text())["results"]}
    assert list(results) == ["dense", "uniform", "tuned", "bits", "zeros", "rank", "trained"]
    floats = (64 * 24 + 24 + 24 * 10 + 10) * 4
    for name in ("uniform", "tuned", "bits", "trained"):
        np.testing.assert_allclose(results[name]["limit"], floats / 7)
        assert len(results[name]["error"]) == 2
        assert max(results[name]["tensor_bytes"]) <= floats / 7
    assert results["dense"]["kl"] == [0, 0]
    assert np.all(np.array(results["tuned"]["kl"]) <= results["uniform"]["kl"])  # it may choose what is uniform
    report = (folder / "report.md").read_text()
    assert "- No recipe is as small: zeros, 7x smaller; rank, 7x smaller." in report
    assert "- 7x smaller: KL " in report
    assert (folder / "front.png").stat().st_size > 0


CHARACTERS = """
from pathlib import Path

from experiments.common.char_lm import CharLM
from experiments.studies.tuning import rows
from experiments.studies.tuning_characters import CharacterTuning


def get_config():
    return CharacterTuning(
        name="tiny_characters",
        text=Path("text"),
        model=CharLM(depth=1, width=16, heads=2, mlp=16, length=8, steps=3),
        bits=(2, 4),
        sparsity=(),
        rank=(),
        calibration=8,
        evaluations=2,
        rows=rows((2.5,)),
    )
"""


def test_a_transformer_on_characters(run_script, tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(CHARACTERS)
    (tmp_path / "text").write_text("to be or not to be, that is the question: " * 40)
    args = ("--config", tmp_path / "tiny.py", "--seeds", 1, "--run-dir", tmp_path / "run", "--text", tmp_path / "text")
    assert run_script(any_study, *args) == 0, capsys.readouterr().err
    results = {one["row"]: one for one in json.loads((tmp_path / "run" / "summary.json").read_text())["results"]}
    assert list(results) == ["dense", "uniform", "tuned", "bits", "zeros", "rank"]
    for name in ("uniform", "tuned", "bits"):
        assert max(results[name]["tensor_bytes"]) <= results[name]["limit"][0]
        assert len(results[name]["validation_error"]) == 1
    assert results["zeros"]["error"] == []
    assert results["tuned"]["file_bytes"] > 0
