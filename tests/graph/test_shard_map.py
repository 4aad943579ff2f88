"""`shard_map` is gone into: rewritten, captured from, counted, in fewer bits; on a mesh of four devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from lepton_jax.graph import capture, cost
from lepton_jax.graph.interpret import Interpreter, rewrite
from lepton_jax.graph.trace import trace
from lepton_jax.leaves.quantize import quantize
from lepton_jax.native import packed
from lepton_jax.precision import Fp8, Policy, autocast
from lepton_jax.precision.fp8 import init_amax
from lepton_jax.quantization import Dynamic, Rule, Static, Uniform, calibrate_activations, quantize_activations, with_sites

P = PartitionSpec
RNG = np.random.default_rng(4)
V = {name: jnp.asarray(RNG.standard_normal((6, 6)), jnp.float32) for name in ("a", "b")}
X = jnp.asarray(RNG.standard_normal((8, 6)), jnp.float32)


def layers(v, x):
    h = jnp.tanh(x @ v["a"])
    return h @ v["b"]


def sharded(*, check=True, mesh=None, split=("data",)):
    mesh = mesh or Mesh(np.array(jax.devices()[:4]), ("data",))
    return jax.shard_map(layers, mesh=mesh, in_specs=(P(), P(split)), out_specs=P(split), check_vma=check)


def nested(v, x):
    """Split by rows over one axis of the mesh; inside, the second layer by columns over the other."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))

    @partial(jax.shard_map, mesh=mesh, axis_names={"data"}, in_specs=(P(), P("data")), out_specs=P("data"))
    def outer(v, x):
        h = jnp.tanh(x @ v["a"])
        inner = jax.shard_map(jnp.matmul, axis_names={"model"}, in_specs=(P(), P(None, "model")), out_specs=P(None, "model"))
        return inner(h, v["b"])

    return outer(v, x)


MODELS = {"checked": sharded(), "unchecked": sharded(check=False), "nested": nested}


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_kept(name):
    apply = MODELS[name]

    def run(apply):
        def loss(v):
            return jnp.sum(apply(v, X) ** 2)

        # jax 0.10 itself cannot differentiate one shard_map inside of another.
        return jax.jit(loss if name == "nested" else jax.value_and_grad(loss))(V)

    expected, got = run(apply), run(rewrite(apply, Interpreter))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, expected)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


def test_captured_values_have_one_slice_a_device():
    y, values = jax.jit(capture(MODELS["checked"], ("tanh", "dot_general")))(V, X)
    hidden = np.tanh(np.asarray(X, np.float64) @ np.asarray(V["a"], np.float64))
    assert {name: value.shape for name, value in values.items()} == {
        "tanh": (4, 2, 6),
        "dot_general": (4, 2, 6),
        "dot_general_1": (4, 2, 6),
    }
    np.testing.assert_allclose(values["tanh"].reshape(8, 6), hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values["dot_general_1"].reshape(8, 6), y, rtol=1e-6)


def test_what_is_the_same_on_every_device_is_captured_too():
    def apply(v, x):
        mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

        @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
        def run(v, x):
            return x @ jnp.sin(v["a"])

        return run(v, x)

    _, values = jax.jit(capture(apply, "sin"))(V, X)
    assert values["sin"].shape == (4, 6, 6)
    np.testing.assert_array_equal(values["sin"], np.broadcast_to(values["sin"][0], (4, 6, 6)))


@pytest.mark.parametrize("name", MODELS)
def test_cost_is_that_of_all_devices(name):
    whole, split = cost(layers, V, X), cost(MODELS[name], V, X)
    assert split.unknown == ()
    assert split.macs == whole.macs
    assert {p: found.macs > 0 for p, found in split.parameters.items()} == {"a": True, "b": True}


def test_an_axis_that_splits_nothing_counts_once():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "other"))
    assert cost(sharded(mesh=mesh), V, X).macs == cost(layers, V, X).macs
    assert cost(sharded(mesh=mesh, split=("data", "other")), V, X).macs == cost(layers, V, X).macs


@pytest.mark.parametrize("name", MODELS)
def test_autocast_rounds_inside(name):
    half = autocast(MODELS[name], Policy(compute_dtype="bfloat16"))
    dots = [eqn for eqn in trace(half, V, X).equations() if eqn.primitive == "dot_general"]
    assert [eqn.in_avals[0].dtype for eqn in dots] == [jnp.bfloat16] * 2
    expected = autocast(layers, Policy(compute_dtype="bfloat16"))(V, X)
    np.testing.assert_allclose(jax.jit(half)(V, X), expected, rtol=1e-2, atol=1e-2)
    if name == "nested":
        return
    gradient = jax.jit(jax.grad(lambda v: half(v, X).sum()))(V)
    plain = jax.grad(lambda v: layers(v, X).sum())(V)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.05, atol=0.05), gradient, plain)


def test_fp8_says_that_it_has_no_place_inside():
    with pytest.raises(ValueError, match="no dot or convolution"):
        init_amax(MODELS["checked"], Fp8(), V, X)


def test_devices_share_the_range_of_a_calibrated_quantizer():
    rule = Rule(quantizer=Static(Uniform(8)))
    sites, whole = (calibrate_activations(apply, rule, V, [X, -X]) for apply in (MODELS["checked"], layers))
    jax.tree.map(np.testing.assert_array_equal, sites, whole)
    outs = [
        jax.jit(quantize_activations(apply, rule))(with_sites(V, sites), X)
        for apply in (MODELS["checked"], MODELS["unchecked"], layers)
    ]
    for out in outs[:2]:
        np.testing.assert_allclose(out, outs[2], rtol=1e-6, atol=1e-6)


def test_ranges_found_by_each_device_for_itself():
    dynamic = jax.jit(quantize_activations(MODELS["checked"], Rule(quantizer=Dynamic(Uniform(8)))))(V, X)
    by_hand = jnp.concatenate(
        [quantize_activations(layers, Rule(quantizer=Dynamic(Uniform(8))))(V, part) for part in jnp.split(X, 4)]
    )
    np.testing.assert_allclose(dynamic, by_hand, rtol=1e-6, atol=1e-6)


def test_packed_leaves_go_in_packed():
    leaves = {name: quantize(leaf, Uniform(8)) for name, leaf in V.items()}
    expected = packed(layers)(leaves, X)
    np.testing.assert_allclose(jax.jit(packed(MODELS["checked"]))(leaves, X), expected, rtol=1e-5, atol=1e-6)


def test_a_mesh_of_explicit_axes():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])

    def apply(v, x):
        return jax.shard_map(layers, in_specs=(P(), P("data")), out_specs=P("data"))(v, jax.reshard(x, P("data")))

    with jax.set_mesh(mesh):
        np.testing.assert_allclose(rewrite(apply, Interpreter)(V, X), apply(V, X), rtol=1e-6)
        assert cost(apply, V, X).macs == cost(layers, V, X).macs
