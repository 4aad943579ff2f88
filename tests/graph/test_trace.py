"""Tracing: names of variables and inputs, updated state, errors that name what is wrong."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core.paths import flatten
from lepton_jax.graph.trace import trace

sys.path.insert(0, str(Path(__file__).parent))
from models_for_graph import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_paths_and_shapes(name):
    apply, variables, inputs, keywords = MODELS[name]
    traced = trace(apply, variables, *inputs, **keywords)
    assert traced.variables == tuple(flatten(variables))
    leaves = jax.tree.leaves(variables)
    assert [a.shape for a in traced.in_avals[: len(leaves)]] == [leaf.shape for leaf in leaves]
    assert traced.inputs[0] == "0"
    assert traced.out_tree == jax.tree.structure(jax.eval_shape(apply, variables, *inputs, **keywords))
    assert len(set(traced.names.values())) == len(traced.names) == len(list(traced.equations()))


def test_shapes_suffice():
    apply, variables, inputs, _ = MODELS["transformer eval"]
    shapes = jax.eval_shape(lambda tree: tree, (variables, inputs))
    assert trace(apply, shapes[0], *shapes[1]).names == trace(apply, variables, *inputs).names


def test_updated_state_of_linen_and_nnx():
    for name, suffix in (("convnet train", "batch_stats/BatchNorm_0/mean"), ("nnx train", "norm/mean")):
        apply, variables, inputs, _ = MODELS[name]
        traced = trace(apply, variables, *inputs)
        updated = {traced.outputs[i]: path for i, path in traced.updates.items()}
        assert suffix in updated.values()
        assert all(output.endswith(path) for output, path in updated.items())
        assert 0 not in traced.updates
    apply, variables, inputs, _ = MODELS["convnet train"]
    statistics = {p for p in flatten(variables) if p.startswith("batch_stats")}
    assert set(trace(apply, variables, *inputs).updates.values()) == statistics


def test_a_like_name_is_no_update():
    variables = {"a": {"mean": jnp.ones(2)}, "b": {"mean": jnp.ones(2)}}

    def apply(v, x):
        return {"mean": x.mean(), "other": {"mean": v["a"]["mean"]}, "a": {"mean": jnp.ones(3)}}

    assert trace(apply, variables, jnp.ones(2)).updates == {}


def test_scan_multiplies_times():
    apply, variables, inputs, _ = MODELS["transformer eval"]
    traced = trace(apply, variables, *inputs)
    times = {eqn.scope.split("/")[-1]: eqn.times for eqn in traced.equations() if eqn.primitive == "dot_general"}
    assert times["down"] == 3
    in_while = [
        e for e in trace(lambda v, x: jax.lax.while_loop(lambda c: c < v, jnp.sin, x), 1.0, 0.5).equations() if e.scope == ""
    ]
    assert {e.primitive: e.times for e in in_while}["sin"] is None


def test_names_are_readable():
    apply, variables, inputs, _ = MODELS["convnet eval"]
    names = set(trace(apply, variables, *inputs).names.values())
    assert {"ConvNet/Conv_0/conv_general_dilated", "ConvNet/Dense_0/dot_general"} <= names
    mapped = trace(jax.vmap(apply, in_axes=(None, 0)), variables, inputs[0][:, None])
    assert "ConvNet/Conv_0/conv_general_dilated" in set(mapped.names.values())


def test_keywords_with_arrays_are_inputs():
    apply, variables, inputs, keywords = MODELS["transformer train"]
    assert trace(apply, variables, *inputs, **keywords).inputs == ("0", "rngs/dropout")


def test_a_branch_on_a_value_is_refused():
    def apply(variables, x):
        return x if variables["params"]["w"].sum() > 0 else -x

    with pytest.raises(TypeError, match=r"apply cannot be traced: at \S*test_trace\.py:\d+ .*lax\.cond") as error:
        trace(apply, {"params": {"w": jnp.ones(2)}}, jnp.ones(2))
    assert "params/w" in str(error.value)


def test_numpy_on_a_tracer_is_refused():
    with pytest.raises(TypeError, match="cannot be traced"):
        trace(lambda v, x: np.asarray(x) + v, 1.0, jnp.ones(2))


def test_a_leaf_that_is_no_array_is_named():
    with pytest.raises(TypeError, match=r"variables/params/mode must be an array; got str \('train'\)"):
        trace(lambda v, x: x, {"params": {"mode": "train"}}, jnp.ones(2))
    with pytest.raises(TypeError, match=r"inputs/0/name must be an array"):
        trace(lambda v, x: x, {}, {"name": "x"})


def test_values_for_another_structure_are_refused():
    traced = trace(lambda v, x: x + v["a"], {"a": 1.0}, 2.0)
    with pytest.raises(ValueError, match="was traced with the arguments"):
        traced.flatten({"b": 1.0}, (2.0,), {})
