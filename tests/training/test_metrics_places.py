"""Metrics beyond JSON lines: TensorBoard's event files read back byte by byte, Weights & Biases, several at once."""

import struct
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lepton_jax.training import MetricsWriter, TensorBoardWriter, WandbWriter, Writers, import_extra, read_metrics


def events(folder: Path) -> list[Event]:
    """All events of a folder, file after file, as the record format has them: length, checksum, data, checksum."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            found.append(Event.FromString(data[place + 12 : place + 12 + length]))
            place += 12 + length + 4
        assert place == len(data)
    return found


def shown(folder: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows of a folder: a start of a session hides what has its step or a later one."""
    rows: list[tuple[int, str, float]] = []
    for event in events(folder):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            rows = [row for row in rows if row[0] < event.step]
        rows += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return rows


def test_tensorboard_has_a_scalar_for_each_value(tmp_path):
    writer = TensorBoardWriter(tmp_path, phase="dense")
    writer.write(5, {"loss": jnp.float32(0.5), "eval_error": np.float64(0.25), "count": 3})
    # Flushed as it is written, before anything is closed.
    assert shown(tmp_path / "dense") == [(5, "loss", 0.5), (5, "eval_error", 0.25), (5, "count", 3.0)]
    writer.close()
    writer.close()
    TensorBoardWriter(tmp_path, phase="prune").close()
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_rewound_tensorboard_shows_what_an_uninterrupted_run_would(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.rewind(0)
    assert not list(tmp_path.iterdir())
    for step in (10, 20, 30):
        writer.write(step, {"loss": step / 4})
    writer.close()

    resumed = TensorBoardWriter(tmp_path)
    resumed.rewind(20)
    for step in (30, 40):
        resumed.write(step, {"loss": step / 2})
    resumed.close()
    assert shown(tmp_path) == [(10, "loss", 2.5), (20, "loss", 5.0), (30, "loss", 15.0), (40, "loss", 20.0)]


class Run:
    """As much of a run of Weights & Biases as is used."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.axes: dict[str, str] = {}

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, row: dict) -> None:
        self.rows.append(row)


def test_wandb_has_a_step_for_each_phase():
    run = Run()
    dense, pruned, plain = WandbWriter(run, phase="dense"), WandbWriter(run, phase="prune"), WandbWriter(run)
    dense.write(10, {"loss": jnp.float32(0.5)})
    pruned.rewind(0)
    pruned.write(5, {"loss": np.float32(0.25)})
    plain.write(1, {"error": 0.125})
    dense.close()
    assert run.axes == {"dense/*": "dense/step", "prune/*": "prune/step", "*": "step"}
    assert run.rows == [
        {"dense/step": 10, "dense/loss": 0.5},
        {"prune/step": 5, "prune/loss": 0.25},
        {"step": 1, "error": 0.125},
    ]
    assert all(type(value) in (int, float) for row in run.rows for value in row.values())


def test_writers_do_all_to_all(tmp_path):
    run = Run()
    lines, board = MetricsWriter(tmp_path / "metrics.jsonl"), TensorBoardWriter(tmp_path / "board")
    writers = Writers(lines, board, WandbWriter(run))
    for step in (10, 20):
        writers.write(step, {"loss": 0.5})
    writers.rewind(10)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10]
    assert shown(tmp_path / "board") == [(10, "loss", 0.5)]
    assert [row["step"] for row in run.rows] == [10, 20]
    writers.close()


def test_what_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"tensorboardX is not installed.*lepton-jax\[tensorboard\]"):
        TensorBoardWriter(tmp_path)


def test_a_fault_inside_an_extra_is_not_called_a_missing_extra(tmp_path, monkeypatch):
    (tmp_path / "broken_extra.py").write_text("import no_such_module_of_theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_theirs") as caught:
        import_extra("broken_extra", "extra")
    assert "pip install" not in str(caught.value)
