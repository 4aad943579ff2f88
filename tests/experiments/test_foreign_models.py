"""The study of others' files on a package made here, and on the real files where their packages are installed."""

import json
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from configs.foreign_models import ROWS
from experiments import foreign_models
from experiments.studies.foreign_models import Draw, aims, differs
from lepton_jax import deploy
from lepton_jax.interchange import from_onnx

CONFIG = """
from experiments.studies.foreign_models import Draw, ForeignModels, Row

def get_config():
    rows = (
        Row(name="here", package="made-here", module="made_here", file="net.onnx"),
        Row(name="absent", package="not-there", module="not_there", file="net.onnx"),
    )
    return ForeignModels(name="foreign", rows=rows, steps=40, calibration=4, engine_rounds=3)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a perceptron of 16, 32 and 8 units."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "made_here"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    weights = {"a": rng.normal(size=(16, 32)), "b": rng.normal(size=32), "c": rng.normal(size=(32, 8)) / 5}
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 16), ("y", 8))]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "net.onnx")
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_file_of_another(package, run_script, capsys):
    launch = partial(run_script, foreign_models, "--config", package / "config.py", "--run-dir", package / "run")
    assert launch("--seeds", 2) == 0, capsys.readouterr().err
    results = {result["row"]: result for result in json.loads((package / "run" / "summary.json").read_text())["results"]}
    assert list(results) == ["imported", "int8", "w8a8", "channels"]
    assert max(results["imported"]["parity"]) < 1e-6
    assert (results["imported"]["operators"], results["imported"]["kinds"]) == (3, 3)
    assert results["imported"]["parameters"] == 16 * 32 + 32 + 32 * 8
    assert results["channels"]["parameters"] <= 0.7 * results["imported"]["parameters"]
    # By hand: rounding to 127 steps of a column's largest weight, on the first seed's inputs.
    tensors = {one.name: numpy_helper.to_array(one) for one in onnx.load(package / "made_here" / "net.onnx").graph.initializer}
    x = np.random.default_rng((1, 0)).normal(size=from_onnx(package / "made_here" / "net.onnx").example[0].shape)

    def outputs(a, c):
        return np.maximum(x.astype(np.float32) @ a + tensors["b"], 0) @ c

    def rounded(w):
        scale = np.abs(w).max(0) / 127.5
        return np.clip(np.rint(w / scale), -128, 127) * scale

    wanted = outputs(tensors["a"], tensors["c"])
    by_hand = differs(outputs(rounded(tensors["a"]), rounded(tensors["c"])), wanted)
    np.testing.assert_allclose(results["int8"]["change"][0], by_hand, rtol=0.05)
    assert results["int8"]["ratio"] > 2.5  # the scales of so few rows take their part
    assert max(results["w8a8"]["change"]) < 0.05
    assert all(len(results[name]["change"]) == 2 for name in ("int8", "w8a8", "channels"))
    report = (package / "run" / "report.md").read_text()
    assert "Not measured: absent. Get them by pip install --no-deps not-there" in report
    assert "difference from ONNX Runtime of 1e-05 at most: 1 of 1." in report


def test_no_file_at_all_says_how_to_get_them(package, run_script, capsys):
    asked = ("--config", package / "config.py", "--only", "absent", "--run-dir", package / "run")
    assert run_script(foreign_models, *asked) != 0
    assert "pip install --no-deps not-there" in capsys.readouterr().err


def test_inputs_are_as_the_config_says():
    rng, like = np.random.default_rng(0), np.zeros((50, 4), np.float32)
    whole = Draw(kind="whole", size=12)(rng, like.astype(np.int32))
    assert whole.dtype == np.int32
    assert set(np.unique(whole)) == set(range(12))
    uniform = Draw(kind="uniform", size=2.0)(rng, like)
    assert uniform.dtype == np.float32
    assert 0 <= uniform.min() < uniform.max() < 2
    assert Draw(kind="as_is", size=16000)(rng, np.int32(0)) == 16000


def test_aims_name_what_misses():
    rows = dict.fromkeys(("p", "q"), ROWS[0])
    results = [
        {"row": "imported", "settings": {"file": "p"}, "parity": [1e-6, 2e-5]},
        {"row": "int8", "settings": {"file": "q"}, "change": [0.01, 0.015], "ratio": 3.5},
    ]
    assert aims(results, rows) == [
        "imported: difference from ONNX Runtime of 1e-05 at most: 0 of 1; not p.",
        "int8: output change of 0.02 at most: 1 of 1.",
        "int8: 4 times smaller: 0 of 1; not q (3.50).",
    ]


THERE = [row for row in ROWS if row.path is not None]


@pytest.mark.parametrize("row", THERE, ids=[row.name for row in THERE])
def test_the_real_file_where_its_package_is(row):
    model, original = from_onnx(row.path), deploy.runner(row.path)
    for seed in range(3):
        x = row.draw((1, seed), model.example)
        # The smallest probabilities are of no weight: where all are below it, the difference is.
        wanted, got = original(*x), model(*x)
        small = all(np.abs(one).max() < 1e-3 for one in wanted)
        assert differs(got, wanted) < row.parity or (small and max(np.abs(a - b).max() for a, b in zip([got], wanted)) < 1e-6)
