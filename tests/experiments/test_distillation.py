"""Studies of distillation: every config runs, rows are kept, all rows have one teacher, and what the table says is so."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import distillation
from experiments.common import cli, members
from experiments.common.columns import COSTS, setting, tabulate
from experiments.common.config import Adam, Digits, load_config
from experiments.studies.distillation import LEARNS_FROM, Distillation, Row, Runner, accuracies_by_bits
from lepton_jax.data import from_arrays
from lepton_jax.distillation import Distill, FeatureTerm, Linear, LogitTerm, Outputs, hints
from lepton_jax.models import LeNet300
from lepton_jax.training import stacked

CONFIGS = cli.ROOT / "configs"
# The rows are the same, and temperatures differ in a number.
STUDIES = {"distillation_fashion_mnist": ("none", "hinton_t4", "dkd", "fitnets", "at", "rkd"), "distillation_mnist": ("none",)}

TINY = """
from experiments.common.config import Digits
from experiments.studies.distillation import Distillation, Row
from lepton_jax.distillation import Distill, LogitTerm
from lepton_jax.models import LeNet300
from lepton_jax.training import stacked
from lepton_jax.training import stacked


def get_config():
    soft = Distill(terms=(LogitTerm(),), label_weight=0.0)
    return Distillation(
        name="tiny",
        data=Digits(),
        model=LeNet300(hidden=(6,)),
        teacher=LeNet300(hidden=(20,)),
        teacher_epochs=1,
        epochs=1,
        files=False,
        rows=(Row(name="none"), Row(name="soft", distill=soft, temperature=1.0), Row(name="none", bits=4)),
    )
"""


@pytest.fixture
def launch(run_script):
    """Run the command line in this process; return the exit status."""
    return partial(run_script, distillation)


@pytest.mark.parametrize(("name", "only"), STUDIES.items())
def test_every_study_two_steps(launch, name, only, tmp_path, capsys, small_images):
    folder = tmp_path / "run"
    trial = ("--max-steps", 2, "--no-files", "--batch-size", 16, "--run-dir", folder)
    assert launch("--config", CONFIGS / f"{name}.py", *trial, "--only", *only) == 0, capsys.readouterr().err
    config = load_config(CONFIGS / f"{name}.py", Distillation)
    results = json.loads((folder / "summary.json").read_text())["results"]
    rows = [(row.name, row.bits) for row in config.rows if row.name in only]
    assert [(result["row"], result["settings"]["bits"]) for result in results[1:]] == rows
    # 784 x 300 + 300 x 100 + 100 x 10 and 784 x 30 + 30 x 10 + 10 x 10, with their biases.
    assert [result["parameters"] for result in results] == [266_610] + [23_970] * len(rows)
    assert (folder / "accuracy.png").stat().st_size > 0


def test_finished_rows_are_kept_and_missing_ones_run_again(launch, tmp_path, capsys):
    config, folder = tmp_path / "tiny.py", tmp_path / "run"
    config.write_text(TINY)
    arguments = ("--config", config, "--run-dir", folder, "--seeds", 2)
    assert launch(*arguments) == 0, capsys.readouterr().err
    rows = {path.stem: path for path in (folder / "rows").iterdir()}
    assert sorted(rows) == ["none", "none-4bit", "soft", "teacher"]
    before = {name: json.loads(path.read_text()) for name, path in rows.items()}
    written = {name: path.stat().st_mtime_ns for name, path in rows.items()}
    rows["soft"].unlink()
    (folder / "summary.json").unlink()
    assert launch(*arguments, "--resume") == 0, capsys.readouterr().err
    # The row needs the teachers, which are trained again, to the same answers; their own result is kept.
    assert {name for name, path in rows.items() if path.stat().st_mtime_ns != written[name]} == {"soft"}
    for name in ("soft", "teacher"):
        again = json.loads(rows[name].read_text())
        assert [again[key] for key in ("error", "validation_error")] == [before[name][k] for k in ("error", "validation_error")]


def test_students_learn_what_their_own_seeds_teacher_answers():
    """Against a loop of its own, written out: one seed's adapter, gradients by hand-written loss, plain optax."""
    rng = np.random.default_rng(3)
    images, labels = rng.random((70, 8, 8, 1), np.float32), np.arange(70) % 10
    dataset = from_arrays((images, labels), (images[:10], labels[:10]), num_classes=10, validation=10)
    term = FeatureTerm(loss=hints, student="Dense_0", teacher="hidden", adapter=Linear(), weight=0.5)
    row = Row(name="both", distill=Distill(terms=(LogitTerm(weight=0.9), term), label_weight=0.1))
    made = study(model=LeNet300(hidden=(6,)), rows=(row,), epochs=2, batch_size=20, optimizer=Adam(learning_rate=0.01))
    seeds = (5, 8)
    logits, hidden = (jnp.asarray(rng.normal(size=(2, 60, width)), jnp.float32) for width in (10, 7))
    runner = Runner(made, seeds, CONFIGS, dataset)
    found = runner.learn(row, Outputs(logits, {"hidden": (hidden,)}))[0]
    none = runner.learn(row, Outputs(logits[::-1], {"hidden": (hidden,)}))[0]
    assert found.params["adapters"]["hints"]["0"]["kernel"].shape == (2, 6, 7)
    assert not np.allclose(found.params["student"]["Dense_1"]["kernel"], none.params["student"]["Dense_1"]["kernel"])

    train, steps = dataset.train, 6
    tx = optax.adam(optax.cosine_decay_schedule(0.01, steps, alpha=0.01))
    seed_key, init_key = jax.random.split(jax.random.key(seeds[1]))
    student = members.initial(made, dataset, init_key)[0]
    adapter_key = jax.random.split(seed_key)[1]
    kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(jax.random.fold_in(adapter_key, 1), 0), (6, 7))
    params = (student, {"bias": jnp.zeros(7), "kernel": kernel})

    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)

    def loss(params, rows):
        (net, adapter), x = params, images[rows].reshape(len(rows), -1)
        inner = x @ net["Dense_0"]["kernel"] + net["Dense_0"]["bias"][None]
        ours = jax.nn.log_softmax(jax.nn.relu(inner) @ net["Dense_1"]["kernel"] + net["Dense_1"]["bias"][None])
        theirs = jax.nn.log_softmax(logits[1][rows])
        soft = jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=1).mean()
        hint = jnp.mean((inner @ adapter["kernel"] + adapter["bias"][None] - hidden[1][rows]) ** 2) / 2
        return 0.9 * soft + 0.5 * hint - 0.1 * ours[jnp.arange(len(rows)), labels[rows]].mean()

    @jax.jit
    def step(params, opt_state, rows):
        updates, opt_state = tx.update(jax.grad(loss)(params, rows), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for epoch in range(2):
        for rows in members.order(train, 20, seeds[1], epoch):
            params, opt_state = step(params, opt_state, rows)
    mine = stacked.member(found, 1).params
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), (mine["student"], mine["adapters"]["hints"]["0"]), params
    )


def test_the_tables_of_known_results():
    cell = {"seeds": [0, 1], "seconds": 4.0, "settings": {"bits": None}, "error": [0.1, 0.3]}
    results = [
        {**cell, "row": "none"},
        {**cell, "row": "soft", "error": [0.1, 0.2]},
        {
            **cell,
            "row": "none",
            "settings": {"bits": 4},
            "error": [0.2, 0.2],
            "file_bytes": 1234,
            "validation_error": [0.5, 0.5],
        },
    ]
    assert accuracies_by_bits(results) == [
        ("learns from", "float32", "gain", "4 bits", "gain"),
        ("none", "80.00 ± 14.14", "", "80.00 ± 0.00", ""),
        ("soft", "85.00 ± 7.07", "+5.00", "", ""),
    ]
    weights = setting("weights", "bits", lambda bits: f"{bits} bits" if bits else "float32")
    assert tabulate(results, (LEARNS_FROM, weights, *COSTS))[2:] == [
        ("soft", "float32", "", "", "", "", "", "", "2.0"),
        ("none", "4 bits", "50.00 ± 0.00", "", "1,234", "", "", "", "2.0"),
    ]


def study(**changes) -> Distillation:
    base = {"name": "s", "data": Digits(), "model": LeNet300(), "teacher": LeNet300(), "epochs": 3, "teacher_epochs": 3}
    return Distillation(**{**base, "rows": (Row(name="none"),), **changes})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Row(name="a b"), "must be a word"),
        (lambda: Row(name="teacher"), "other than 'teacher'"),
        (lambda: Row(name="a", bits=1), "bits"),
        (lambda: study(rows=(Row(name="a"),) * 2), "each with a name of its own"),
        (lambda: study(only=("b",)), "no row 'b'"),
        (lambda: study(teacher_epochs=0), "teacher_epochs"),
        (lambda: dataclasses.replace(study(), scan=False), "scan"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
