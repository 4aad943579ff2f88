"""`fast_lowering` of whole functions: what is kept, where it works, what it refuses."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lepton_jax import graph
from lepton_jax.graph.lowering import DEFAULT, IgnoredTableWarning
from lepton_jax.models import ResNet


class Net(nn.Module):
    """Each rule has work: depthwise, pools, small images, pointwise kernels."""

    scanned: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2)(x))
        x = nn.Conv(4, (3, 3), feature_group_count=4)(x)
        x = nn.avg_pool(nn.max_pool(nn.Conv(4, (1, 1))(x), (2, 2), (2, 2)), (3, 3), (1, 1), "SAME")
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        if self.scanned:
            block = nn.scan(Small, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return block()(x, None)[0].mean((1, 2))
        return nn.remat(nn.Conv)(4, (3, 3))(nn.gelu(nn.Conv(4, (3, 3))(x))).mean((1, 2))


class Small(nn.Module):
    """A body for a scan."""

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return nn.relu(nn.Conv(4, (3, 3))(x)), None


@pytest.fixture(scope="module")
def x() -> Any:
    return jax.random.normal(jax.random.key(1), (4, 8, 8, 2))


def near(ours: Any, theirs: Any) -> None:
    def same(one: Any, other: Any) -> None:
        assert (jnp.shape(one), jnp.result_type(one)) == (jnp.shape(other), jnp.result_type(other))
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)

    jax.tree.map(same, ours, theirs)


def forms(function: Any, *arguments: Any) -> set[str]:
    return {one.form for one in graph.explain_lowering(function, *arguments).operations}


@pytest.mark.parametrize("scanned", [False, True])
def test_a_whole_training_step(x: Any, scanned: bool) -> None:
    net, tx = Net(scanned), optax.adam(1e-2)
    params = net.init(jax.random.key(0), x)["params"]

    def step(state: Any, batch: Any, key: Any) -> Any:
        params, opt_state = state

        def loss(params: Any) -> Any:
            noisy = batch + 0.1 * jax.random.normal(key, batch.shape)
            return jnp.mean(net.apply({"params": params}, noisy) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), {"loss": value, "grads": grads}

    state, key = (params, tx.init(params)), jax.random.key(3)
    mended = jax.jit(graph.fast_lowering(step), donate_argnums=0)
    (_, theirs), (new, ours) = jax.jit(step)(state, x, key), mended(jax.tree.map(jnp.copy, state), x, key)
    near(ours, theirs)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    found = forms(step, state, x, key)
    assert {rule.name for rule in DEFAULT} <= found | {"one position"}, found
    assert mended._cache_size() == 1


def test_nnx_and_plain_functions(x: Any) -> None:
    model = nnx.Conv(2, 2, (9, 9), feature_group_count=2, rngs=nnx.Rngs(0))
    definition, state = nnx.split(model)
    near(jax.jit(graph.fast_lowering(lambda s, x: nnx.merge(definition, s)(x)))(state, x), model(x))

    def plain(weights: Any, x: Any, *, mode: str, power: int) -> Any:
        assert mode == "same"
        assert isinstance(power, int)
        out = jax.lax.conv_general_dilated(x[:, :2, :2], weights, (1, 1), mode, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return {"odd name/x": [out**power, None], "n": out.shape[0]}

    weights = jnp.ones((3, 3, 2, 2))
    ours = graph.fast_lowering(plain)(weights, x, mode="same", power=2)
    near(ours, jax.tree.map(jnp.asarray, plain(weights, x, mode="same", power=2)))
    near(graph.fast_lowering(lambda: jnp.ones(2))(), jnp.ones(2))


def test_functions_without_slow_operations_are_traced_as_they_were() -> None:
    def step(v: Any, x: Any) -> Any:
        def loss(v: Any) -> Any:
            h, _ = jax.lax.scan(lambda h, w: (jax.checkpoint(lambda h: jax.nn.gelu(h @ w))(h), None), x, v["w"])
            return jnp.mean(jax.nn.relu(jnp.where(h > 0, h, jax.jit(jnp.sin)(h))))

        return jax.value_and_grad(loss)(v)

    v, x = {"w": jnp.ones((2, 3, 3))}, jnp.ones((4, 3))
    assert str(jax.make_jaxpr(graph.fast_lowering(step))(v, x)) == str(jax.make_jaxpr(step)(v, x))

    def conv(k: Any, x: Any) -> Any:
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    k, x = jnp.ones((3, 3, 2, 2)), jnp.ones((1, 8, 8, 2))
    assert str(jax.make_jaxpr(graph.fast_lowering(conv))(k, x)) == str(jax.make_jaxpr(conv)(k, x))
    none = graph.fast_lowering(conv, rules=())
    assert str(jax.make_jaxpr(none)(k, x[:, :1, :1])) == str(jax.make_jaxpr(conv)(k, x[:, :1, :1]))


def small(k: Any, x: Any) -> Any:
    out = jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return nn.max_pool(out, (2, 2), (1, 1))


@pytest.fixture(scope="module")
def operands() -> Any:
    return jax.random.normal(jax.random.key(4), (3, 3, 2, 2)), jax.random.normal(jax.random.key(5), (4, 2, 2, 2))


def test_derivatives_are_those_of_the_operations(operands: Any) -> None:
    def loss(function: Any) -> Any:
        return lambda k, x: jnp.sum(jnp.sin(function(k, x)))

    k, tied = operands[0], jnp.ones_like(operands[1])
    mended = graph.fast_lowering(small)
    near(jax.jit(jax.grad(loss(mended), (0, 1)))(k, tied), jax.grad(loss(small), (0, 1))(k, tied))
    near(jax.jvp(mended, (k, tied), (k, tied)), jax.jvp(small, (k, tied), (k, tied)))
    twice = graph.fast_lowering(jax.grad(loss(mended), (0, 1)))  # its own forms are let be, the derivatives are mended
    near(jax.jit(twice)(k, tied), jax.grad(loss(small), (0, 1))(k, tied))
    assert "small image" in forms(jax.grad(loss(mended), (0, 1)), k, tied)


def test_it_is_applied_once(operands: Any) -> None:
    once = graph.fast_lowering(small)
    assert str(jax.make_jaxpr(graph.fast_lowering(once))(*operands)) == str(jax.make_jaxpr(once)(*operands))


def test_transformations(operands: Any) -> None:
    k, x = operands
    mended = graph.fast_lowering(small)
    near(jax.jit(jax.vmap(mended, (None, 0)))(k, x[:, None]), jax.vmap(small, (None, 0))(k, x[:, None]))
    near(jax.lax.map(lambda one: mended(k, one[None]), x), jax.lax.map(lambda one: small(k, one[None]), x))
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    near(jax.jit(mended)(k, split), small(k, x))
    parts = jax.shard_map(small, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec("data"))
    near(jax.jit(graph.fast_lowering(parts))(k, split), small(k, x))


def test_depthwise_kernels_over_devices(x: Any) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 2))

    def of(kernel: Any, x: Any) -> Any:
        conv = nn.Conv(2, (3, 3), feature_group_count=2, use_bias=False)
        return jax.grad(lambda kernel: jnp.mean(jnp.sin(conv.apply({"params": {"kernel": kernel}}, x))))(kernel)

    specs = {"in_specs": (PartitionSpec(), spec), "out_specs": PartitionSpec()}
    mapped = jax.shard_map(lambda k, x: jax.lax.pmean(of(k, x), "data"), mesh=mesh, **specs)
    near(jax.jit(graph.fast_lowering(mapped))(kernel, x), jax.jit(mapped)(kernel, x))
    near(jax.jit(graph.fast_lowering(of))(kernel, jax.device_put(x, NamedSharding(mesh, spec))), of(kernel, x))


def test_programs_hold_both_forms(operands: Any) -> None:
    batch = jax.export.symbolic_shape("b, 2, 2, 2")
    shape = jax.ShapeDtypeStruct(batch, jnp.float32)
    exported = jax.export.export(jax.jit(graph.fast_lowering(small)), platforms=("cpu", "tpu"))(operands[0], shape)
    near(exported.call(*operands), small(*operands))
    alone = jax.export.export(jax.jit(graph.fast_lowering(small)), platforms=("tpu",))(operands[0], shape)
    assert "reduce_window" in alone.mlir_module()
    assert "dot_general" not in alone.mlir_module()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_other_dtypes(operands: Any, dtype: Any) -> None:
    k, x = ((4 * operand).astype(dtype) for operand in operands)
    ours, theirs = jax.jit(graph.fast_lowering(small))(k, x), jax.jit(small)(k, x)
    assert ours.dtype == theirs.dtype == dtype
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=2e-2, atol=0.1)


def test_no_reference_model_is_exchanged() -> None:
    net = ResNet(blocks=(1, 1, 1, 1))
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    slow, fast = (jax.jit(f).lower(variables, x).compile().as_text() for f in (net.apply, graph.fast_lowering(net.apply)))
    assert "rhs_reversal" in slow
    assert "rhs_reversal" not in fast


def test_the_explanation_is_a_table(operands: Any) -> None:
    said = str(graph.explain_lowering(small, *operands))
    assert "small image" in said
    assert "4x2x2x2 * 3x3x2x2 -> 4x2x2x2" in said
    assert "max pool" in said
    assert "2 of 2 operations" in said
    assert "nothing to do" in str(graph.explain_lowering(jnp.sin, jnp.ones(2)))


def test_what_is_refused(operands: Any) -> None:
    with pytest.raises(ValueError, match="there is no rule 'winograd'; there are 'one position'"):
        graph.fast_lowering(small, rules=("winograd",))
    with pytest.raises(TypeError, match="a sequence of rules or of their names; got 'small image'"):
        graph.fast_lowering(small, rules="small image")
    with pytest.raises(TypeError, match="a rule must be a Rule or the name of one; got 3"):
        graph.fast_lowering(small, rules=(3,))
    with pytest.raises(TypeError, match="function must be"):
        graph.fast_lowering(3)
    with pytest.raises(TypeError, match=r"cannot be traced: at .*test_lowering\.py"):
        graph.fast_lowering(lambda k, x: x if x.sum() > 0 else -x)(*operands)
    with pytest.raises(TypeError, match="table must be forms by site"):
        graph.fast_lowering(small, table=3)


def test_measured_forms_are_kept(operands: Any, tmp_path: Path) -> None:
    cache = tmp_path / "forms.json"
    measured = graph.measure_lowerings(small, *operands, cache=cache)
    assert len(measured) == 2
    held = json.loads(cache.read_text())
    sites = list(held["sites"])
    for site in sites:  # what the file says is done, without measuring anew
        held["sites"][site] = {"form": "direct", "milliseconds": {"direct": 1.0}}
    cache.write_text(json.dumps(held))
    assert set(graph.measure_lowerings(small, *operands, cache=cache).values()) == {"direct"}
    assert {one.form for one in graph.explain_lowering(small, *operands, table=cache).operations} == {"direct"}
    assert str(jax.make_jaxpr(graph.fast_lowering(small, table=cache))(*operands)) == str(jax.make_jaxpr(small)(*operands))
    near(graph.fast_lowering(small, table=measured)(*operands), small(*operands))
    held["machine"]["jaxlib"] = "0.0.1"
    for text in (json.dumps(held), "{", '{"machine": {}, "sites": []}', "[" * 5000):
        cache.write_text(text)
        with pytest.warns(IgnoredTableWarning, match="another machine|damaged"):
            mended = graph.fast_lowering(small, table=cache)
        near(mended(*operands), small(*operands))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph.fast_lowering(small, table=tmp_path / "not there.json")
