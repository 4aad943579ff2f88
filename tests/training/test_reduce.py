"""Compressed sums of gradients: nothing is lost, what is sent is counted, and the errors go on with other devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from lepton_jax import identity, prune
from lepton_jax.core import paths
from lepton_jax.precision import AllReduce, DynamicScale
from lepton_jax.training import (
    Checkpoints,
    FitSettings,
    Int8Reduce,
    PowerSgd,
    TopK,
    collectives,
    create,
    data_mesh,
    fit,
    parallel_step,
    replicate,
    replicated,
)

SUMS = {"int8": Int8Reduce(block=32), "rank 2": PowerSgd(2), "a tenth": TopK(0.1)}


def tree_of(seed, *, devices=()):
    rng = np.random.default_rng(seed)
    shapes = {"a": {"kernel": (24, 16), "bias": (16,)}, "c": {"kernel": (3, 3, 4, 8)}, "small": (2, 2)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=(*devices, *shape)), jnp.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )


def begun(reduce, devices):
    one = reduce.init(tree_of(0), 1)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape)), one)


@pytest.mark.parametrize("name", SUMS)
def test_what_is_not_sent_is_kept(name):
    """s + sum_i e_i = sum_i (g_i / n + e_i), on all devices the same bits; over steps no gradient is lost."""
    reduce, devices = SUMS[name], 4
    state, run = begun(reduce, devices), jax.jit(jax.vmap(reduce.reduce, axis_name="data"))
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), tree_of(0))
    given = total
    for number in range(3):
        grads = tree_of(10 + number, devices=(devices,))
        mean, state = run(grads, state)
        assert jax.tree.structure(mean) == jax.tree.structure(grads)
        for leaf in jax.tree.leaves(mean):
            assert leaf.dtype == jnp.float32
            np.testing.assert_array_equal(leaf[1:], np.broadcast_to(leaf[:1], leaf[1:].shape))
        total = jax.tree.map(lambda t, leaf: t + np.asarray(leaf[0], np.float64), total, mean)
        given = jax.tree.map(lambda t, leaf: t + np.asarray(leaf, np.float64).mean(0), given, grads)
        left = {path: np.asarray(leaf, np.float64)[:, 0].sum(0) for path, leaf in state.errors.values.items()}
        for path, want in paths.flatten(given).items():
            np.testing.assert_allclose(paths.flatten(total)[path] + left.get(path, 0), want, atol=2e-6, err_msg=path)
    assert any(np.abs(leaf).max() > 0 for leaf in left.values())
    assert ("a/bias" in left) == (name == "int8"), "short leaves are summed whole by the others"


def test_int8_is_two_shots_of_codes_by_hand():
    grads = np.random.default_rng(3).normal(size=(2, 64)).astype(np.float32)
    reduce = Int8Reduce(block=16)
    state = jax.vmap(lambda _: reduce.init({"w": jnp.zeros(64)}, 1))(jnp.arange(2))
    mean, _ = jax.vmap(reduce.reduce, axis_name="data")({"w": jnp.asarray(grads)}, state)

    def coded(x):
        blocks = x.reshape(-1, 16)
        scale = (np.abs(blocks).max(1, keepdims=True) / np.float32(127)).astype(np.float32)
        return (np.round(blocks / scale) * scale).astype(np.float32).reshape(-1)

    want = coded(coded(grads[0] / 2) + coded(grads[1] / 2))
    np.testing.assert_allclose(mean["w"][0], want, rtol=1e-6, atol=1e-7)


def test_low_rank_is_the_projection_by_hand():
    rng = np.random.default_rng(4)
    grads = rng.normal(size=(3, 12, 10))
    reduce = PowerSgd(2)
    state = jax.vmap(lambda _: reduce.init({"w": jnp.zeros((12, 10))}, 1))(jnp.arange(3))
    first = np.asarray(state.shared["w"][0], np.float64)
    mean, state = jax.vmap(reduce.reduce, axis_name="data")({"w": jnp.asarray(grads, jnp.float32)}, state)
    basis = np.linalg.qr(grads.mean(0) @ first)[0]
    np.testing.assert_allclose(mean["w"][0], basis @ basis.T @ grads.mean(0), atol=1e-5)
    own = grads / 3
    np.testing.assert_allclose(state.errors.values["w"][:, 0], own - basis @ (basis.T @ own), atol=1e-5)


def test_the_largest_are_sent_by_hand():
    grads = np.random.default_rng(5).normal(size=(2, 8, 5)).astype(np.float32)
    reduce = TopK(0.1)
    state = jax.vmap(lambda _: reduce.init({"w": jnp.zeros((8, 5))}, 1))(jnp.arange(2))
    mean, _ = jax.vmap(reduce.reduce, axis_name="data")({"w": jnp.asarray(grads)}, state)
    want = np.zeros(40)
    for share in grads.reshape(2, 40) / 2:
        at = np.argsort(-np.abs(share))[:4]
        want[at] += share[at]
    np.testing.assert_allclose(mean["w"][0].reshape(-1), want, rtol=1e-6)


def loss_fn(params, model_state, batch, key):
    x = jnp.tanh(batch["x"] @ params["a"]["kernel"] + params["a"]["bias"][None]) @ params["b"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(x, batch["y"]).mean(), (model_state, {})


def params_of(seed, width=256):
    keys = jax.random.split(jax.random.key(seed))
    first = {"kernel": jax.random.normal(keys[0], (width, width)) / 16, "bias": jnp.zeros(width)}
    return {"a": first, "b": {"kernel": jax.random.normal(keys[1], (width, width)) / 16}}


def batch_at(number, width=256):
    rng = np.random.default_rng(number)
    return {"x": rng.normal(size=(16, width)).astype(np.float32), "y": rng.integers(0, width, 16).astype(np.int32)}


def counted(reduce):
    mesh, tx = data_mesh(), optax.sgd(0.1)
    state = create(params_of(0), {}, tx, identity(), jax.random.key(0), placement=replicated(mesh), reduce=reduce)
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = parallel_step(loss_fn, tx, identity(), mesh, reduce=reduce)
    compiled = jax.jit(step, in_shardings=(lies, None), out_shardings=(lies, None)).lower(state, batch_at(0)).compile()
    return [one for one in collectives(compiled) if one.bytes > 16]  # more than the loss


def test_the_bytes_of_a_compiled_step():
    plain = sum(one.sent for one in counted(AllReduce()))
    codes = counted(Int8Reduce())
    assert {(one.kind, one.dtype) for one in codes} == {
        (kind, dtype) for kind in ("all-to-all", "all-gather") for dtype in ("s8", "f32")
    }
    assert plain / sum(one.sent for one in codes) > 3.9
    assert plain / sum(one.sent for one in counted(PowerSgd(2))) > 50
    assert plain / sum(one.sent for one in counted(TopK(0.01))) > 20


def run(reduce, mesh, steps, checkpoints=None, *, transform=None):
    tx, transform = optax.sgd(0.2, momentum=0.9), transform or identity()
    state = create(params_of(1, 32), {}, tx, transform, jax.random.key(0), placement=replicated(mesh), reduce=reduce)
    step = parallel_step(loss_fn, tx, transform, mesh, reduce=reduce)
    settings = FitSettings(steps=steps, checkpoint_every=2, progress=False)
    return fit(state, step, lambda at: batch_at(at, 32), settings, checkpoints=checkpoints, resume=True)


@pytest.mark.parametrize("name", SUMS)
def test_errors_lie_on_their_devices_and_a_run_goes_on_with_half_of_them(name, tmp_path):
    reduce, mesh = SUMS[name], data_mesh()
    whole = run(reduce, mesh, 4)
    error = whole.reduction.errors.values["a/kernel"]
    assert (error.shape, error.sharding.spec) == ((4, 32, 32), P("data"))
    with Checkpoints(tmp_path / "four", run="a") as checkpoints:
        run(reduce, mesh, 2, checkpoints)
        halves = data_mesh(jax.devices()[:2])
        template = create(
            params_of(1, 32),
            {},
            optax.sgd(0.2, momentum=0.9),
            identity(),
            jax.random.key(0),
            placement=replicated(halves),
            reduce=reduce,
        )
        restored, _ = checkpoints.restore(template)
        kept, _ = checkpoints.restore(whole)
        again = run(reduce, mesh, 4, checkpoints)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)  # the same devices: the same bits
    jax.tree.map(np.testing.assert_array_equal, again.reduction, whole.reduction)
    for path, moved in restored.reduction.errors.values.items():
        old = np.asarray(kept.reduction.errors.values[path])
        np.testing.assert_allclose(moved, old.reshape(2, 2, *old.shape[1:]).sum(1), rtol=1e-6)
        assert moved.sharding.num_devices == 2
    on, _ = parallel_step(loss_fn, optax.sgd(0.2, momentum=0.9), identity(), halves, reduce=reduce)(restored, batch_at(2, 32))
    assert int(on.step) == 3


def test_it_learns_what_the_plain_sum_learns():
    mesh = data_mesh()
    plain = run(AllReduce(), mesh, 4, transform=prune(0.5))
    near = run(Int8Reduce(), mesh, 4, transform=prune(0.5))
    for a, b in zip(jax.tree.leaves(near.params), jax.tree.leaves(plain.params)):
        np.testing.assert_allclose(a, b, atol=2e-3)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(near.params))


def test_a_step_that_overflows_keeps_the_errors_and_scales_leave_them_alone():
    mesh, scale, tx = data_mesh(), DynamicScale(initial=8.0), optax.sgd(0.1)
    states = []
    for loss_scale in (None, scale):
        state = create(
            params_of(1, 32),
            {},
            tx,
            identity(),
            jax.random.key(0),
            placement=replicated(mesh),
            reduce=PowerSgd(2),
            loss_scale=loss_scale,
        )
        step = parallel_step(loss_fn, tx, identity(), mesh, reduce=PowerSgd(2), loss_scale=loss_scale)
        state, _ = step(state, batch_at(0, 32))
        states.append(jax.device_get(state.reduction))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *states)
    bad = batch_at(1, 32)
    bad["x"][13, 0] = np.inf
    state, metrics = step(state, bad)
    assert metrics["skipped"].item() == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.reduction), states[1])


def test_misuse():
    with pytest.raises(ValueError, match=r"create: PowerSgd keeps an error on each device; give placement=.*no placement"):
        create(params_of(0, 8), {}, optax.sgd(0.1), identity(), jax.random.key(0), reduce=PowerSgd(1))
    mesh = data_mesh()
    with pytest.raises(ValueError, match="with a mesh that has the axis 'rows'; got data"):
        create(
            params_of(0, 8),
            {},
            optax.sgd(0.1),
            identity(),
            jax.random.key(0),
            placement=replicated(mesh),
            reduce=TopK(0.1, axis="rows"),
        )
    with pytest.raises(ValueError, match="TopK: fraction must be in"):
        TopK(0.0)
    with pytest.raises(ValueError, match="PowerSgd: rank must be"):
        PowerSgd(0)
    with pytest.raises(ValueError, match="Int8Reduce: block must be"):
        Int8Reduce(block=0)
    state = replicate(create(params_of(0, 8), {}, optax.sgd(0.1), identity(), jax.random.key(0)), mesh)
    with pytest.raises(ValueError, match=r"the state holds no errors; make it with create\(..., reduce=Int8Reduce"):
        parallel_step(loss_fn, optax.sgd(0.1), identity(), mesh, reduce=Int8Reduce())(state, batch_at(0, 8))


def test_slow_operations_are_done_otherwise_on_every_device():
    conv = nn.Conv(6, (3, 3), feature_group_count=3)
    rng = np.random.default_rng()
    images, mesh, tx = rng.normal(size=(8, 2, 2, 3)).astype(np.float32), data_mesh(jax.devices()[:2]), optax.sgd(0.1)
    params = conv.init(jax.random.key(int(rng.integers(1000))), images)

    def squares(params, model_state, batch, key):
        return jnp.mean(jnp.sin(conv.apply(params, batch))), (model_state, {})

    found = []
    for lowering in (True, False):
        state = create(params, {}, tx, identity(), jax.random.key(0), placement=replicated(mesh), reduce=AllReduce())
        step = parallel_step(squares, tx, identity(), mesh, reduce=AllReduce(), lowering=lowering)
        lies = jax.tree.map(lambda leaf: leaf.sharding, state)
        compiled = jax.jit(step, in_shardings=(lies, None), out_shardings=(lies, None)).lower(state, images).compile()
        assert {one.kind for one in collectives(compiled)} == {"all-reduce"}  # examples stay where they are
        assert ("feature_group_count" in compiled.as_text()) is not lowering
        found.append(step(state, images)[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)
