"""Studies of mixed precision: every config runs, rows are kept, and what the table says is so."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from experiments import mixed_precision
from experiments.common import cli
from experiments.common.config import load_config
from experiments.studies.mixed_precision import MixedPrecision

CONFIGS = cli.ROOT / "configs"


@pytest.fixture
def launch(run_script):
    """Run the command line in this process; return the exit status."""
    return partial(run_script, mixed_precision)


def test_images_two_steps_and_a_finished_row_is_kept(launch, tmp_path, capsys, small_images):
    folder = tmp_path / "run"
    trial = ("--max-steps", 2, "--run-dir", folder, "--seeds", 2)
    assert launch("--config", CONFIGS / "mixed_precision_fashion_mnist.py", *trial, "--only", "float32") == 0
    first = (folder / "rows" / "float32.json").read_bytes()
    (folder / "summary.json").unlink()  # as if interrupted
    wanted = ("float32", "bfloat16", "float16_dynamic")
    assert launch("--config", CONFIGS / "mixed_precision_fashion_mnist.py", *trial, "--only", *wanted, "--resume") == 0
    assert (folder / "rows" / "float32.json").read_bytes() == first
    results = json.loads((folder / "summary.json").read_text())["results"]
    assert [result["row"] for result in results] == list(wanted)
    assert all(len(result["figure"]) == 2 and min(result["figure"]) >= 0 for result in results)
    assert results[2]["scale"] == [2.0**15] * 2  # of three steps none overflows, and the period is longer
    assert results[2]["skipped"] == [0, 0]
    assert "float16_dynamic" in capsys.readouterr().out
    assert (folder / "figure.png").stat().st_size > 0


def test_every_row_computes_in_its_own_precision():
    rows = load_config(CONFIGS / "mixed_precision_fashion_mnist.py", MixedPrecision).rows
    for name, dtype in (("float32", "f32"), ("bfloat16", "bf16"), ("float16_unscaled", "f16"), ("float16_dynamic", "f16")):
        [row] = [row for row in rows if row.name == name]
        dot = str(jax.make_jaxpr(row.seen(jnp.dot))(jnp.ones((2, 2)), jnp.ones((2, 2))))
        assert f":{dtype}[2,2] = dot_general" in dot


def test_characters_two_steps(launch, tmp_path):
    text, folder = tmp_path / "text", tmp_path / "run"
    text.write_text("to be, or not to be: that is the question.\n" * 200)
    arguments = ("--max-steps", 2, "--run-dir", folder, "--task.text", text, "--only", "float32", "bfloat16")
    small = ("--task.model.depth", 1, "--task.model.width", 16, "--task.model.heads", 2, "--task.model.mlp", 16)
    small += ("--task.model.length", 16, "--task.model.batch-size", 2)
    assert launch("--config", CONFIGS / "mixed_precision_characters.py", *arguments, *small) == 0
    plain, brain = json.loads((folder / "summary.json").read_text())["results"]
    assert 10 < plain["figure"][0] < 60  # one of 18 characters, by a network that has learnt nothing yet
    assert plain["figure"] == pytest.approx(brain["figure"], rel=0.05)
    assert plain["figure"] != brain["figure"]
