"""The study of applications: every config runs, rows are kept, channels go, and what the tables say is so."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import applications
from experiments.common import cli
from experiments.common.columns import reference, tabulate
from experiments.common.config import Adam, Digits, Fsdd, Sst2
from experiments.common.figures import accuracy_by_bytes
from experiments.common.on_engine import on_engine
from experiments.common.recipe import ROWS, Row, without_channels
from experiments.studies.applications import COLUMNS, ApplicationRunner, Applications, Task, aims
from lepton_jax import pack
from lepton_jax.data import Dataset, Split
from lepton_jax.models import BagOfEmbeddings, LeNet300
from lepton_jax.quantization import QArray
from lepton_jax.training import linen_apply

CONFIGS = cli.ROOT / "configs"


@pytest.fixture
def launch(run_script):
    """Run the command line in this process; return the exit status."""
    return partial(run_script, applications)


@pytest.fixture(autouse=True)
def without_engine(monkeypatch):
    """Files for ONNX Runtime have a test of their own."""
    monkeypatch.setattr("experiments.studies.applications.on_engine", lambda *args, **options: {})


def tokens(source: Sst2) -> Dataset:
    """Sentences of words drawn at random."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, source.tokens, (96, 6, 1, 1)).astype(np.float32)
    split = Split(images=images, labels=(np.arange(96) % 2).astype(np.int32))
    return Dataset(name="words", num_classes=2, train=split, validation=split, test=split)


def sounds(source: Fsdd) -> Dataset:
    """Noise of fewer frames than real clips have."""
    images = np.random.default_rng(0).normal(size=(80, 16, 16, 1)).astype(np.float32)
    split = Split(images=images, labels=(np.arange(80) % 10).astype(np.int32))
    return Dataset(name="sounds", num_classes=10, train=split, validation=split, test=split)


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("applications_sentiment", ["bag", "transformer"]),
        ("applications_spoken_digits", ["spectrogram_cnn"]),
        ("applications_images", ["lenet5"]),
    ],
)
def test_every_config_two_steps(launch, name, networks, tmp_path, capsys, small_images, monkeypatch):
    monkeypatch.setattr(Sst2, "load", tokens)
    monkeypatch.setattr(Fsdd, "load", sounds)
    folder = tmp_path / "run"
    trial = ("--max-steps", 2, "--latency-rounds", 1, "--no-files", "--only", "small", "--run-dir", folder)
    assert launch("--config", CONFIGS / f"{name}.py", *trial) == 0, capsys.readouterr().err
    results = json.loads((folder / "summary.json").read_text())["results"]
    assert [(result["settings"]["task"], result["row"]) for result in results] == [(network, "small") for network in networks]
    assert all(0 <= result["error"][0] <= 1 for result in results)
    assert "accuracy.png" not in (folder / "report.md").read_text()  # there are no bytes to draw against


def test_without_its_data_a_config_says_what_is_missing(launch, tmp_path, capsys):
    for name, option in (("sentiment", "--data.folder"), ("spoken_digits", "--data.path")):
        config = ("--config", CONFIGS / f"applications_{name}.py", "--run-dir", tmp_path / name)
        assert launch(*config, option, tmp_path / "nowhere") == 1
        said = capsys.readouterr().err
        assert "nowhere" in said
        assert "Get the" in said


def study(**changes) -> Applications:
    rate = Adam(learning_rate=1e-2)
    loop = {"dense_epochs": 2, "epochs": 1, "dense_optimizer": rate, "optimizer": rate, "batch_size": 32}
    task = Task(name="net", model=LeNet300(hidden=(24, 16)), **loop)
    base = {"name": "s", "data": Digits(), "tasks": (task,), "latency_rounds": 1, "engine_rounds": 3}
    return Applications(**{**base, **changes})


def test_the_recipe_on_digits(tmp_path):
    """Rows begin at one network, files are as small as they should be, and finished rows are kept."""
    made = study()
    results = {result["row"]: result for result in ApplicationRunner(made, [0, 1], tmp_path).run()}
    assert list(results) == ["dense", "pruned", "int8", "small", "distilled", "tuned"]
    sizes = {name: result["file_bytes"] for name, result in results.items()}
    assert sizes["small"] < sizes["int8"] < sizes["pruned"] < sizes["dense"]
    assert sizes["pruned"] < 0.7 * sizes["dense"]
    # 64 x 24 + 24 x 16 + 16 x 10 weights and 50 biases; of channels, so many that at least 35 % of all are gone.
    assert results["dense"]["parameters"] == results["int8"]["parameters"] == 2130
    assert results["pruned"]["parameters"] == results["small"]["parameters"] <= 0.65 * 2130
    assert results["pruned"]["macs"] < 0.65 * results["dense"]["macs"] == 0.65 * 2080
    assert all(len(result[key]) == 2 for result in results.values() for key in ("error", "best_error", "validation_error"))
    assert max(max(results[name]["error"]) for name in ("small", "distilled", "tuned")) < 0.5
    assert results["distilled"]["parameters"] == results["pruned"]["parameters"]
    assert sizes["tuned"] < sizes["small"]
    assert results["int8"]["accuracy"] == [1 - error for error in results["int8"]["error"]]

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    (tmp_path / "rows" / "net-int8.json").unlink()
    again = ApplicationRunner(made, [0, 1], tmp_path).run()
    assert [path.name for path, when in written.items() if path.stat().st_mtime_ns != when] == ["net-int8.json"]
    assert again[2]["error"] == results["int8"]["error"]


def test_removed_channels_are_the_least_and_the_rest_computes_as_before(tmp_path):
    """A unit without weights goes first, and its going changes nothing."""
    model = LeNet300(classes=3, hidden=(4,))
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    params = jax.tree.map(jnp.asarray, jax.jit(model.init)(jax.random.key(1), x)["params"])
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[:, 2].set(0)
    params["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[2].set(0)
    apply, small, rest = without_channels(linen_apply(model), params, {}, jnp.asarray(x[:1]), 0.2)
    assert (small["Dense_0"]["kernel"].shape, small["Dense_1"]["kernel"].shape, rest) == ((6, 3), (3, 3), {})
    np.testing.assert_array_equal(small["Dense_0"]["kernel"], params["Dense_0"]["kernel"][:, np.array([0, 1, 3])])
    for train in (False, True):
        got, _ = apply(small, {}, jnp.asarray(x), train=train, key=None)
        np.testing.assert_allclose(got, model.apply({"params": params}, x), rtol=1e-5, atol=1e-6)


def test_dropout_goes_on_in_the_smaller_network():
    model = BagOfEmbeddings(vocabulary=9, width=6, hidden=5, dropout=0.5)
    words = jnp.asarray(np.random.default_rng(0).integers(1, 9, (4, 3, 1, 1)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), words)["params"]
    apply, small, _ = without_channels(linen_apply(model), params, {}, words[:1], 0.3)
    assert small["words"]["embedding"].shape[1] < 6
    first, again, other = (apply(small, {}, words, train=True, key=jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_int8_packs_matrices_and_halves_vectors():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32), "bias": jnp.ones(4)}
    transform = Row(name="int8", bits=8).transform
    packed = pack(transform, *transform.init(params))
    assert isinstance(packed["kernel"], QArray)
    assert (packed["kernel"].qvalue.dtype, packed["kernel"].scale.size, packed["bias"].dtype) == (jnp.int8, 1, jnp.bfloat16)


def test_files_for_the_engine_are_smaller_in_int8():
    model, images = LeNet300(hidden=(24, 16)), np.random.default_rng(0).random((140, 8, 8, 1), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
    transform, apply = Row(name="int8", bits=8).transform, linen_apply(model)
    packed = {"params": pack(transform, *transform.init(params))}
    as_is, int8 = (on_engine((apply, {"params": params}), apply, packed, images, int8=one, rounds=3) for one in (False, True))
    assert int8["onnx_bytes"] < 20_000
    assert all(one["onnx_latency_ratio"]["1"] > 0 for one in (as_is, int8))


def test_the_tables_of_known_results(tmp_path):
    cell = {"settings": {"task": "t"}, "seeds": [0, 1], "macs": 1000, "parameters": 10, "latency_ratio": {"1": 0.5, "128": 2.0}}
    cell |= {"best_error": [0.1, 0.1]}
    results = [
        {**cell, "row": "dense", "error": [0.1, 0.3], "file_bytes": 1000},
        {**cell, "row": "pruned", "error": [0.1, 0.32], "file_bytes": 600},
        {**cell, "row": "int8", "error": [0.1, 0.3], "file_bytes": 300},
    ]
    dense = reference(results, "dense", "task")
    assert tabulate(results, COLUMNS, dense)[2] == (
        *(
            "t",
            "pruned",
            "79.00 ± 15.56",
            "-1.00",
            "1.67x",
            "90.00 ± 0.00",
            "",
            "10",
            "600",
            "1,000",
            "0.50",
            "2.00",
            "",
            "",
            "",
        ),
    )
    assert aims(results, dense) == [
        "t, pruned: 30 % smaller at 2 points lost at most: reached, with 1.67x and -1.00 points.",
        "t, int8: 4x smaller at 1 point lost at most: missed, with 3.33x and +0.00 points.",
    ]
    [drawing] = accuracy_by_bytes(results, panel="task")
    drawing.draw(tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Row(name="a b"), "must be a word"),
        (lambda: Row(name="a", removed=1.0), "removed"),
        (lambda: Row(name="a", bits=1), "bits"),
        (lambda: Task(name="a", model=LeNet300(), dense_epochs=0, epochs=1), "dense_epochs"),
        (lambda: study(rows=ROWS[:1] * 2), "each with a name of its own"),
        (lambda: study(only=("b",)), "no row 'b'"),
        (lambda: dataclasses.replace(study(), latency_rounds=0), "latency_rounds"),
        (lambda: study(max_steps=0), "max_steps"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
