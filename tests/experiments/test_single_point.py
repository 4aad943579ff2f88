"""The study of units: its config runs on little data, its verdicts go either way, the wire's bytes are counted by hand."""

import dataclasses
import importlib
import json
import re

import numpy as np
import pytest

from experiments import single_point
from experiments.common import cli
from experiments.common.config import load_config
from experiments.studies.single_point import Row, SinglePoint, at_edge, layers, report
from lepton_jax.models import CNN
from lepton_jax.stages import edge

IMPORT = "\nfrom lepton_jax.models import CNN\n"
CONFIG = cli.ROOT / "configs" / "single_point.py"
FEW = ("--max-steps", 2, "--rounds", 3, "--tries", 1, "--units", 1, 2, "--bits", 3, "--known", 20, "--images", 2)
FEW += ("--mbits", 50.0, "--requests", 1, "--request", 2, "--slower", 1.0, "--rtt-ms", 0.0, "--tasks", "fashion_mnist")


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A net of two layers of each kind, and timings of a moment."""
    path = tmp_path / "short.py"
    path.write_text(CONFIG.read_text().replace("epochs=1", "epochs=1, model=CNN(features=(4, 4))") + IMPORT)
    monkeypatch.setitem(at_edge.CUTS, "fashion_mnist", 2)
    monkeypatch.setattr(importlib.import_module("lepton_jax.deploy.gate"), "_SAMPLE", 1e-4)
    return path


def test_two_steps(run_script, tmp_path, capsys, small_images, short):
    folder = tmp_path / "run"
    some = ("--only", "layers", "units", "edge")
    assert run_script(single_point, "--config", short, *FEW, *some, "--run-dir", folder) == 0, capsys.readouterr().err
    results = json.loads((folder / "summary.json").read_text())["results"]
    by = {(r["settings"]["part"], r["row"], *list(r["settings"].values())[1:]): r for r in results}
    assert len(by) == len(results)
    assert all(isinstance(value, list) and len(value) == 1 for r in results for n, value in r.items() if n.endswith("_ratio"))
    pool = by["layers", "pool 1", "forward", "XLA"]
    assert pool["before_ms"][0] > 0
    assert pool["after_low"][0] <= pool["after_ratio"][0] <= pool["after_high"][0]
    assert "halfway_ratio" not in by["layers", "pool 1", "derivatives", "XLA"]
    whole, two = by["units", "whole", "XLA"], by["units", "2 units", "XLA"]
    assert whole["before_time"] == whole["before_memory"] == [1.0]
    assert two["before_memory"][0] == two["before_bytes"][0] / whole["before_bytes"][0]
    float_, cut = by["edge", "float", "fashion_mnist", 0, 32], by["edge", "cut 2", "fashion_mnist", 2, 3]
    assert float_["image_bytes"] == [784]
    assert cut["raw_bytes"] == [4 * 7 * 7 * 4]
    assert 0 < cut["wire_bytes"][0] < cut["raw_bytes"][0] / 4
    assert 0.9 < cut["share"][0] < 1
    text = (folder / "report.md").read_text()
    for title in ("Layers before", "The net whole", "Accuracy against bytes"):
        assert f"## {title}" in text
    assert (folder / "edge.png").stat().st_size > 5000


def test_latency_is_measured_and_branches_run(run_script, tmp_path, capsys, small_images, monkeypatch):
    monkeypatch.setitem(at_edge.CUTS, "fashion_mnist", 1)
    folder = tmp_path / "run"
    some = ("--only", "latency", "branches")
    assert run_script(single_point, "--config", CONFIG, *FEW, *some, "--run-dir", folder) == 0, capsys.readouterr().err
    results = json.loads((folder / "summary.json").read_text())["results"]
    ways = [r for r in results if r["settings"]["part"] == "latency"]
    assert [r["row"] for r in ways] == ["nothing: all at the edge", "the input, raw", "before stage 1"]
    assert all(r["predicted_ms"][0] > 0 < r["measured_ms"][0] for r in ways)
    assert sum(r["chosen"][0] for r in ways) == 1
    assert min(ways, key=lambda r: r["predicted_ms"][0])["chosen"] == [1.0]
    assert re.search(r"Predicted within 20 % of measured: \d of 3", (folder / "report.md").read_text())
    assert len([r for r in results if r["settings"]["part"] == "branches"]) == 3


def test_without_data_it_says_where_they_come_from(run_script, tmp_path, capsys):
    some = ("--only", "edge", "--tasks", "cifar10", "--cifar", tmp_path / "nowhere", "--run-dir", tmp_path / "run")
    assert run_script(single_point, "--config", CONFIG, *some) == 1
    assert "cifar10" in capsys.readouterr().err


def test_pieces_mean_the_same_before_and_after():
    net = CNN(features=(4, 8))
    for name, piece in layers.layers(net, 0, 2).items():
        call, variables, inputs = piece
        wanted = np.asarray(call(variables, *inputs))
        call, variables, inputs = layers.optimised(piece)
        np.testing.assert_allclose(call(variables, *inputs), wanted, rtol=2e-5, atol=2e-5, err_msg=name)
    for engine in layers.ENGINES:
        outs = []
        for pieces in (layers.units(net, 0, 2, 1), layers.units(net, 0, 2, 3)):
            for run, _ in layers.ways(engine, pieces, eval_mode=True).values():
                out = run()
                outs.append(np.asarray(out[0] if isinstance(out, list) else out))
        for one in outs[1:]:
            np.testing.assert_allclose(one, outs[0], rtol=1e-4, atol=1e-5)


def test_frames_are_counted():
    coder = edge.fit(np.random.default_rng(0).normal(size=(9, 4, 4, 3)).astype(np.float32), edge.Wire(bits=4))
    data = coder.encode(np.zeros((2, 4, 4, 3), np.float32))
    # Head 26, number of arrays 2, dtype's name 1 + 5, rank 1, one dimension 4, checksum 4.
    assert at_edge.framed([data]) == len(data) + 26 + 2 + 6 + 1 + 4 + 4
    assert at_edge.framed([data, data]) == at_edge.framed([data]) + len(data) + 11


def test_verdicts_go_either_way():
    def row(name, ratios, again=(1.0, 1.0), **settings):
        return {
            "row": name,
            "settings": {"what": "forward", "engine": "XLA", **settings},
            "after_ratio": ratios,
            "again": again,
        }

    said = report.claims([row("pool 1", [1.5, 1.4]), row("pool 2", [1.1, 1.2], (1.2, 1.0)), row("dense", [1.5, 1.2])])
    assert said[0] == "pool, forward, XLA: +30 % on average; claimed +30 %: reached (A/A off in 1 of 2 rows)."
    assert said[1] == "dense, forward, XLA: +35 % on average; claimed +40 %: missed."

    def way(name, mbit, predicted, measured, chosen):
        return {
            "row": name,
            "settings": {"task": "t", "mbit": mbit},
            "predicted_ms": predicted,
            "measured_ms": measured,
            "chosen": chosen,
        }

    rows = [way("a", 1, [10.0], [10.0], [1.0]), way("b", 1, [11.0], [9.0], [0.0])]
    first, second = report.latency_notes(rows)
    assert "1 of 2 (missed)" in first
    assert "0 of 1 (missed); farthest 1.11" in second
    wire = {"error": [0.1], "raw_bytes": [4096.0], "wire_bytes": [250.0], "of_entropy": [1.05]}
    whole = {"error": [0.1], "row": "float"}
    assert report._holds(wire, whole) == "yes"
    assert report._holds({**wire, "error": [0.11]}, whole) == "no"
    assert report._holds({**wire, "of_entropy": [1.2]}, whole) == "no"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"units": ()}, "units"),
        ({"bits": (1,)}, "bits"),
        ({"rounds": 2}, "rounds"),
        ({"slower": 0.5}, "slower"),
        ({"rows": (Row(name="a", part="edge"),) * 2}, "rows"),
    ],
)
def test_settings_out_of_range_are_refused(change, says):

    with pytest.raises(ValueError, match=says):
        dataclasses.replace(load_config(CONFIG, SinglePoint), **change)
