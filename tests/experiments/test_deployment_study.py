"""The study of engines: a small network through every way and engine that is here; what learning and judging do."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import unfreeze

from experiments.common import study
from experiments.common.config import load_config
from experiments.studies.deployment import Deployment, ways
from experiments.studies.deployment.networks import Network, Row
from lepton_jax import identity
from lepton_jax.core.packed import unpack


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(4)(nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1))))


def network(labels=True):
    draw = np.random.default_rng(5)
    known, test = (draw.normal(size=(count, 6, 6, 2)).astype(np.float32) for count in (128, 32))
    net = Tiny()
    variables = unfreeze(net.init(jax.random.key(3), known[:1]))
    answers = np.asarray(net.apply(variables, test)).argmax(-1)
    return Network(net.apply, variables, known, test, answers if labels else None)


def test_every_way_on_every_engine_that_is_here(tmp_path):
    row = Row(name="tiny", kind="random", model=Tiny(), shape=(6, 6, 2))
    config = Deployment(name="deployment", rows=(row,), batches=(1, 2), rounds=3, engines=("onnxruntime", "litert", "xla"))
    results = config.runner((0,), tmp_path).run()
    litert = all(importlib.util.find_spec(name) for name in ("litert_converter", "ai_edge_litert"))
    assert len(results) == len(ways.WAYS) * (3 if litert else 2)
    assert not [result["refused"] for result in results if "refused" in result]
    for result in results:
        assert set(result["times"]) == {"1", "2"}
        assert all(time["low"] <= time["ratio"] <= time["high"] for time in result["times"].values())
        assert ("deployed_bytes" in result) == (result["settings"]["engine"] != "xla")
        assert "error" not in result
    size = {result["row"]: result["deployed_bytes"] for result in results if result["settings"]["engine"] == "onnxruntime"}
    assert size["half the channels"] < size["float"]
    study.write_report(tmp_path, config, results)
    assert "half the channels" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())


def test_what_is_left_learns_from_the_whole_network():
    net = network()
    before, after = (ways.half(net, steps) for steps in (0, 150))
    wanted = net.apply(net.variables, net.test)
    errors = [float(jnp.mean(jnp.square(model(net.test) - wanted))) for model in (before, after)]
    assert errors[1] < 0.7 * errors[0]
    untouched = ways.taught(net._replace(labels=None), net.apply, net.variables, identity(), 50)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), untouched, net.variables))


def test_forms_are_what_they_say():
    net = network()
    whole = sum(leaf.size for leaf in jax.tree.leaves(net.variables))
    half, thin, four = ways.half(net, 1), ways.thin(net, 1), ways.four_bits(net, 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(half.variables)) < 0.7 * whole
    assert sum(leaf.size for leaf in jax.tree.leaves(thin.variables)) < 0.7 * whole
    dense = unpack(four.variables)["params"]["Dense_0"]["kernel"]
    assert max(len(np.unique(column)) for column in np.asarray(dense).T) <= 16


def test_errors_and_perplexities_by_hand():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(3, 2, 5)), draw.integers(0, 5, (3, 2))
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = [chances[i, j, labels[i, j]] for i in range(3) for j in range(2)]
    assert ways.wrong([logits], labels)["perplexity"] == pytest.approx(np.exp(-np.mean(np.log(found))), rel=1e-9)
    assert ways.wrong([logits[:, 0], logits[:, 1]], np.zeros(6, int))["error"] == np.mean(
        np.concatenate([logits[:, 0], logits[:, 1]]).argmax(-1) != 0
    )


def test_the_config_and_what_is_wrong_with_others():
    config = load_config(Path(__file__).parents[2] / "configs" / "deployment.py", Deployment)
    assert [row.name for row in config.rows][:2] == ["lenet5", "three_convolutions"]
    with pytest.raises(ValueError, match=r"there is no .*'W2A2'"):
        Deployment(name="a", rows=config.rows, ways=("W2A2",))
