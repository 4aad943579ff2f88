"""Figures of objectives by hand, the applications' configs with tiny data, and the rows distilled and tuned."""

import json
from functools import partial

import numpy as np
import pytest

from experiments import applications
from experiments.common import cli, sources
from experiments.common.config import load_config
from experiments.common.objectives import ImageAndText
from experiments.common.objectives.anomalies import mean_auroc
from experiments.common.objectives.products import hit_rate
from experiments.studies.applications import Applications
from lepton_jax.data import Dataset, Split

CONFIGS = cli.ROOT / "configs"
RNG = np.random.default_rng(5)


def test_areas_by_counting_pairs():
    scores, labels = RNG.integers(0, 6, 60).astype(float), RNG.integers(0, 2, 60)
    series = np.repeat([0, 1, 2], 20)
    labels[series == 2] = 0
    areas = []
    for number in (0, 1):
        good, bad = (scores[(series == number) & (labels == one)] for one in (0, 1))
        areas.append(np.mean((bad[:, None] > good) + 0.5 * (bad[:, None] == good)))
    np.testing.assert_allclose(mean_auroc(scores, labels, series), np.mean(areas))


def test_hits_by_sorting():
    logits, labels = RNG.normal(size=(50, 30)), RNG.integers(0, 30, 50)
    tokens = RNG.integers(0, 31, (50, 4))
    tokens[tokens == labels[:, None] + 1] = 0
    hits = 0
    for row, label, seen in zip(logits, labels, tokens):
        left = [item for item in np.argsort(-row) if item + 1 not in seen]
        hits += label in left[:10]
    assert hit_rate(logits, tokens, labels) == hits / 50


def test_a_text_is_found_by_its_image(monkeypatch):
    vectors = np.eye(4, dtype=np.float32)
    outputs = np.concatenate([np.zeros((4, 3), np.float32), vectors, vectors[[0, 1, 3, 2]]], axis=1)
    monkeypatch.setattr("experiments.common.objectives.image_and_text.outputs_of", lambda *_: outputs)
    split = Split(images=np.zeros((4, 1, 1, 1), np.float32), labels=np.zeros(4, np.int32))
    assert ImageAndText(classes=3).more(None, None, split) == {"recall_at_1": 0.5}


def noise(classes, shape, tokens=0, below=1):
    """A set of so many examples of noise, with some tokens behind."""
    images = RNG.random((260, *shape), np.float32)
    if tokens:
        images = np.concatenate([images, RNG.integers(1, below, (260, tokens, 1, 1)).astype(np.float32)], axis=1)
    split = Split(images=images, labels=(np.arange(260) % classes).astype(np.int32))
    return Dataset(name="noise", num_classes=classes, train=split, validation=split, test=split)


NAMES = (
    *("financial_news", "image_and_sound", "image_and_text", "intents", "medical_images", "monitoring"),
    "recommendation",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_whole(name):
    made = load_config(CONFIGS / f"applications_{name}.py", Applications)
    assert made.name == f"applications_{name}"
    assert [row.name for row in made.rows] == ["dense", "pruned", "int8", "small", "distilled", "tuned"]
    assert "aim" in made.known
    [task] = made.tasks
    assert task.objective.metric in {"accuracy", "auroc", "hit_rate_at_10"}


@pytest.mark.parametrize(
    ("name", "source", "make", "metric"),
    [
        ("intents", sources.Banking77, lambda: noise(77, (0, 1, 1), 12, 99), "accuracy"),
        ("recommendation", sources.OnlineRetail, lambda: noise(3457, (0, 1, 1), 40, 3457), "hit_rate_at_10"),
    ],
)
def test_configs_two_steps(run_script, name, source, make, metric, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(source, "load", lambda self: make())  # tiny
    monkeypatch.setattr("experiments.studies.applications.on_engine", lambda *args, **options: {})
    trial = ("--max-steps", 2, "--latency-rounds", 1, "--no-files", "--only", "int8", "--run-dir", tmp_path / "run")
    launch = partial(run_script, applications)
    assert launch("--config", CONFIGS / f"applications_{name}.py", *trial) == 0, capsys.readouterr().err
    [result] = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert len(result[metric]) == 1
    np.testing.assert_allclose(result[metric][0], 1 - result["error"][0])
    assert "aim for" in (tmp_path / "run" / "report.md").read_text()


def test_without_its_data_a_config_says_what_is_missing(run_script, tmp_path, capsys):
    for name, option in (("intents", "--data.folder"),):
        config = ("--config", CONFIGS / f"applications_{name}.py", "--run-dir", tmp_path / name)
        assert run_script(applications, *config, option, tmp_path / "nowhere") == 1
        said = capsys.readouterr().err
        assert "nowhere" in said
        assert "Get the" in said
