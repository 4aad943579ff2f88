"""Budgets of the whole file and of time: kept by the file that is saved and by the engine that runs it."""

import builtins

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import account, save
from lepton_jax.deploy import Gate
from lepton_jax.tuning import Bits, Budget, Channels, Choice, Rank, Recipe, Table, allocate, measure, refine, tune
from lepton_jax.tuning import deployed as engines
from lepton_jax.tuning import engine as layer_times


def net(variables, x):
    return jnp.tanh(x @ variables["a"]) @ variables["b"]


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(11)
    variables = {"a": rng.normal(size=(48, 40)) / 7, "b": rng.normal(size=(40, 6))}
    variables = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in variables.items()}
    x = [jnp.asarray(rng.normal(size=(16, 48)), jnp.float32)]
    return variables, x, measure(net, variables, x, [Bits(2, 4, 8), Rank(0.25)], progress=False)


def written(packed, x, folder) -> int:
    save(folder / "m.lepton", net, packed, x[0])
    return (folder / "m.lepton").stat().st_size


@pytest.mark.parametrize("tensors", [900, 1700])
def test_the_whole_file_keeps_its_limit(case, tensors, tmp_path):
    variables, x, table = case
    free = written(allocate(table, Budget(bytes=tensors)).transform().init(variables)[0], x, tmp_path)
    program = account(tmp_path / "m.lepton").total - sum(one.total for one in account(tmp_path / "m.lepton").tensors)
    limit = tensors + program
    assert free > limit
    budget = Budget(file_bytes=limit)
    recipe = allocate(table, budget)
    packed = table.packing.packed(recipe.choices)
    assert written(packed, x, tmp_path) == recipe.file_bytes <= limit
    better = refine(recipe, table, budget, net, x, evaluations=8, progress=False).recipe
    assert written(table.packing.packed(better.choices), x, tmp_path) == better.file_bytes <= limit
    assert Recipe.from_json(better.to_json()) == better
    assert f"{better.file_bytes:,} bytes of file" in str(better)


def test_time_is_the_engines_own(case, monkeypatch):
    """By a clock that counts multiply-accumulates of the model that the engine is given, and by the engine itself."""
    variables, _, table = case
    seconds = table.deployed.latency(variables)
    assert 1e-7 < seconds < 1
    assert allocate(table, Budget(latency=100 * seconds)).latency <= 100 * seconds
    taken = []

    def clock(functions, rounds):
        [run] = functions.values()
        assert np.isfinite(run()[0]).all()
        taken.append(sum(part.size for part in held[-1]))
        return Gate(ratios={}, seconds={"model": taken[-1] * 1e-6}, again=(1.0, 1.0, 1.0), rounds=rounds)

    held, deploy = [], engines.deploy

    def kept(model, file):
        import jax

        held.append([leaf for leaf in jax.tree.leaves(model.variables) if leaf.ndim == 2 and leaf.dtype == jnp.float32])
        deploy(model, file)

    monkeypatch.setattr(engines, "gate", clock)
    monkeypatch.setattr(engines, "deploy", kept)
    dense = sum(leaf.size for leaf in variables.values()) * 1e-6
    fast = allocate(table, Budget(latency=0.6 * dense))
    assert fast.latency <= 0.6 * dense
    assert len(taken) > 1  # the model as it is was tried, and was too slow
    with pytest.raises(ValueError, match=r"less than the smallest recipe needs, .*latency=1e-12 was asked for;") as refused:
        allocate(table, Budget(latency=1e-12))
    assert "\n" not in str(refused.value)


def test_what_cannot_be_kept_is_said_in_one_line(case, monkeypatch):
    variables, x, table = case
    with pytest.raises(ValueError, match=r"file_bytes=300 was asked for; file_bytes=[\d,]+ was reached") as refused:
        allocate(table, Budget(file_bytes=300))
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="file_bytes: needs the table as `measure` returns it"):
        allocate(Table.from_json(table.to_json()), Budget(file_bytes=3000))
    for wrong in ({"file_bytes": "many"}, {"file_bytes": 0}, {"latency": -1.0}, {"latency": float("inf")}):
        with pytest.raises(ValueError, match=f"(?s)Budget.*{next(iter(wrong))}"):
            Budget(**wrong)
    with pytest.raises(ValueError, match=r"give at least one limit: .*file_bytes"):
        tune(net, variables, x, progress=False)
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", lambda name, *rest: without(name))
    with pytest.raises(ImportError, match=r"is not installed; .*pip install") as missing:
        allocate(table, Budget(latency=1.0))
    assert "\n" not in str(missing.value)


def test_layers_are_timed_alone_by_the_engine(monkeypatch):
    rng = np.random.default_rng(12)
    variables = {"a": jnp.asarray(rng.normal(size=(512, 512)) / 20, jnp.float32), "b": jnp.ones((512, 6))}
    x = [jnp.asarray(rng.normal(size=(64, 512)), jnp.float32)]
    options = [Bits(8), Rank(0.05), Channels(0.5)]
    timed = []
    kept = layer_times.gate

    def counted(functions, rounds):
        timed.append(list(functions))
        return kept(functions, rounds=rounds)

    monkeypatch.setattr(layer_times, "gate", counted)
    table = measure(net, variables, x, options, engine="onnxruntime", progress=False)
    assert len(timed) == 4  # each layer as it is, then under its other choices
    a = {str(choice): cell.latency for choice, cell in table.cells["a"].items()}
    assert a["rank 0.05 of full"] < 0.6 * a["as it is"]
    assert table.rest_latency >= 0
    whole = table.rest_latency + sum(cells[Choice()].latency for cells in table.cells.values())
    assert whole == pytest.approx(table.deployed.latency(variables), rel=0.5)
    assert Table.from_json(table.to_json()) == table
    recipe = allocate(table, Budget(latency=0.5 * whole))
    assert recipe.latency <= 0.5 * whole
    better = refine(recipe, table, Budget(latency=0.5 * whole), net, x, evaluations=3, progress=False).recipe
    assert better.latency <= 0.5 * whole
    with pytest.raises(ValueError, match=r"measure: engine must be .*onnxruntime.*; got 'tensorrt'"):
        measure(net, variables, x, options, engine="tensorrt", progress=False)

    def without(module, extra):
        raise ImportError(f"{module} is not installed; pip install 'lepton-jax[{extra}]'")

    monkeypatch.setattr(layer_times, "import_extra", without)
    with pytest.raises(ImportError, match="onnxruntime is not installed; pip install") as missing:
        measure(net, variables, x, options, engine="onnxruntime", progress=False)
    assert "\n" not in str(missing.value)
