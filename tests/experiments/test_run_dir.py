"""The folder of a run: what made it, and where its metrics go."""

import importlib.metadata
import json
import platform
import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import jax
import pytest

from experiments.common import cli, tables
from experiments.common.environment import FILE, environment
from experiments.common.run_dir import claim
from experiments.common.writers import Logs
from lepton_jax.training import read_metrics


@pytest.fixture
def offline(monkeypatch):
    """A stand-in for wandb, which keeps what it is given."""
    kept = SimpleNamespace(opened=[], rows=[], finished=0)

    def finish() -> None:
        kept.finished += 1

    def init(**options: object) -> SimpleNamespace:
        kept.opened.append(options)
        return SimpleNamespace(log=kept.rows.append, define_metric=lambda name, step_metric: None, finish=finish)

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return kept


@pytest.fixture
def asked_anew(monkeypatch):
    """Forget what git said earlier in this process."""
    monkeypatch.setattr("experiments.common.environment.revision", tables.revision.__wrapped__)


def test_a_folder_says_what_made_it(tmp_path, monkeypatch, asked_anew):
    monkeypatch.setattr(sys, "argv", [str(cli.ROOT / "experiments" / "sparsity.py"), "--seeds", "2"])
    monkeypatch.setattr(tables.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="abc123-dirty\n"))
    claim(tmp_path / "run", {"name": "a", "seeds": [3, 4]}, resume=False)
    made = json.loads((tmp_path / "run" / FILE).read_text())
    assert made == {
        "revision": "abc123",
        "dirty": True,
        "command": "python -m experiments.sparsity --seeds 2",
        "seeds": [3, 4],
        "python": platform.python_version(),
        "packages": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        },
        "backend": jax.default_backend(),
        "cores": made["cores"],
    }
    assert made["cores"] >= 1
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"name": "a", "seeds": [3, 4]}


def test_a_resumed_run_keeps_the_first_and_adds_itself(tmp_path, monkeypatch):
    def said(*options: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["experiments.a", *options])
        claim(tmp_path / "run", {"seed": 7}, resume="--resume" in options)
        return json.loads((tmp_path / "run" / FILE).read_text())

    first = said("--epochs", "3")
    assert first["seeds"] == [7]
    assert "resumed" not in first
    for count in (1, 2):
        later = said("--epochs", "3", "--resume")
        assert {name: later[name] for name in first} == first
        assert [one["command"] for one in later["resumed"]] == ["python -m experiments.a --epochs 3 --resume"] * count

    # A finished run that is made anew begins with a new one, and a refused one leaves it as it is.
    (tmp_path / "run" / "summary.json").write_text("{}")
    for place in ("tensorboard", "wandb"):
        (tmp_path / "run" / place).mkdir()
    assert said("--epochs", "4")["command"] == "python -m experiments.a --epochs 4"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", FILE]
    before = (tmp_path / "run" / FILE).read_bytes()
    with pytest.raises(ValueError, match="belongs to another config"):
        claim(tmp_path / "run", {"seed": 8}, resume=True)
    assert (tmp_path / "run" / FILE).read_bytes() == before


def test_commands_have_no_path_of_this_machine(monkeypatch):
    config = cli.ROOT / "configs" / "qat_bits.py"
    options = ["--config", str(config), "--data=/big/disk/images", "--run-dir", "/big/disk/run", "--name", "a b", "--x=/y=1"]
    monkeypatch.setattr(sys, "argv", [str(cli.ROOT / "experiments" / "benchmarks" / "coders.py"), *options])
    said = (
        "python -m experiments.benchmarks.coders --config configs/qat_bits.py --data=images --run-dir run --name 'a b' --x=/y=1"
    )
    assert tables.command() == said
    monkeypatch.setattr(sys, "argv", ["a", "--resume", "--run-dir=/x", "--seeds", "3", "--run-dir", "/x", "--only", "b"])
    assert "`python -m experiments.sparsity --seeds 3 --only b`" in tables.provenance({"abc"}, "sparsity")


def test_without_git_the_revision_is_unknown(monkeypatch, asked_anew):
    monkeypatch.setattr(tables.shutil, "which", lambda name: None)
    made = environment([0])
    assert (made["revision"], made["dirty"]) == ("unknown", None)


def test_a_run_writes_its_metrics_to_all_places(command, tiny, tmp_path, capsys, offline):
    run_dir = tmp_path / "run"
    arguments = ("--config", tiny, "--run-dir", run_dir, "--max-steps", 3)
    assert command(*arguments, "--writers", "tensorboard", "wandb") == 0, capsys.readouterr().err
    lines = read_metrics(run_dir / "metrics.jsonl")
    expected = [{f"{row['phase']}/{name}": value for name, value in row.items() if name != "phase"} for row in lines]
    assert offline.rows == expected
    assert {row["phase"] for row in lines} == {"dense", "pruned", "quantized"}
    assert [path.name for path in sorted((run_dir / "tensorboard").iterdir())] == ["dense", "pruned", "quantized"]
    (opened,) = offline.opened
    assert (opened["name"], opened["dir"], opened["config"]["name"]) == ("run", str(run_dir), "tiny")
    assert offline.finished == 1


def test_a_resumed_run_goes_on_with_its_wandb_run(tmp_path, offline):
    for _ in range(2):
        with Logs(tmp_path, "a", {}, ["wandb"]):
            pass
    with Logs(tmp_path / "other", "a", {}, ["wandb"]):
        pass
    ids = [opened["id"] for opened in offline.opened]
    assert ids[0] == ids[1] != ids[2]


def test_a_missing_extra_is_named_before_anything_is_written(command, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert command("--config", tiny, "--run-dir", tmp_path / "run", "--writers", "wandb") == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ["error: wandb is not installed; it is in an extra: pip install 'lepton-jax[wandb]'."]
    assert not (tmp_path / "run").exists()


def test_a_damaged_config_says_where_and_what_to_do(tmp_path):
    claim(tmp_path / "run", {"seed": 0}, resume=False)
    (tmp_path / "run" / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"run/config\.json is damaged .* Choose another --run-dir, or delete that folder"):
        claim(tmp_path / "run", {"seed": 0}, resume=True)
    claim(tmp_path / "other", {"seed": 0}, resume=False)
    (tmp_path / "other" / FILE).write_text("")
    with pytest.raises(ValueError, match=r"other/environment\.json is damaged .* Delete it"):
        claim(tmp_path / "other", {"seed": 0}, resume=True)


def test_a_folder_whose_claim_was_killed_can_be_claimed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.0a1b2c3d.lepton-part").write_text('{"se')
    claim(tmp_path / "run", {"seed": 0}, resume=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", FILE]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"file is a file; a run needs a folder. Choose another --run-dir"):
        claim(tmp_path / "file", {"seed": 0}, resume=False)


def test_the_second_process_in_a_folder_is_refused(tmp_path, command, tiny, capsys):
    script = "import sys, time; from lepton_jax.core import locks; locks.hold(sys.argv[1]); print(flush=True); time.sleep(60)"
    (tmp_path / "run").mkdir()
    process = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(process, cwd=cli.ROOT, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        assert command("--config", tiny, "--run-dir", tmp_path / "run", "--max-steps", 3) == 1
        holder.kill()
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"error: {tmp_path / 'run'} is in use by" in said[0]
    assert not list((tmp_path / "run").iterdir())
    claim(tmp_path / "run", {"seed": 0}, resume=False)  # a dead owner holds nothing


def test_sigterm_ends_an_experiment_with_143(monkeypatch, capsys):
    def main(options):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sys, "argv", ["x"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        cli.run(main, default_config="deep_compression_digits.py", description="")
    assert stop.value.code == 143
    assert capsys.readouterr().err.strip().splitlines() == ["terminated", "Go on with the same command and --resume."]
    assert signal.getsignal(signal.SIGTERM) is before
