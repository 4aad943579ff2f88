"""The command line: what each command prints and returns, and one line for what is wrong."""

import errno
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import Model, account, load, prune_model, quantize_model
from lepton_jax.command_line import main
from lepton_jax.command_line.compare import compare
from lepton_jax.interchange import load_npz, load_safetensors, save_npz, save_safetensors


def apply(variables, x):
    return jnp.tanh(x @ variables["params"]["w"]) + variables["params"]["b"][None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """dense.lepton, small.lepton, x.npy."""
    folder = tmp_path_factory.mktemp("cli")
    w = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(7, 20)).astype(np.float32)
    dense = Model(apply, {"params": {"w": jnp.asarray(w), "b": jnp.ones(10)}}, (x[:2],))
    dense.save(folder / "dense.lepton")
    quantize_model(prune_model(dense, sparsity=0.7), 4).save(folder / "small.lepton", native=True)
    np.save(folder / "x.npy", x)
    return folder


@pytest.fixture
def lepton(folder, monkeypatch, capsys):
    """Run a command in the folder: (exit code, output, error)."""
    monkeypatch.chdir(folder)

    def run(*words):
        code = main(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_inspect_prints_the_account(lepton, folder):
    figures = account(folder / "small.lepton")
    code, out, err = lepton("inspect", "small.lepton")
    assert (code, err) == (0, "")
    assert out.startswith(str(figures))
    assert "recipe: {'applied': ['prune(sparsity=0.7)', 'quantize(4 bits)']}" in out
    assert "bytes in file" in out.splitlines()[0]
    assert [line.split()[:4] for line in out.splitlines()[1:3]] == [
        ["params/b", "float32", "10", "10"],
        ["params/w", "int4", "20x10", "200"],
    ]
    code, out, _ = lepton("inspect", "small.lepton", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["total"] == figures.total == (folder / "small.lepton").stat().st_size == sum(found["categories"].values())
    assert [(t["path"], t["size"], t["nonzeros"]) for t in found["tensors"]] == [("params/b", 10, 10), ("params/w", 200, 60)]
    assert [(t["shape"], t["stored_as"]) for t in found["tensors"]] == [([10], "float32"), ([20, 10], "int4")]
    assert found["about"]["native"] is True
    assert found["file_ratio"] == figures.file_ratio


def test_unpack_and_verify_against_it(lepton, folder):
    for name, read in (("small.safetensors", load_safetensors), ("small.npz", load_npz)):
        code, out, err = lepton("unpack", "small.lepton", name)
        assert (code, err) == (0, "")
        assert out.startswith(f"{name}: 2 tensors")
        jax.tree.map(np.testing.assert_array_equal, read(folder / name), load(folder / "small.lepton").variables)
        code, out, _ = lepton("verify", "small.lepton", "--reference", name)
        assert code == 0
        assert out.splitlines()[-1] == f"all 2 tensors are bit for bit those of {name}"


def test_verify_finds_one_changed_bit_and_knows_tolerance(lepton, folder):
    tree = jax.tree.map(np.array, load(folder / "small.lepton").variables)
    tree["params"]["w"][3, 4] += 0.25
    save_npz(folder / "changed.npz", tree)
    code, out, _ = lepton("verify", "small.lepton", "--reference", "changed.npz")
    assert code == 1
    row = next(line for line in out.splitlines() if line.startswith("params/w"))
    assert row.split() == ["params/w", "20x10", "float32", "800", "800", "1", "of", "200", "0.25"]
    code, out, _ = lepton("verify", "small.lepton", "--reference", "changed.npz", "--tolerance", "0.25", "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True
    save_npz(folder / "less.npz", {"params": {"w": tree["params"]["w"]}})
    code, out, _ = lepton("verify", "small.lepton", "--reference", "less.npz", "--tolerance", "9", "--json")
    assert code == 1
    assert [(one["name"], one["shapes"]) for one in json.loads(out)["different"]] == [("params/b", ["10", "-"])]


def test_verify_of_a_damaged_file_fails_in_one_line(lepton, folder):
    data = bytearray((folder / "small.lepton").read_bytes())
    data[-3] ^= 1
    (folder / "damaged.lepton").write_bytes(data)
    code, out, err = lepton("verify", "damaged.lepton")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("lepton: damaged.lepton")


def test_diff(lepton, folder):
    code, out, _ = lepton("diff", "dense.lepton", "small.lepton")
    assert code == 1
    sizes = [(folder / name).stat().st_size for name in ("dense.lepton", "small.lepton")]
    assert out.splitlines()[-1] == f"1 of 2 tensors differ; files of {sizes[0]} and {sizes[1]} bytes"
    assert "params/b" not in out
    save_safetensors(folder / "same.safetensors", load(folder / "dense.lepton").variables)
    code, out, _ = lepton("diff", "dense.lepton", "same.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["same"] is True


def test_run_answers_as_the_model(lepton, folder):
    x, loaded = np.load(folder / "x.npy"), load(folder / "small.lepton")
    code, out, err = lepton("run", "small.lepton", "--input", "x.npy", "--output", "y.npy")
    assert (code, err) == (0, "")
    assert "7x10" in out
    np.testing.assert_array_equal(np.load(folder / "y.npy"), loaded(x))
    options = ("--batch-size", "3", "--native", "--json")
    code, out, _ = lepton("run", "small.lepton", "--input", "x.npy", "--output", "y.npz", *options)
    assert code == 0
    np.testing.assert_allclose(load_npz(folder / "y.npz"), loaded(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(float(json.loads(out)["outputs"][0]["mean"]), np.mean(loaded(x)), rtol=1e-4)


def test_convert_takes_the_program_of_another_file(lepton, folder):
    x = np.load(folder / "x.npy")
    tree = {"params": {"w": np.full((20, 10), 0.5, np.float32), "b": np.zeros(10, np.float32)}}
    save_safetensors(folder / "new.safetensors", tree)
    assert lepton("convert", "new.safetensors", "new.lepton", "--program", "small.lepton")[0] == 0
    np.testing.assert_allclose(load(folder / "new.lepton")(x), np.tanh(x @ tree["params"]["w"]), rtol=1e-5, atol=1e-6)
    assert lepton("convert", "new.lepton", "new.npz")[0] == 0
    jax.tree.map(np.testing.assert_array_equal, load_npz(folder / "new.npz"), tree)
    save_npz(folder / "other.npz", {"params": {"w": np.zeros((3, 3), np.float32)}})
    code, _, err = lepton("convert", "other.npz", "new.lepton", "--program", "small.lepton")
    assert (code, err.count("\n")) == (2, 1)
    assert "params/w: needs float32[20,10], the file has float32[3,3]" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["inspect", "absent.lepton"], 2, "absent.lepton"),
        (["inspect", "x.npy"], 1, "x.npy: not a .lepton file"),
        (["inspect"], 2, "Missing from lepton inspect: PATH"),
        (["inspec", "x"], 2, "Unrecognized options: inspec"),
        ([], 2, "Expected one of {inspect, verify, unpack, diff, run, convert, deploy, edge, bench, tune, plan-memory}"),
        (["unpack", "small.lepton", "out.pt"], 2, "out.pt: variables are written to .safetensors or .npz"),
        (["unpack", "small.lepton", "nowhere/out.npz"], 2, "nowhere/out.npz"),
        (["verify", "small.lepton", "--reference", "absent.npz"], 2, "absent.npz"),
        (["verify", "small.lepton", "--tolerance", "-1"], 2, "--tolerance must be 0 or more; got -1"),
        (["run", "small.lepton", "--input", "absent.npy"], 2, "absent.npy"),
        (["run", "small.lepton", "--input", "small.lepton"], 2, "is no .npy file of a plain array"),
        (["run", "small.lepton", "--input", "x.npy", "x.npy"], 2, "1: unknown; leave it out"),
        (["run", "small.lepton", "--input", "x.npy", "--batch-size", "-2"], 2, "--batch-size must be 0 or more"),
        (["run", "small.lepton", "--input", "x.npy", "--output", "y.txt"], 2, "--output must be a .npy or .npz file"),
        (["convert", "small.lepton", "new.lepton"], 2, "--program and an output .lepton go together"),
        (["convert", "x.npy", "new.npz"], 2, "variables are read from .lepton, .safetensors, .npz or an orbax folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(lepton, words, code, message):
    found, out, err = lepton(*words)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("lepton: ")
    assert message in err


@pytest.mark.parametrize("name", ["kept.npy", "kept.npz"])
def test_a_full_disk_keeps_the_outputs_of_before(lepton, folder, monkeypatch, name):
    (folder / name).write_bytes(b"of before")
    write = os.write

    def full(descriptor, data):
        if len(data) > 1:
            return write(descriptor, data[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lepton_jax.core.files.os.write", full)
    code, _, err = lepton("run", "small.lepton", "--input", "x.npy", "--output", name)
    assert code == 2
    assert f"cannot write {name}" in err
    assert "No space left on device" in err
    assert (folder / name).read_bytes() == b"of before"


def test_an_onnx_file_is_inspected_and_converted(lepton, folder):
    from lepton_jax import deploy

    deploy.save(load(folder / "dense.lepton"), folder / "dense.onnx")
    code, out, err = lepton("inspect", "dense.onnx", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["parameters"], facts["inputs"]) == (210, {"input_0": "float32[b,20]"})
    assert sorted(tuple(one["shape"]) for one in facts["tensors"]) == [(1, 10), (20, 10)]
    code, out, _ = lepton("inspect", "dense.onnx")
    assert code == 0
    assert "variable" in out.splitlines()[0]
    code, out, err = lepton("convert", "dense.onnx", "again.lepton")
    assert (code, err, out.split(",")[0]) == (0, "", "again.lepton: 2 tensors")
    x = np.load(folder / "x.npy")
    np.testing.assert_allclose(load(folder / "again.lepton")(x), load(folder / "dense.lepton")(x), rtol=1e-5, atol=1e-6)
    assert lepton("convert", "dense.onnx", "again.npz")[0] == 0
    (folder / "bad.onnx").write_bytes(b"no")
    code, _, err = lepton("inspect", "bad.onnx")
    assert (code, err.count("\n")) == (1, 1)


@pytest.mark.parametrize("command", ["inspect", "verify", "unpack", "diff", "run", "convert"])
def test_help_shows_examples_and_exit_codes(lepton, command):
    code, out, _ = lepton(command, "--help")
    assert code == 0
    assert out.count(f"\n  lepton {command} ") >= 2
    code, out, _ = lepton("--help")
    assert code == 0
    assert "Exit codes: 0 all is well; 1 files differ" in out
    assert f"• {command} " in out


def test_differences_are_counted_by_bits_and_measured_by_values():
    nan, inf = np.nan, np.inf
    a = {"w": np.float32([0.0, nan, inf, 1.0, 2.0]), "h": np.float32([1, 2]), "e": np.zeros((0, 2)), "i": np.int64([5])}
    b = {"w": np.float32([-0.0, nan, inf, 1.5, 2.0]), "h": np.float16([1, 2]), "e": np.zeros((0, 2)), "more": np.int8([1])}
    found = {one.name: one for one in compare(a, b)}
    assert (found["w"].changed, found["w"].largest) == (2, 0.5)
    assert (found["h"].changed, found["h"].same, found["h"].within(0)) == (0, False, True)
    assert found["e"].same
    assert (found["i"].shapes, found["i"].changed, found["i"].largest) == (("1", "-"), 1, inf)
    assert found["more"].bytes == (0, 1)
    [one] = compare({"w": np.float32([nan])}, {"w": np.float32([1])})
    assert one.largest == inf


def test_as_a_program_it_needs_no_device_and_ends_with_the_code(folder):
    script = (
        "import runpy, sys, jax\n"
        "try:\n    runpy.run_module('lepton_jax', run_name='__main__')\n"
        "finally:\n    print(jax.config.jax_platforms)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", script, "diff", str(folder / "dense.lepton"), str(folder / "small.lepton")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-2].startswith("1 of 2 tensors differ")
    assert done.stdout.splitlines()[-1] == "cpu"


def test_plan_memory_prints_a_row_for_every_case(lepton):
    code, out, err = lepton("plan-memory", "--model", "1b", "--devices", "8", "64", "--technique", "dense", "qlora")
    assert (code, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines()[3:]] == [
        ["1b", "8", "dense"],
        ["1b", "8", "qlora"],
        ["1b", "64", "dense"],
        ["1b", "64", "qlora"],
    ]
    code, out, _ = lepton("plan-memory", "--model", "7b", "--devices", "8", "--technique", "dense", "--json")
    [plan] = json.loads(out)["plans"]
    assert plan["parameters"] == pytest.approx(4 * 7.24e9 / 8, rel=0.01)
    for words in (("--model", "2b"), ("--machine", "none"), ("--technique", "magic"), ("--devices", "0")):
        code, _, err = lepton("plan-memory", *words)
        assert code == 2
        assert len(err.splitlines()) == 1
    code, _, err = lepton("plan-memory", "--model", "1b", "--devices", "64", "--technique", "dense", "--compile")
    assert code == 2
    assert "64 are asked for" in err
