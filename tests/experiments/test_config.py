"""Configs: every file gives what it should, and what is wrong is said."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flax import linen as nn

from experiments.common.config import Adam, Config, Digits, Phase, load_config, load_sweep, to_json
from experiments.common.methods import Prune
from lepton_jax.models import LeNet300

FILES = sorted((Path(__file__).parents[2] / "configs").glob("deep_compression_*.py"))


class Activated(nn.Module):
    activation: Callable


def small(**changes) -> Config:
    phases = (Phase(name="dense", epochs=1),)
    return dataclasses.replace(Config(name="t", data=Digits(), model=LeNet300(hidden=(4,)), phases=phases), **changes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_gives_configs_that_json_can_hold(path):
    rows = {"get_config": load_config(path), **load_sweep(path)}
    for row in rows.values():
        text = json.dumps(to_json(row))
        assert json.loads(text)["name"] == row.name
        assert row.name == path.stem or row.name.startswith((f"{path.stem}.", f"{path.stem}_"))  # a sweep's row


def test_there_are_the_three_configs_of_the_main_job():
    assert {path.stem for path in FILES} >= {
        "deep_compression_digits",
        "deep_compression_mnist_lenet300",
        "deep_compression_mnist_lenet5",
    }


def test_equal_configs_have_equal_json_and_others_differ():
    assert to_json(small()) == to_json(small())
    assert to_json(small(seed=1)) != to_json(small())
    assert to_json(small(model=LeNet300(hidden=(5,)))) != to_json(small())


def test_json_is_the_same_in_every_process():
    """Functions are named without their addresses, or a run could not be resumed."""
    both = [to_json(small(model=Activated(activation=function))) for function in (nn.relu, nn.tanh)]
    assert both[0] != both[1]
    assert "relu" in both[0]["model"]
    assert "0x" not in json.dumps(both)


IMPORT = "from experiments.common.config import Config\n"


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("def get_config():\n    return 3\n", TypeError, "it returned int"),
        ("x = 1\n", ValueError, "must define get_config"),
        ("get_config = 3\n", TypeError, r"get_config must be a function, .*; got 3 \(int\)"),
        ("def get_config(:\n", ValueError, "line 1"),
        ("import nosuchmodule\n", ValueError, "nosuchmodule"),
        ("def get_config():\n    return Confg()\n", ValueError, "Confg"),
        (f"{IMPORT}def get_config():\n    return Config(batch_sise=3)\n", TypeError, "line 3: .*batch_sise.*mean batch_size"),
        (f"{IMPORT}def get_config():\n    return Config(zzz=3)\n", TypeError, r"'zzz'\. Config has name, data, model"),
        (f"{IMPORT}def get_config():\n    return Config(name='a')\n", TypeError, "line 3: .*missing .*'data'"),
        ("def get_config():\n    return 3\ndef sweep():\n    return {'a': 3}\n", TypeError, "get_config"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, kind, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(kind, match=says) as caught:
        load_config(path)
    assert "mine.py" in str(caught.value)


def test_a_missing_file_lists_its_neighbours(tmp_path):
    (tmp_path / "other.py").write_text("")
    with pytest.raises(ValueError, match=r"no config file .*mine\.py.*other\.py"):
        load_config(tmp_path / "mine.py")


def test_a_wrong_sweep_names_its_rows(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return 3\ndef sweep():\n    return {'first': 3}\n")
    with pytest.raises(TypeError, match="first"):
        load_sweep(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Prune(sparsity=1.9), r"sparsity must be in \[0, 1\).*got 1\.9"),
        (lambda: Prune(sparsity=0.9, begin=0.7, end=0.6), "begin < end"),
        (lambda: Phase(name="a b", epochs=0, l2=-1.0), "(?s)epochs.*l2.*name"),
        (lambda: Adam(learning_rate=0), "learning_rate"),
        (lambda: small(batch_size=0, scan=0), "(?s)batch_size.*scan"),
        (lambda: small(seed=-1, max_steps=0), "(?s)max_steps: must be at least 1; got 0.*seed: must be at least 0; got -1"),
        (lambda: small(phases=()), "at least one"),
        (lambda: small(batch_size="64"), r"batch_size: must be a whole number; got '64' \(str\)"),
        (lambda: small(phases=3, seed=None), r"(?s)phases: must be a tuple.*got 3.*seed: must be a whole number; got None"),
        (lambda: small(phases=(Phase(name="a", epochs=1),) * 2), "a name of its own"),
        (lambda: small(phases=(Phase(name="a", epochs=1, transforms=(Prune(sparsity=0.5),)),)), "dense reference"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
