"""The study of tuned recipes: budgets are kept row by row, what fits nothing is said, trained rows begin at the recipe."""

import json

import numpy as np

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
