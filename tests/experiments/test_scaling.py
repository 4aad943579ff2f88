"""The scaling study: rows train in processes of their own, and are compared with one device."""

import json

import pytest

from experiments import scaling
from experiments.common import cli
from experiments.common.config import load_config
from experiments.studies.scaling import Row, Scaling

CONFIG = cli.ROOT / "configs" / "scaling.py"


def test_six_steps_on_one_and_two_devices(run_script, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ("--only", "one_device", "two_devices_fsdp", "--max-steps", 6, "--hidden", 16, "--run-dir", folder)
    assert run_script(scaling, "--config", CONFIG, *words) == 0, capsys.readouterr().err
    one, two = json.loads((folder / "summary.json").read_text())["results"]
    assert len(one["losses"][0]) == len(two["losses"][0]) == 6
    assert one["masks"] == two["masks"]
    assert one["zeros"] == two["zeros"] == [round(0.9 * (64 * 16 + 16 * 10))]
    assert one["losses"][0] == pytest.approx(two["losses"][0], abs=2e-6)
    assert not sum(one["sent"].values())
    assert two["sent"]["all-gather"] > 0
    assert "runs with the same masks" in (folder / "report.md").read_text()


def test_the_config_has_each_division_it_is_asked_for():
    rows = load_config(CONFIG, Scaling).rows
    assert {(row.devices, row.processes) for row in rows} == {(1, 1), (2, 1), (4, 1), (2, 2)}
    with pytest.raises(ValueError, match="multiple of the processes; got 3 and 2"):
        Row(name="a", devices=3, processes=2)
