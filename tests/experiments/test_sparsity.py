"""Studies of sparsity: every config runs, finished cells are kept, and what the table says is so."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lottery_ticket, sparsity
from experiments.common import cli
from experiments.common.columns import tabulate
from experiments.common.config import Digits, load_config, to_json
from experiments.common.mask_finders import AtInit, OneShot
from experiments.common.sparse_methods import AcDc, Dense, Gradual, Rigl, SoftThreshold, Surgery
from experiments.studies.lottery_ticket import LotteryTicket, Tournament
from experiments.studies.sparsity import SIZES, Row, Sparsity, accuracies_by_sparsity, plot
from lepton_jax.models import LeNet300

CONFIGS = cli.ROOT / "configs"
STUDIES = {
    "gradual_pruning": ("dense", "one_shot", "gradual_erk", "surgery", "ac_dc", "soft_threshold"),
    "gradual_pruning_lenet5": ("dense", "gradual_global"),
    "prune_at_init": ("random", "snip", "grasp_shuffle", "synflow_reinit", "magnitude_invert"),
    "sparse_training": ("static", "set", "rigl"),
}
"""Every config, and so many of its rows that each method and ablation runs once."""

TINY = """
from experiments.common.config import Digits
from experiments.common.mask_finders import OneShot
from experiments.common.sparse_methods import Dense
from experiments.studies.sparsity import Row, Sparsity
from lepton_jax.models import LeNet300


def get_config():
    return Sparsity(
        name="tiny",
        data=Digits(),
        model=LeNet300(hidden=(6,)),
        epochs=2,
        batch_size=128,
        sparsities=(0.5, 0.9),
        rows=(Row(name="dense", method=Dense()), Row(name="one_shot", method=OneShot(), dense_epochs=1)),
    )
"""
TICKET = """
from experiments.common.config import Digits
from experiments.studies.lottery_ticket import LotteryTicket
from lepton_jax.models import LeNet300


def get_config():
    return LotteryTicket(name="ticket", data=Digits(), model=LeNet300(hidden=(6,)), epochs=2, rounds=2, files=False)
"""


@pytest.mark.parametrize("name", [*STUDIES, "lottery_ticket"])
def test_every_config_is_data(name):
    config = load_config(CONFIGS / f"{name}.py", LotteryTicket if name == "lottery_ticket" else Sparsity)
    assert json.loads(json.dumps(to_json(config)))["name"] == name


@pytest.mark.parametrize(("name", "rows"), STUDIES.items(), ids=STUDIES)
def test_every_study_two_steps(run_script, name, rows, tmp_path, capsys, small_images):
    folder = tmp_path / "run"
    trial = ("--max-steps", 2, "--sparsities", 0.9, "--no-files", "--batch-size", 16, "--only", *rows)
    status = run_script(sparsity, "--config", CONFIGS / f"{name}.py", "--run-dir", folder, *trial)
    assert status == 0, capsys.readouterr().err
    results = json.loads((folder / "summary.json").read_text())["results"]
    config = load_config(CONFIGS / f"{name}.py", Sparsity)
    assert [result["row"] for result in results] == list(rows)
    for result in results:
        assert 0 <= result["error"][0] <= 1
        if isinstance(next(row.method for row in config.rows if row.name == result["row"]), (OneShot, AtInit, Rigl)):
            assert result["reached"] == [pytest.approx(0.9, abs=1e-4)]
    assert (folder / "accuracy.png").stat().st_size > 0


def test_the_lottery_two_steps(run_script, tmp_path, capsys, small_images):
    folder = tmp_path / "run"
    trial = ("--config", CONFIGS / "lottery_ticket.py", "--max-steps", 2, "--rounds", 1, "--no-files", "--run-dir", folder)
    assert run_script(lottery_ticket, *trial) == 0, capsys.readouterr().err
    results = json.loads((folder / "summary.json").read_text())["results"]
    assert [result["row"] for result in results] == ["dense", "weight_rewinding", "rate_rewinding", "random_reinit"]
    assert [result["reached"] for result in results[1:]] == [[pytest.approx(0.5, abs=1e-4)]] * 3


def test_finished_cells_are_kept_and_missing_ones_run_again(run_script, tmp_path, capsys):
    config, folder = tmp_path / "tiny.py", tmp_path / "run"
    config.write_text(TINY)
    arguments = (sparsity, "--config", config, "--run-dir", folder, "--seeds", 2)
    assert run_script(*arguments) == 0, capsys.readouterr().err
    cells = sorted((folder / "rows").iterdir())
    assert [cell.name for cell in cells] == ["dense-0.json", "one_shot-50.json", "one_shot-90.json"]
    before = {cell: json.loads(cell.read_text()) for cell in cells}
    written = {cell: cell.stat().st_mtime_ns for cell in cells}

    cells[1].unlink()
    (folder / "summary.json").unlink()
    assert run_script(*arguments) == 1
    assert "add --resume" in capsys.readouterr().err
    assert run_script(*arguments, "--resume") == 0, capsys.readouterr().err
    assert [cell for cell in cells if cell.stat().st_mtime_ns != written[cell]] == [cells[1]]
    again = json.loads(cells[1].read_text())
    for name in ("error", "validation_error", "nonzeros", "reached", "file_bytes"):
        assert again[name] == before[cells[1]][name], name

    # What is said of the network is what the rule of the counts makes of 64 x 6 + 6 x 10 weights in kernels.
    sizes = {cell["settings"]["sparsity"]: cell for cell in before.values()}
    assert sizes[0.5]["reached"] == [1 - 222 / 444] * 2
    assert sizes[0.9]["reached"] == [1 - 44 / 444] * 2
    assert all(44 <= nonzeros <= 44 + 16 for nonzeros in sizes[0.9]["nonzeros"])  # and 16 biases
    assert sizes[0.9]["file_bytes"] < sizes[0.5]["file_bytes"] < sizes[0.0]["file_bytes"]


def test_an_interrupted_lottery_ends_in_the_same_tickets(run_script, tmp_path, capsys, monkeypatch):
    config, whole, cut = tmp_path / "ticket.py", tmp_path / "whole", tmp_path / "cut"
    config.write_text(TICKET)
    arguments = (lottery_ticket, "--config", config, "--seeds", 2, "--run-dir")
    assert run_script(*arguments, whole) == 0, capsys.readouterr().err

    real, calls = Tournament._round, []

    def stops(self, number, *rest):
        if number == 2 and not calls:
            calls.append(number)
            raise KeyboardInterrupt
        return real(self, number, *rest)

    monkeypatch.setattr(Tournament, "_round", stops)
    assert run_script(*arguments, cut) == 130
    assert run_script(*arguments, cut, "--resume") == 0, capsys.readouterr().err
    one, other = (json.loads((folder / "summary.json").read_text())["results"] for folder in (whole, cut))
    assert len(one) == 1 + 2 * 3
    for mine, theirs in zip(one, other, strict=True):
        for name in ("row", "settings", "error", "nonzeros", "reached"):
            assert mine[name] == theirs[name], name


def test_the_tables_of_known_results():
    cell = {"seeds": [0, 1], "error": [0.1, 0.3], "nonzeros": [10, 20], "reached": [0.5, 0.5], "seconds": 4.0}
    cell |= {"best_error": [0.1, 0.1], "latency_ratio": {"1": 0.5, "128": 2.0}}
    results = [
        {**cell, "row": "dense", "settings": {"sparsity": 0.0}},
        {**cell, "row": "a", "settings": {"sparsity": 0.5}, "file_bytes": 1234},
    ]
    assert accuracies_by_sparsity(results) == [
        ("method", "0 %", "50 %"),
        ("dense", "80.00 ± 14.14", ""),
        ("a", "", "80.00 ± 14.14"),
    ]
    assert tabulate(results, SIZES)[2] == (*("a", "50 %", "50.00 %", "15", "1,234", "", "90.00 ± 0.00", "0.50", "2.00", "2.0"),)


@pytest.mark.parametrize("rows", [("dense",), ("dense", "a"), ("a",)])
def test_a_figure_of_few_points(tmp_path, rows):
    cell = {"seeds": [0], "error": [0.1], "reached": [0.9], "settings": {"sparsity": 0.9}}
    plot(tmp_path / "few.png", [{**cell, "row": row} for row in rows])
    assert (tmp_path / "few.png").stat().st_size > 0


def test_surgery_begins_at_the_sparsity_asked_for():
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(40, 50)), jnp.float32)},
        "b": {"kernel": jnp.asarray(3 * rng.standard_t(4, size=(30, 10)), jnp.float32)},
    }
    for asked in (0.3, 0.9, 0.98):
        state = Surgery(sparsity=asked).build(100, jax.random.key(0)).init(params)[1]
        left = sum(int(mask.sum()) for mask in state.masks.values())
        assert left == pytest.approx((1 - asked) * 2300, abs=1.01)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gradual(begin=0.8, end=0.7), "begin < end"),
        (lambda: AcDc(phase=0.0), "phase"),
        (lambda: Rigl(sparsity=1.0), r"sparsity must be in \[0, 1\)"),
        (lambda: SoftThreshold(sparsity=0.7, penalties={0.5: 1.0}), "none for a sparsity of 0.7"),
        (lambda: Row(name="a b", method=Dense(), dense_epochs=-1), "(?s)name.*dense_epochs"),
        (lambda: study(rows=(Row(name="a", method=Dense()),) * 2), "a name of its own"),
        (lambda: study(only=("b",)), "no row 'b'"),
        (lambda: study(rows=(Row(name="a", method=OneShot(), dense_epochs=3),)), "leave epochs"),
        (lambda: study(sparsities=(1.0,)), r"\[0, 1\)"),
        (lambda: study(epochs=0), "epochs"),
        (lambda: LotteryTicket(name="l", data=Digits(), model=LeNet300(), epochs=3, rewind_epochs=3), "rewind_epochs"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def study(**changes) -> Sparsity:
    rows = (Row(name="a", method=Dense()),)
    return Sparsity(**{"name": "s", "data": Digits(), "model": LeNet300(), "epochs": 3, "rows": rows, **changes})
