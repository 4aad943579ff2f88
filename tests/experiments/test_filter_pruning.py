"""The study of filter pruning: a trial on a tiny network and random images, read from files of the published ones' form."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments import filter_pruning
from experiments.common import cli, resnet20, unfinished
from experiments.common.config import load_config, to_json
from experiments.studies.filter_pruning import FilterPruning, Row
from lepton_jax import identity, load
from lepton_jax.data import Split
from lepton_jax.models import ResNetCifar
from lepton_jax.training import FitSettings, create, make_train_step

CONFIG = cli.ROOT / "configs" / "filter_pruning.py"
MODEL = ResNetCifar(depth=8, features=2, shortcut="pad")
STATISTICS = 2 * (2 + 2 * (2 + 4 + 8))
"""Means and variances of the batch norms."""
# 3 x 3 kernels: one of 3 by 2 channels and two of 2 by 2 at 32 x 32 pixels; 2 by 4 and 4 by 4 at 16 x 16; 4 by 8 and 8 by 8.
MACS = 9 * (1024 * (3 * 2 + 2 * 2 * 2) + 256 * (2 * 4 + 4 * 4) + 64 * (4 * 8 + 8 * 8)) + 8 * 10
TINY = """
from experiments.studies.filter_pruning import FilterPruning, Row
from lepton_jax.models import ResNetCifar


def get_config():
    rows = Row(name="taylor", criterion="taylor"), Row(name="random", criterion="random")
    return FilterPruning(
        name="tiny", rows=rows, model=ResNetCifar(depth=8, features=2, shortcut="pad"), fractions=(0.4,), tune_images=24,
        batch_size=8, taylor_images=16, latency_batches=(1,), latency_rounds=1, references={0.4: ("93 to 92 %", "Li")},
    )
"""


@pytest.fixture
def folder(tmp_path, published):
    """A folder with weights, two sheets and JPEG images."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    for name in ("weights", "cifar10_subset", "cifar10_jpeg"):
        (data / name).mkdir(parents=True)
    np.savez(data / "weights" / "resnet20_cifar10.npz", **published(MODEL, rng))
    np.save(data / "cifar10_subset" / "labels_51000.npy", rng.integers(0, 10, 51_000))
    for sheet in (0, 50):
        pixels = np.kron(rng.integers(0, 256, (1000, 4, 4, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels.reshape(-1, 32, 3)).save(
            data / "cifar10_subset" / f"cifar10_batch_{sheet}.png", compress_level=1
        )
    files = []
    for _ in range(30):
        files.append(io.BytesIO())
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(files[-1], "jpeg")
    stream = [file.getvalue() for file in files]
    np.savez(
        data / "cifar10_jpeg" / "cifar10_jpeg.npz",
        train_jpeg=np.frombuffer(b"".join(stream), np.uint8),
        train_offsets=np.cumsum([0, *map(len, stream)]),
        train_label=rng.integers(0, 10, 30),
    )
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def test_a_trial(folder, published, run_script):
    run_dir = folder / "run"
    arguments = ["--config", folder / "tiny.py", "--data", folder / "data", "--run-dir", run_dir, "--max-steps", 2]
    assert run_script(filter_pruning, *arguments, "--only", "random") == 0
    written = (run_dir / "rows" / "random-40.json").stat().st_mtime_ns
    assert run_script(filter_pruning, *arguments, "--resume") == 0
    assert (run_dir / "rows" / "random-40.json").stat().st_mtime_ns == written

    results = json.loads((run_dir / "summary.json").read_text())["results"]
    assert [(result["row"], result["settings"]["fraction"]) for result in results] == [("taylor", 0.4), ("random", 0.4)]
    parameters = sum(leaf.size for leaf in published(MODEL, np.random.default_rng(0)).values()) - STATISTICS
    for result in results:
        assert result["macs"] <= 0.6 * result["dense_macs"] == 0.6 * MACS
        assert result["parameters"] == result["nonzeros"][0] < parameters
        assert result["file_bytes"] < 4 * parameters
        assert result["latency_ratio"]["1"] > 0
        assert 0 <= result["difference"] < 1e-5
        assert 0 <= result["best_error"][0] <= result["error"][0] <= 1
        assert result["reference"] == "93 to 92 %"
    assert results[0]["dense_error"] == results[1]["dense_error"]
    # What is in the file is what was measured.
    test = resnet20.lossless_splits(folder / "data")[1]
    guesses = np.asarray(load(run_dir / "files" / "taylor-40.lepton")(test.images)).argmax(-1)
    assert np.mean(guesses != test.labels) == pytest.approx(results[0]["error"][0], abs=0.002)
    text = (run_dir / "report.md").read_text()
    assert "| taylor | 40 % |" in text
    assert (run_dir / "accuracy.png").exists()


def test_an_interrupted_tuning_goes_on_from_its_checkpoint(tmp_path, monkeypatch, halting):
    """To the same weights and errors, without the epochs that it has had."""
    monkeypatch.setattr(unfinished, "SECONDS", 0.0)
    rng = np.random.default_rng(0)
    split = Split(images=rng.standard_normal((8, 32, 32, 1), np.float32), labels=np.arange(8, dtype=np.int32))

    def loss(params, model_state, batch, key):
        return jnp.mean((batch.images.mean((1, 2)) @ params["w"] - batch.labels) ** 2), (model_state, {})

    tx = optax.sgd(0.1)
    step = make_train_step(loss, tx, identity())

    def weights(state):
        return {"w": state.params["w"].tolist()}

    def run(history, run_dir):
        state = create({"w": jnp.zeros((1,))}, {}, tx, identity(), jax.random.key(0))
        batch_at = resnet20.tuning_batches(split, steps=2, batch_size=4, seed=1)
        args = (state, step, batch_at, FitSettings.by_epochs(3, 2))
        return unfinished.train(*args, name="one", seeds=[1], history=history, run_dir=run_dir).params["w"].tolist()

    whole, resumed = halting(weights), halting(weights)
    expected = run(whole, None)
    with pytest.raises(KeyboardInterrupt):
        run(halting(weights, last=2), tmp_path)
    assert run(resumed, tmp_path) == expected
    assert (resumed.calls, resumed.epochs) == (1, whole.epochs)
    assert len({tuple(figures["w"]) for figures in whole.epochs}) == 3


def test_augmented_images_are_shifted_and_flipped_ones():
    image = np.zeros((1, 32, 32, 1), np.float32)
    image[0, 10, 5] = 1
    many = resnet20.augmented(np.repeat(image, 400, axis=0), np.random.default_rng(0))
    assert many.shape == (400, 32, 32, 1)
    assert many.dtype == np.float32
    places = {tuple(np.argwhere(one)[0][:2].tolist()) for one in many}
    assert all(one.sum() == 1 for one in many)
    columns = {5 + shift for shift in range(-4, 5)} | {26 + shift for shift in range(-4, 5)}
    assert {row for row, _ in places} == set(range(6, 15))
    assert {column for _, column in places} == columns


def test_the_config_is_data():
    study = load_config(CONFIG, FilterPruning)
    assert json.loads(json.dumps(to_json(study)))["name"] == CONFIG.stem
    assert [cell.settings["fraction"] for cell in study.cells if cell.name == "l1"] == [0.3, 0.5]
    assert [cell.settings["fraction"] for cell in study.cells if cell.name == "dense"] == [0]
    with pytest.raises(
        ValueError, match=r"only: there is no row 'x'(.|\n)*tune_images: must be at least a batch of 100; got 5"
    ):
        FilterPruning(name="s", rows=study.rows, only=("x",), tune_images=5)
    with pytest.raises(ValueError, match="Row 'a b'"):
        Row(name="a b", criterion="l1")
