"""The study of low rank: a trial of its transformer, and its settings."""

import json

import jax
import numpy as np
import pytest

from experiments import low_rank
from experiments.common import char_lm, cli, unfinished
from experiments.common.char_lm import CharLM, load_text, perplexity, train
from experiments.common.config import load_config, to_json
from experiments.common.low_rank_tasks import Characters
from experiments.studies.low_rank import LowRank
from lepton_jax.training import Checkpoints

CONFIG = cli.ROOT / "configs" / "low_rank.py"
TINY = """
from experiments.common.char_lm import CharLM
from experiments.common.low_rank_tasks import Characters
from experiments.studies.low_rank import LowRank


def get_config():
    model = CharLM(depth=1, width=16, heads=2, mlp=32, length=8, batch_size=4, steps=60, learning_rate=1e-2)
    return LowRank(name="tiny", tasks={"char_lm": Characters(model=model, calibration=32, tuning_steps=3)}, fractions=(0.5,))
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a short text, and a config file."""
    (tmp_path / "data" / "tinyshakespeare").mkdir(parents=True)
    (tmp_path / "data" / "tinyshakespeare" / "input.txt").write_text("to be or not to be, that is the question. " * 60)
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def test_a_trial_of_the_transformer(folder, run_script):
    arguments = ("--config", folder / "tiny.py", "--data", folder / "data", "--run-dir", folder / "run", "--max-steps", 2)
    assert run_script(low_rank, *arguments) == 0
    results = json.loads((folder / "run" / "summary.json").read_text())["results"]
    dense, curve, rules = (
        {r["row"]: r for r in results if r["settings"]["part"] == part} for part in ("dense", "methods", "rules")
    )
    assert dense["dense"]["macs_share"] == [1]
    assert set(curve) == {"plain", "activation-aware", "Fisher-weighted"}
    for row in curve.values():
        assert row["macs_share"][0] < 1
        assert row["parameters"][0] < dense["dense"]["parameters"][0]
        assert row["ranks"][0]
    assert set(rules) == {"EVBMF", "energy", "budget", "uniform"}
    assert all(row["macs_share"][0] <= curve["plain"]["macs_share"][0] + 1e-9 for row in rules.values())  # the same budget
    text = (folder / "run" / "report.md").read_text()
    assert "| activation-aware | 50 % |" in text
    assert "| energy |" in text
    assert (folder / "run" / "low_rank.png").exists()


def test_a_trained_model_is_read_back(folder):
    config = CharLM(depth=1, width=8, heads=1, mlp=8, length=8, batch_size=2, steps=2)
    text = load_text(folder / "data" / "tinyshakespeare" / "input.txt")
    first = train(0, config, text, folder / "kept")
    [file] = (folder / "kept").iterdir()
    written = file.stat().st_mtime_ns
    again = train(0, config, text, folder / "kept")
    assert file.stat().st_mtime_ns == written
    apply = config.model(len(text.characters)).apply
    both = [perplexity(apply, variables, text.test, config.length) for variables in (first, again)]
    assert both[0] == both[1] < 1.5 * len(text.characters)
    train(1, config, text, folder / "kept")
    assert len(list((folder / "kept").iterdir())) == 2


def test_an_interrupted_transformer_goes_on_from_its_checkpoint(folder, monkeypatch):
    """To the same weights, without the steps that it has had; its checkpoint goes when the file is there, and no other."""
    monkeypatch.setattr(unfinished, "SECONDS", 0.0)
    config = CharLM(depth=1, width=8, heads=1, mlp=8, length=8, batch_size=2, steps=4)
    text = load_text(folder / "data" / "tinyshakespeare" / "input.txt")
    whole = train(0, config, text, folder / "whole")
    all_batches, given = char_lm.batches, []

    def until_interrupted(*args):
        for number, batch in enumerate(all_batches(*args)):
            if number == 3 and not (folder / "again").exists():
                raise KeyboardInterrupt
            given.append(number)
            yield batch

    monkeypatch.setattr(char_lm, "batches", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(0, config, text, folder / "halted")
    (folder / "again").mkdir()
    others = folder / "halted" / unfinished.FOLDER / "another"
    others.mkdir()
    steps = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, done, state, extra: steps.append(done))
    resumed = train(0, config, text, folder / "halted")
    assert steps == [4]
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert sorted(path.suffix for path in (folder / "halted").iterdir()) == ["", ".npz"]
    assert list(others.parent.iterdir()) == [others]
    others.rmdir()
    next((folder / "halted").glob("*.npz")).unlink()
    train(0, config, text, folder / "halted")
    assert [path.suffix for path in (folder / "halted").iterdir()] == [".npz"]


def test_the_config_is_data():
    study = load_config(CONFIG, LowRank)
    assert json.loads(json.dumps(to_json(study)))["name"] == CONFIG.stem
    assert isinstance(study.tasks["char_lm"], Characters)
    with pytest.raises(ValueError, match=r"only: there is no task 'x'(.|\n)*fractions, rules_fraction: must be in"):
        LowRank(name="s", tasks=study.tasks, only=("x",), fractions=(1.5,))
