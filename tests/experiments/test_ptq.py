"""The studies of post-training quantization: trials on tiny models, and what their tables say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lm_ptq, ptq_methods
from experiments.common import cli, resnet20
from experiments.common.char_lm import CharLM
from experiments.common.config import load_config
from experiments.studies.lm_ptq import LmPtq, table
from experiments.studies.ptq_methods import PtqMethods, choices
from lepton_jax.data import Split
from lepton_jax.models import ResNetCifar

CONFIGS = cli.ROOT / "configs"


@pytest.fixture
def small_resnet(monkeypatch):
    """A network of two blocks with random weights, and random images, in place of the published ones."""
    model, rng = ResNetCifar(depth=8, features=2, shortcut="pad"), np.random.default_rng(0)
    images, labels = rng.random((64, 32, 32, 3), np.float32), np.arange(64, dtype=np.int32) % 10
    split = Split(images=images, labels=labels)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(images[:1]))
    monkeypatch.setattr(resnet20, "MODEL", model)
    monkeypatch.setattr(resnet20, "load_variables", lambda data: variables)
    monkeypatch.setattr(resnet20, "lossless_splits", lambda data: (split, split))


def test_rows_of_the_resnet_end_in_a_report_and_are_kept(run_script, small_resnet, tmp_path, capsys):
    names = [row.name for row in load_config(CONFIGS / "ptq_methods.py", PtqMethods).rows]
    few = (
        "--images",
        16,
        "--batch-size",
        16,
        "--held-out",
        16,
        "--test-images",
        16,
        "--bits",
        3,
        "--seeds",
        2,
        "--latency-rounds",
        1,
        "--run-dir",
        tmp_path / "run",
    )
    chosen = ("nearest",)
    assert set(chosen) < set(names)
    assert run_script(ptq_methods, *few, "--only", *chosen) == 0, capsys.readouterr()
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    cells = [(name, {"bits": bits}, [0, 1]) for name, bits in (("float", 32), ("nearest", 3))]
    assert [(result["row"], result["settings"], result["seeds"]) for result in results] == cells
    values = [value for result in results for split in ("test", "held out, activations") for value in result[split]]
    assert len(values) == 8
    assert all(0 <= value <= 100 for value in values)
    assert [len(result["nonzeros"]) for result in results if "file_bytes" in result] == [1, 1]  # costs depend on shapes
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| nearest |" in text
    assert (tmp_path / "run" / "ptq_methods.png").stat().st_size > 5000
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "rows").iterdir()}
    assert run_script(ptq_methods, *few, "--only", *chosen, "--resume") == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "rows").iterdir()} == before
    assert run_script(ptq_methods, *few, "--only", "nobody") == 1
    assert "there is no row 'nobody'" in capsys.readouterr().err


def test_a_network_is_trained_and_its_rows_have_costs(run_script, small_images, tmp_path, capsys):
    """Float weights take four bytes; three bits less than a quarter of them; others follow from shapes alone."""
    config = CONFIGS / "ptq_methods_fashion_mnist.py"
    few = ("--images", 16, "--batch-size", 16, "--held-out", 16, "--test-images", 16, "--bits", 3, "--max-steps", 2)
    arguments = ("--config", config, *few, "--only", "nearest", "--latency-rounds", 1)
    assert run_script(ptq_methods, *arguments, "--run-dir", tmp_path) == 0, capsys.readouterr()
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert [(result["row"], result["seeds"]) for result in results] == [("float", [0]), ("nearest", [0])]
    kernels = 3 * 3 * (1 * 16 + 16 * 32 + 32 * 64) + 4 * 4 * 64 * 10
    folded = kernels + 16 + 32 + 64 + 10
    assert [result["parameters"] for result in results] == [folded] * 2
    assert results[0]["file_bytes"] > 3 * kernels
    assert 4 * results[1]["file_bytes"] < results[0]["file_bytes"]
    macs = 3 * 3 * (28**2 * 1 * 16 + 14**2 * 16 * 32 + 7**2 * 32 * 64) + 4 * 4 * 64 * 10
    assert [result["macs"] for result in results] == [macs] * 2
    text = (tmp_path / "report.md").read_text()
    assert "of a CNN after 4 epochs" in text
    assert f"| nearest | 3 | {folded:,} | {results[1]['file_bytes']:,} | {macs:,} |" in text


def test_a_seeds_network_and_images_are_its_own(small_images, tmp_path):
    source = load_config(CONFIGS / "ptq_methods_fashion_mnist.py", PtqMethods).source
    one, again, other = (source.load(seed, 16, 1, tmp_path) for seed in (0, 0, 1))
    for field in ("calibration", "held_out"):
        images = [getattr(network, field).images for network in (one, again, other)]
        np.testing.assert_array_equal(images[0], images[1])
        assert not np.array_equal(images[0], images[2])
    assert len(one.calibration) == 16
    leaves = [jax.tree.leaves(network.variables) for network in (one, again, other)]
    assert all(jnp.array_equal(*same) for same in zip(*leaves[:2], strict=True))
    assert not all(jnp.array_equal(*some) for some in zip(leaves[0], leaves[2], strict=True))
    kept = {image.tobytes() for image in one.held_out.images}
    assert not kept & {image.tobytes() for image in one.calibration.images}


def test_the_row_is_chosen_on_held_out_images_not_on_the_test_set():
    config = dataclasses.replace(load_config(CONFIGS / "ptq_methods.py", PtqMethods), aims={4: 91.0})
    cell = {"settings": {"bits": 4}, "test": [0.0, 0.0], "held out": [0.0, 0.0]}
    good = {**cell, "row": "a", "test, activations": [89.0, 91.0], "held out, activations": [95.0, 95.0]}
    lucky = {**cell, "row": "b", "test, activations": [93.0, 93.0], "held out, activations": [96.0, 92.0]}
    results = [lucky, good]
    assert choices(config, results)[1:] == [("W4A8", "91.0", "a", "90.0", "missed")]
    assert choices(dataclasses.replace(config, aims={}), results)[1:] == [("W4A8", "", "a", "90.0", "")]


def test_rows_of_the_transformer_lose_perplexity_against_float(run_script, tmp_path, capsys):
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("To be, or not to be, that is the question. " * 200)
    config = load_config(CONFIGS / "lm_ptq.py", LmPtq)
    tiny = CharLM(steps=2, depth=1, width=32, heads=2, mlp=32, length=16, batch_size=4)
    made = tmp_path / "tiny.py"
    made.write_text(
        "import dataclasses, pathlib\n"
        "from experiments.common.char_lm import CharLM\n"
        "from experiments.common.config import load_config\n"
        "from experiments.studies.lm_ptq import LmPtq\n"
        f"whole = load_config({str(CONFIGS / 'lm_ptq.py')!r}, LmPtq)\n"
        "rows = tuple(row for row in whole.rows if row.name in ('float', 'int4, GPTQ'))\n"
        f"def get_config(): return dataclasses.replace(whole, model={tiny!r}, rows=rows)\n"
    )
    assert len(config.rows) == 11
    arguments = ("--config", made, "--text", text, "--windows", 4, "--batch-size", 4, "--test-windows", 4, "--run-dir", folder)
    assert run_script(lm_ptq, *arguments) == 0, capsys.readouterr()
    results = json.loads((folder / "summary.json").read_text())["results"]
    lines = table(results)
    assert [line[0] for line in lines] == ["method", "float", "int4, GPTQ"]
    found = {result["row"]: result["perplexity"] for result in results}
    lost = [100 * (mine / dense - 1) for mine, dense in zip(found["int4, GPTQ"], found["float"], strict=True)]
    assert [float(cell) for cell in lines[2][3:]] == pytest.approx(lost, abs=0.006)
