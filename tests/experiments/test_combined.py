"""The study of combinations: rows run, are kept, begin at one network, and what the tables say is so."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import combined
from experiments.common import cli, members
from experiments.common.columns import reference, tabulate
from experiments.common.config import Adam, Digits, load_config
from experiments.common.deployed import deployed
from experiments.common.measuring import best_errors
from experiments.common.techniques import EqualShares, Settings
from experiments.studies.combined import COLUMNS, DENSE, Combined, Row, Runner, order_notes, pair_notes
from lepton_jax import chain, fake_quant, freeze, low_rank, pack, unpack
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank import Svd
from lepton_jax.models import LeNet300
from lepton_jax.quantization import QArray, Uniform, quantize
from lepton_jax.training import stacked

CONFIG = cli.ROOT / "configs" / "combined.py"


@pytest.fixture
def launch(run_script):
    """Run the command line in this process; return the exit status."""
    return partial(run_script, combined)


def study(**changes) -> Combined:
    base = {"name": "s", "data": Digits(), "model": LeNet300(hidden=(24, 16)), "teacher": LeNet300(hidden=(30,))}
    base |= {"epochs": 2, "dense_epochs": 2, "files": False, "latency_rounds": 1, "batch_size": 64}
    return Combined(**{**base, "rows": (Row(),), **changes})


def test_the_config_two_steps(launch, tmp_path, capsys, small_images):
    folder, only = tmp_path / "run", ("dense", "low_rank+prune")
    trial = ("--max-steps", 2, "--latency-rounds", 1, "--batch-size", 16, "--run-dir", folder)
    assert launch("--config", CONFIG, *trial, "--only", *only) == 0, capsys.readouterr().err
    dense, small = json.loads((folder / "summary.json").read_text())["results"]
    assert (dense["row"], small["row"]) == only
    # 784 x 300 + 300 x 100 + 100 x 10; of ranks 108 and 37, the factors.
    assert (dense["macs"], small["macs"]) == (266_200, 108 * 1084 + 37 * 400 + 1000)
    assert small["file_bytes"] < 0.1 * dense["file_bytes"]
    assert {(folder / name).stat().st_size > 0 for name in ("pairs.png", "accuracy.png")} == {True}


def test_the_config_has_every_technique_alone_every_pair_and_all_together():
    rows = [row.phases for row in load_config(CONFIG, Combined).rows]
    alone = [frozenset(phases[0]) for phases in rows if len(phases) == 1]
    names = {name for phases in rows for phase in phases for name in phase}
    assert len(names) == 5
    for a in names:
        assert all({a, b} in alone for b in names)
    assert names in alone


def test_finished_rows_are_kept_and_missing_ones_run_again(launch, tmp_path, capsys):
    config, folder = tmp_path / "tiny.py", tmp_path / "run"
    config.write_text(
        "from experiments.common.config import Digits\n"
        "from experiments.studies.combined import Combined, Row\n"
        "from lepton_jax.models import LeNet300\n\n\n"
        "def get_config():\n"
        "    rows = (Row(), Row(phases=(('prune', 'distil'),)))\n"
        "    nets = {'model': LeNet300(hidden=(12,)), 'teacher': LeNet300(hidden=(20,))}\n"
        "    return Combined(name='tiny', data=Digits(), rows=rows, dense_epochs=1, epochs=2, latency_rounds=1, **nets)\n"
    )
    arguments = ("--config", config, "--run-dir", folder, "--seeds", 2)
    assert launch(*arguments) == 0, capsys.readouterr().err
    rows = {path.stem: path for path in (folder / "rows").iterdir()}
    before = {name: json.loads(path.read_text()) for name, path in rows.items()}
    written = rows["dense"].stat().st_mtime_ns
    rows["prune+distil"].unlink()
    (folder / "summary.json").unlink()
    assert launch(*arguments, "--resume") == 0, capsys.readouterr().err
    assert rows["dense"].stat().st_mtime_ns == written
    again = json.loads(rows["prune+distil"].read_text())
    for key in ("error", "best_error", "nonzeros", "file_bytes"):
        assert again[key] == before["prune+distil"][key]
    # 90 % of 64 x 12 + 12 x 10 weights are gone, and 3 of 64 pixels have none that count; biases stay.
    assert again["nonzeros"][0] <= 0.1 * 888 + 1 + 22


def test_phases_keep_what_the_ones_before_them_did(tmp_path):
    """Masks of the first phase stay through the second, whose factors and steps are the network's own."""
    made = study(rows=(Row(phases=(("prune",), ("quantize", "distil"))),), optimizer=Adam(learning_rate=1e-3))
    runner = Runner(made, [3, 4], tmp_path)
    kept = jax.tree.map(np.array, runner.before.params)
    assert runner.taught.logits.shape == (2, 1257, 10)
    tuned, history = runner.tune(made.rows[0], runner.taught)
    transform = history.transform
    jax.tree.map(np.testing.assert_array_equal, kept, runner.before.params)  # the next row begins at the same networks
    for run in stacked.apart(tuned):
        packed = pack(transform, run.params, run.tstate)
        assert [type(packed[f"Dense_{k}"]["kernel"]) for k in range(3)] == [QArray] * 3
        shown, masters = unpack(packed), run.params
        kernels = [(np.asarray(shown[f"Dense_{k}"]["kernel"]), np.asarray(masters[f"Dense_{k}"]["kernel"])) for k in range(3)]
        sizes = sum(kernel.size for kernel, _ in kernels)
        assert sum(np.count_nonzero(master) for _, master in kernels) <= round(0.1 * sizes) + 1
        assert all((shown[master == 0] == 0).all() for shown, master in kernels)
        assert all(len(np.unique(shown[:, 0])) <= 16 for shown, _ in kernels)
    # Without the teacher the same row ends elsewhere.
    alone, _ = runner.tune(Row(phases=(("prune",), ("quantize",))), runner.untaught)
    assert not np.allclose(alone.params["Dense_1"]["kernel"][0], tuned.params["Dense_1"]["kernel"][0])


def test_the_dense_row_is_plain_training_gone_on_with(tmp_path):
    """Against a loop of its own."""
    made = study(epochs=1)
    runner = Runner(made, [5], tmp_path)
    found = stacked.member(runner.tune(Row(), runner.untaught)[0], 0).params
    params, train = stacked.member(runner.before, 0).params, runner.dataset.train
    orders = members.order(train, 64, 5, made.dense_epochs)
    tx = made.optimizer.build(len(orders))

    def loss(params, rows):
        x = jnp.asarray(train.images[rows]).reshape(len(rows), -1)
        for k in range(3):
            x = x @ params[f"Dense_{k}"]["kernel"] + params[f"Dense_{k}"]["bias"][None]
            x = jax.nn.relu(x) if k < 2 else x
        return -jax.nn.log_softmax(x)[jnp.arange(len(rows)), train.labels[rows]].mean()

    state = tx.init(params)
    for rows in orders:
        updates, state = tx.update(jax.grad(loss)(params, rows), state)
        params = jax.tree.map(jnp.add, params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, params)


def test_costs_of_factors_that_are_quantized(monkeypatch):
    monkeypatch.setattr("experiments.common.deployed.BATCHES", (1, 3))
    kernel = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    kernel[0, 0] = 0
    dense = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(6)}}
    transform = chain(low_rank(2, select="kernel"), fake_quant(bits=8))
    params, state = transform.init(dense["params"])
    packed = {"params": pack(transform, params, state)}
    assert isinstance(packed["params"]["kernel"], LowRank)

    def apply(params, model_state, x, *, train, key):
        return x @ params["kernel"] + params["bias"][None], model_state

    found = deployed((apply, dense), apply, [packed], np.ones((3, 8), np.float32), rounds=1)
    assert found["parameters"] == 2 * (8 + 6) + 6
    assert found["macs"] == 2 * (8 + 6)
    codes = [
        np.count_nonzero(np.asarray(unpack(part))) for part in (packed["params"]["kernel"].u, packed["params"]["kernel"].v)
    ]
    assert found["nonzeros"] == [sum(codes) + 6]
    assert sorted(found["latency_ratio"]) == ["1", "3"]
    whole = deployed((apply, dense), apply, [dense], np.ones((3, 8), np.float32), rounds=1)
    assert (whole["macs"], whole["nonzeros"], whole["nonzero_macs"]) == (48, [53], [47])
    base = quantize(dense["params"]["kernel"], Uniform(bits=3))
    corrected = {"params": {**dense["params"], "kernel": Adapted(base, LowRank(jnp.ones((8, 2)), jnp.ones((2, 6)), (8, 6)))}}
    both = deployed((apply, dense), apply, [corrected], np.ones((3, 8), np.float32), rounds=1)
    assert (both["parameters"], both["macs"]) == (48 + 2 * (8 + 6) + 6, 48 + 2 * (8 + 6))


def test_frozen_phases_hand_on_factors():
    """Factors of what was pruned: the masks act no more, and the product is near the pruned kernel."""
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)), jnp.float32)
    first = Settings(sparsity=0.5).build("prune", 1)
    params, state = first.init({"Dense_0": {"kernel": kernel}})
    params, state = first.update(params, state, params, 1)
    second = chain(freeze(first, state), low_rank(5))
    factored, _ = second.init(params)
    shown = second.view(factored, second.init(params)[1])["Dense_0"]["kernel"]
    assert int(jnp.sum(params["Dense_0"]["kernel"] == 0)) == 15
    np.testing.assert_allclose(shown, params["Dense_0"]["kernel"], atol=1e-5)


def test_ranks_halve_the_multiplications_whatever_the_shapes():
    weights = {"a": jnp.ones((784, 300)), "b": jnp.ones((300, 100)), "c": jnp.ones((100, 10))}
    ranks = EqualShares(fraction=0.5).ranks(weights, Svd())
    left = ranks["a"] * 1084 + ranks["b"] * 400 + 1000
    assert sorted(ranks) == ["a", "b"]
    assert 0.49 * 266_200 < left <= 0.5 * 266_200


def test_the_best_epoch_is_the_one_of_least_validation_error():
    history = [
        {"error": [0.3, 0.1], "validation_error": [0.2, 0.4], "nonzeros": [10, 10]},
        {"error": [0.1, 0.2], "validation_error": [0.3, 0.3], "nonzeros": [10, 10]},
    ]
    assert best_errors(history) == [0.3, 0.2]
    history[0]["nonzeros"] = [11, 10]  # the first run was not as sparse yet
    assert best_errors(history) == [0.1, 0.2]
    chosen_on_test = [{"error": [error], "nonzeros": [1]} for error in (0.5, 0.25, 0.3)]
    assert best_errors(chosen_on_test) == [0.25]


def test_the_tables_of_known_results():
    cell = {
        "seeds": [0, 1],
        "macs": 1000,
        "nonzeros": [10, 20],
        "latency_ratio": {"1": 0.5, "128": 2.0},
        "best_error": [0.1, 0.1],
    }
    results = [
        {**cell, "row": "dense", "settings": {"phases": [[]]}, "error": [0.1, 0.3], "file_bytes": 1000},
        {**cell, "row": "a", "settings": {"phases": [["a"]]}, "error": [0.1, 0.3], "file_bytes": 500},
        {**cell, "row": "b", "settings": {"phases": [["b"]]}, "error": [0.2, 0.4], "file_bytes": 250},
        {**cell, "row": "a+b", "settings": {"phases": [["a", "b"]]}, "error": [0.3, 0.5], "file_bytes": 100},
        {**cell, "row": "b+a", "settings": {"phases": [["b", "a"]]}, "error": [0.4, 0.6], "file_bytes": 110},
    ]
    lines = tabulate(results, COLUMNS, reference(results, DENSE))
    assert lines[1][:3] == ("dense", "80.00 ± 14.14", "")
    assert lines[4] == ("a+b", "60.00 ± 14.14", "-20.00", "10.0x", "90.00 ± 0.00", "15", "100", "1,000", "0.50", "2.00")
    assert pair_notes(results) == [
        "`a+b`: smaller than either (2.50x of `b`), -10.00 points against that, -20.00 against `a`, the more accurate one."
    ]
    assert order_notes(results) == ["`b+a`: -10.00 points against `a+b`, 110 against 100 bytes."]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Row(phases=()), "at least one"),
        (lambda: Row(phases=(("shrink",),)), "no technique 'shrink'"),
        (lambda: Row(phases=(("prune", "prune"),)), "no technique twice"),
        (lambda: study(rows=(Row(), Row())), "a name of its own"),
        (lambda: study(only=("b",)), "no row 'b'"),
        (lambda: study(rows=(Row(phases=(("prune",),) * 3),)), "share 2 epochs equally"),
        (lambda: study(dense_epochs=0), "dense_epochs"),
        (lambda: study(scan=False), "scan"),
        (lambda: Settings(sparsity=1.0), "sparsity"),
        (lambda: Settings(kept=0.0), "kept"),
        (lambda: EqualShares(fraction=0), "fraction"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
