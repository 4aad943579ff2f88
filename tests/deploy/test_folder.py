"""Folders with an example in each language: compiled and run where its tool is there, their numbers those of jax."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from lepton_jax import Model, deploy
from lepton_jax.command_line import main
from lepton_jax.models import ResNetCifar

LIBRARY = next(Path(importlib.util.find_spec("onnxruntime").origin).parent.glob("capi/libonnxruntime.*"), None)
NODE_MODULES = os.environ.get("LEPTON_NODE_MODULES", "")
"""A folder in which onnxruntime-node is installed."""


def java():
    """Java of 22 or later, if there is one."""
    places = [shutil.which("java"), *map(str, Path("/usr/lib/jvm").glob("*/bin/java"))]
    for place in filter(None, places):
        said = subprocess.run([place, "-version"], capture_output=True, text=True).stderr
        if int(re.search(r'version "(\d+)', said)[1]) >= 22:
            return place
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of two inputs of two types, deployed from its file on the command line."""
    base = tmp_path_factory.mktemp("folder")

    def apply(v, x, ids):
        return jnp.tanh(x @ v["w"]) + v["e"][ids].sum(1), x.sum()

    variables = {"w": jax.random.normal(jax.random.key(0), (6, 5)), "e": jax.random.normal(jax.random.key(1), (4, 5))}
    Model(apply, variables, (jnp.ones((2, 6)), jnp.ones((2, 3), jnp.int32))).save(base / "small.lepton")
    before = os.getcwd()
    os.chdir(base)
    try:
        assert main(["deploy", "small.lepton", "--to", "onnx"]) == 0
    finally:
        os.chdir(before)
    place = base / "small.deploy"
    x = np.fromfile(place / "input_0.bin", np.float32).reshape(1, 6)
    ids = np.fromfile(place / "input_1.bin", np.int32).reshape(1, 3)
    return place, np.asarray(apply(variables, x, ids)[0])


def numbers(words, folder):
    found = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return np.array([float(word) for word in found.stdout.split()], np.float32)


def check(got, wanted):
    np.testing.assert_allclose(got, wanted.reshape(-1), rtol=1e-5, atol=1e-6)


def test_python(folder):
    check(numbers([sys.executable, "run.py"], folder[0]), folder[1])


@pytest.mark.skipif(shutil.which("g++") is None or LIBRARY is None, reason="needs g++")
def test_cpp(folder):
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", "run.cpp", "-o", "run", "-ldl"], cwd=folder[0], check=True)
    check(numbers(["./run", str(LIBRARY)], folder[0]), folder[1])


@pytest.mark.skipif(java() is None or LIBRARY is None, reason="needs Java 22 or later")
def test_java(folder):
    check(numbers([java(), "--enable-native-access=ALL-UNNAMED", "Run.java", str(LIBRARY)], folder[0]), folder[1])


@pytest.mark.skipif(
    not (Path(NODE_MODULES or "none") / "onnxruntime-node").is_dir(),
    reason="needs LEPTON_NODE_MODULES, a folder in which onnxruntime-node is installed",
)
def test_node(folder):
    (folder[0] / "node_modules").symlink_to(NODE_MODULES)
    check(numbers(["node", "run.mjs"], folder[0]), folder[1])


def test_a_page_with_float_beside_int8(tmp_path):
    net = ResNetCifar(depth=8, features=4)
    x = jax.random.normal(jax.random.key(0), (5, 16, 16, 3))
    Model(net.apply, net.init(jax.random.key(1), x), (x[:1],)).save(tmp_path / "m.lepton")
    np.save(tmp_path / "x.npy", x)
    words = ["deploy", str(tmp_path / "m.lepton"), "--to", "html", "--out", str(tmp_path / "page")]
    assert main([*words, "--calibrate", str(tmp_path / "x.npy")]) == 0
    text = (tmp_path / "page" / "index.html").read_text()
    assert "@" not in re.sub(r"@\w+/", "", text)
    assert json.loads(re.search(r"const files = (.*);", text)[1]) == {"model": "model.onnx", "float": "float.onnx"}
    assert json.loads(re.search(r"const input = (.*);", text)[1])["shape"] == [1, 16, 16, 3]
    page = tmp_path / "page"
    feeds = {"input_0": np.asarray(x)}
    outs = [onnxruntime.InferenceSession(page / f"{name}.onnx").run(None, feeds)[0] for name in ("model", "float")]
    assert 0 < np.abs(outs[0] - outs[1]).max() < 0.3 * np.abs(outs[1]).max()
    sizes = [(page / f"{name}.onnx").stat().st_size for name in ("model", "float")]
    assert sizes[0] < sizes[1] / 1.5


def test_bench_prints_files_against_the_first(tmp_path, capsys):
    model = Model(lambda v, x: jnp.tanh(x @ v) @ v, jax.random.normal(jax.random.key(0), (64, 64)) / 8, (jnp.ones((2, 64)),))
    model.save(tmp_path / "m.lepton")
    deploy.save(model, tmp_path / "m.onnx")
    files = [str(tmp_path / name) for name in ("m.onnx", "m.lepton")]
    assert main(["bench", *files, "--rounds", "3", "--batch", "4", "--json", "--plot", str(tmp_path / "bench.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in found["files"]] == files
    assert found["files"][0]["ratio"] == 1
    assert found["files"][1]["difference"] < 1e-4
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deploy", "none.lepton"], "none.lepton"),
        (["deploy", "bad.lepton", "--to", "tflite"], "invalid choice"),
        (["bench", "bad.pb"], "files must be .lepton, .onnx or .tflite"),
        (["bench", "bad.onnx"], "ONNX Runtime does not take"),
    ],
)
def test_what_is_wrong_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"no file")
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "bad.deploy").exists()
    assert not (tmp_path / "none.deploy").exists()
