"""Studies of bits: every config runs, rows are kept, all rows begin at one network, and what the table says is so."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import qat_bits
from experiments.common import cli
from experiments.common.columns import COSTS, ROW, setting, tabulate
from experiments.common.config import Adam, Cifar10, Digits, load_config
from experiments.studies.qat_bits import METHODS, QatBits, Row, Runner, accuracies_by_bits
from lepton_jax.data import from_arrays
from lepton_jax.models import LeNet300, ResNetCifar
from lepton_jax.quantization import LearnedWeight, QArray

CONFIGS = cli.ROOT / "configs"
# The rows are the same in both; of each method's, the one of fewest bits.
STUDIES = {"qat_bits": ("lsq",), "qat_bits_cnn": ("straight_through", "pact")}
FEWEST = """
from dataclasses import replace
from pathlib import Path

from experiments.common.config import load_config
from experiments.studies.qat_bits import QatBits


def get_config():
    config = load_config(Path({path!r}), QatBits)
    return replace(config, rows=tuple({{row.name: row for row in sorted(config.rows, key=lambda row: -row.bits)}}.values()))
"""

TINY = """
from experiments.common.config import Digits
from experiments.studies.qat_bits import METHODS, QatBits, Row
from lepton_jax.data import from_arrays
from lepton_jax.models import LeNet300, ResNetCifar


def get_config():
    return QatBits(
        name="tiny",
        data=Digits(),
        model=LeNet300(hidden=(12, 8)),
        float_epochs=2,
        epochs=1,
        rows=(Row(name="plain", bits=8), Row(name="lsq", bits=3, method=METHODS["lsq"])),
    )
"""


@pytest.fixture
def launch(run_script):
    """Run the command line in this process; return the exit status."""
    return partial(run_script, qat_bits)


@pytest.mark.parametrize(("name", "only"), STUDIES.items())
def test_every_study_two_steps(launch, name, only, tmp_path, capsys, small_images):
    folder, path = tmp_path / "run", tmp_path / "fewest.py"
    path.write_text(FEWEST.format(path=str(CONFIGS / f"{name}.py")))
    trial = ("--max-steps", 2, "--no-files", "--batch-size", 16, "--calibration-batches", 1, "--run-dir", folder)
    assert launch("--config", path, *trial, "--only", *only) == 0, capsys.readouterr().err
    config = load_config(path, QatBits)
    assert config.name == name
    assert {row.name: row.bits for row in config.rows} == {**dict.fromkeys(METHODS, 2), "straight_through": 8}
    results = json.loads((folder / "summary.json").read_text())["results"]
    rows = [(row.name, row.bits) for row in config.rows if row.name in only]
    assert [(result["row"], result["settings"]["bits"]) for result in results] == [("float32", None), *rows]
    assert (folder / "accuracy.png").stat().st_size > 0


def test_finished_rows_are_kept_and_missing_ones_run_again(launch, tmp_path, capsys):
    config, folder = tmp_path / "tiny.py", tmp_path / "run"
    config.write_text(TINY)
    arguments = ("--config", config, "--run-dir", folder, "--seeds", 2)
    assert launch(*arguments) == 0, capsys.readouterr().err
    rows = {path.stem: path for path in (folder / "rows").iterdir()}
    assert sorted(rows) == ["float32", "lsq-3bit", "plain-8bit"]
    before = {name: json.loads(path.read_text()) for name, path in rows.items()}
    written = {name: path.stat().st_mtime_ns for name, path in rows.items()}
    # 64 x 12 + 12 x 8 + 8 x 10 weights of a byte each or less; the middle layer has 3 bits.
    sizes = {name: result["file_bytes"] for name, result in before.items()}
    assert sizes["lsq-3bit"] < sizes["plain-8bit"] < 0.6 * sizes["float32"]
    rows["lsq-3bit"].unlink()
    (folder / "summary.json").unlink()
    assert launch(*arguments, "--resume") == 0, capsys.readouterr().err
    assert {name for name, path in rows.items() if path.stat().st_mtime_ns != written[name]} == {"lsq-3bit"}
    again = json.loads(rows["lsq-3bit"].read_text())
    for key in ("error", "validation_error", "file_bytes"):
        assert again[key] == before["lsq-3bit"][key]


def test_layers_and_what_is_done_to_them(tmp_path):
    """The first and the last layer have 8 bits, those between the row's; inputs that are never negative are unsigned."""
    made = study(rows=(Row(name="a", bits=2, method=METHODS["lsq"]),), max_steps=1)
    runner = Runner(made, [3], tmp_path)
    state, apply, history = runner.tune(made.rows[0])
    transform = history.transform
    sites = state.params["sites"]
    assert [sorted(site["lhs"]) for site in sites.values()] == [["scale"], ["step"], ["scale"]]
    assert [isinstance(layer["kernel"], LearnedWeight) for layer in state.params["net"].values()] == [False, True, False]
    one = jax.tree.map(lambda leaf: leaf[0], (state.params, state.tstate))
    packed = transform.pack(*one)["net"]
    assert [packed[f"Dense_{number}"]["kernel"].format.bits for number in range(3)] == [8, 2, 8]
    assert all(isinstance(layer["kernel"], QArray) for layer in packed.values())

    # The rounded network, written out for one image.
    net, x = transform.view(*one)["net"], np.asarray(runner.dataset.test.images[:1], np.float64).reshape(1, -1)
    for number, ((_, site), top) in enumerate(zip(sites.items(), (255, 3, 255))):
        [scale] = [np.asarray(leaf[0], np.float64).item() for leaf in jax.tree.leaves(site)]
        x = np.clip(np.round(x / scale), 0, top) * scale
        layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), net[f"Dense_{number}"])
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0) if number < 2 else x
    seen = transform.view(*one)
    logits, _ = apply(seen, {}, jnp.asarray(runner.dataset.test.images[:1]), train=False, key=None)
    np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-4)


def test_every_method_learns(tmp_path):
    rows = tuple(Row(name=name, bits=4, method=method) for name, method in METHODS.items())
    rates = {"float_optimizer": Adam(learning_rate=1e-2), "optimizer": Adam(learning_rate=5e-3)}
    plain, *rounded = Runner(study(rows=rows, epochs=6, float_epochs=6, batch_size=32, **rates), [0], tmp_path).run()
    assert plain["error"][0] < 0.1
    assert [result["row"] for result in rounded if result["error"][0] > 0.15] == []


def test_the_tables_of_known_results():
    cell = {"seeds": [0, 1], "seconds": 4.0, "validation_error": [0.5, 0.5]}
    plain = {**cell, "row": "float32", "settings": {"bits": None}, "error": [0.1, 0.2]}
    results = [
        {**cell, "row": "a", "settings": {"bits": 2}, "error": [0.2, 0.2]},
        {**cell, "row": "b", "settings": {"bits": 8}, "error": [0.1, 0.1], "file_bytes": 1234},
    ]
    assert accuracies_by_bits([plain, *results]) == [
        ("method", "W8A8", "gap", "W2A2", "gap"),
        ("a", "", "", "80.00 ± 0.00", "-5.00"),
        ("b", "90.00 ± 0.00", "+5.00", "", ""),
    ]
    columns = (ROW, setting("bits", "bits", lambda bits: str(bits or 32)), *COSTS)
    assert tabulate([plain, *results], columns)[1:] == [
        ("float32", "32", "50.00 ± 0.00", "", "", "", "", "", "2.0"),
        ("a", "2", "50.00 ± 0.00", "", "", "", "", "", "2.0"),
        ("b", "8", "50.00 ± 0.00", "", "1,234", "", "", "", "2.0"),
    ]


def study(**changes) -> QatBits:
    base = {"name": "s", "data": Digits(), "model": LeNet300(hidden=(24, 16)), "epochs": 1, "float_epochs": 1, "files": False}
    return QatBits(**{**base, "rows": (Row(name="a", bits=4),), **changes})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Row(name="a b", bits=4), "must be a word"),
        (lambda: Row(name="float32", bits=4), "other than 'float32'"),
        (lambda: Row(name="a", bits=1), "bits"),
        (lambda: study(rows=(Row(name="a", bits=4),) * 2), "each with a name of its own"),
        (lambda: study(only=("b",)), "no row 'b'"),
        (lambda: study(float_epochs=0), "float_epochs"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_rows_may_begin_at_published_weights(published, tmp_path):
    """Every seed at the same ones, in the model's own layout; a study has these or epochs in float32."""
    model, rng, path = ResNetCifar(depth=8, features=2, shortcut="pad"), np.random.default_rng(0), tmp_path / "weights.npz"
    file = published(model, rng)
    np.savez(path, **file)
    split = rng.random((20, 32, 32, 3), np.float32), np.arange(20) % 10
    dataset = from_arrays(split, split, num_classes=10)
    settings = {"name": "s", "data": Cifar10(), "model": model, "epochs": 1, "scan": False, "rows": (Row(name="a", bits=8),)}
    before = Runner(QatBits(weights=path, **settings), [3, 4], tmp_path, dataset).before
    assert int(before.step) == 0
    for seed in (0, 1):
        kernel = before.params["Conv_0"]["kernel"][seed]
        np.testing.assert_array_equal(kernel, file["conv1.weight"].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(before.params["Dense_0"]["kernel"][seed], file["fc.weight"].T)
    assert not jnp.array_equal(*jax.random.key_data(before.key))
    for wrong in ({}, {"weights": path, "float_epochs": 1}):
        with pytest.raises(ValueError, match="either float_epochs or weights"):
            QatBits(**wrong, **settings)
    with pytest.raises(ValueError, match="residual networks only; the model is a LeNet300"):
        QatBits(weights=path, **{**settings, "model": LeNet300()})
