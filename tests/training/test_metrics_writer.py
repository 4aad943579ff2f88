"""Metrics as JSON lines: rows, values that are not finite, rewinding."""

import json

import jax.numpy as jnp
import numpy as np

from lepton_jax.training import MetricsWriter, read_metrics


def test_rows_and_tags(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    writer = MetricsWriter(path, phase="dense")
    writer.write(1, {"loss": np.float32(0.5), "count": jnp.int32(3)})
    writer.write(2, {"loss": float("nan"), "count": float("-inf")})
    assert read_metrics(path) == [
        {"phase": "dense", "step": 1, "loss": 0.5, "count": 3},
        {"phase": "dense", "step": 2, "loss": "nan", "count": "-inf"},
    ]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=None)
        assert "NaN" not in line


def test_rewind_drops_later_rows_of_its_phase_and_all_that_follow(tmp_path):
    path = tmp_path / "metrics.jsonl"
    dense, pruned = MetricsWriter(path, phase="dense"), MetricsWriter(path, phase="prune")
    for step in (10, 20):
        dense.write(step, {"loss": 1.0})
    for step in (5, 10, 15):
        pruned.write(step, {"loss": 2.0})
    with path.open("a") as file:
        file.write('{"phase": "prune", "st')  # killed while it wrote
    pruned.rewind(10)
    assert [(row["phase"], row["step"]) for row in read_metrics(path)] == [
        ("dense", 10),
        ("dense", 20),
        ("prune", 5),
        ("prune", 10),
    ]
    dense.rewind(10)
    assert [(row["phase"], row["step"]) for row in read_metrics(path)] == [("dense", 10)]
    dense.rewind(10)
    assert len(read_metrics(path)) == 1


def test_rewind_without_a_file_does_nothing(tmp_path):
    MetricsWriter(tmp_path / "none.jsonl").rewind(3)
    assert not (tmp_path / "none.jsonl").exists()
