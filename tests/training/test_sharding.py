"""Data parallel training on four host devices equals one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import chain, fake_quant, prune
from lepton_jax.core import schedules
from lepton_jax.training import create, data_mesh, make_train_step, replicate, shard_step


def loss_fn(params, model_state, batch, key):
    logits = jnp.tanh(batch["x"] @ params["a"]) @ params["b"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
    return loss, (model_state, {"noise": jax.random.normal(key, logits.shape).mean()})


def run(spread, steps=5):
    rng = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(1))
    params = {"a": jax.random.normal(keys[0], (6, 16)), "b": jax.random.normal(keys[1], (16, 3))}
    tx, transform = optax.adam(1e-2), chain(prune(schedules.polynomial(0.5, begin=1, end=4)), fake_quant(bits=8))
    traces = []

    def counted(*args):
        traces.append(1)
        return loss_fn(*args)

    state, step = create(params, {}, tx, transform, jax.random.key(2)), make_train_step(counted, tx, transform)
    if spread:
        mesh = data_mesh()
        state, step = replicate(state, mesh), shard_step(step, mesh)
    losses = []
    for _ in range(steps):
        batch = {"x": rng.normal(size=(24, 6)).astype(np.float32), "y": rng.integers(0, 3, 24).astype(np.int32)}
        state, metrics = step(state, batch)
        losses.append([float(metrics["loss"]), float(metrics["noise"])])
    return state, losses, len(traces)


def test_four_devices_equal_one():
    """The gradients' sums are taken in another order, hence 1e-5 (relative) on values; masks are equal."""
    assert jax.device_count() == 4  # see tests/conftest.py
    one, losses, _ = run(spread=False)
    four, losses_of_four, traces = run(spread=True)
    assert traces == 1
    np.testing.assert_allclose(losses_of_four, losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(four.params), jax.tree.leaves(one.params)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, four.tstate[0].masks, one.tstate[0].masks)
    assert all(leaf.sharding.is_fully_replicated and leaf.sharding.num_devices == 4 for leaf in jax.tree.leaves(four))


def test_the_batch_is_spread():
    """Each device computes on its own rows: the compiled step has a quarter of the batch."""
    mesh = data_mesh()
    tx, transform = optax.sgd(0.1), prune(0.5)
    state = replicate(create({"a": jnp.ones((6, 16)), "b": jnp.ones((16, 3))}, {}, tx, transform, jax.random.key(2)), mesh)
    seen = []

    def spy(params, model_state, batch, key):
        jax.debug.inspect_array_sharding(batch["x"], callback=lambda sharding: seen.append(sharding.shard_shape((24, 6))))
        return loss_fn(params, model_state, batch, key)

    step = shard_step(make_train_step(spy, tx, transform), mesh)
    step(state, {"x": np.ones((24, 6), np.float32), "y": np.zeros(24, np.int32)})
    assert seen == [(6, 6)]


def test_a_batch_that_does_not_divide_is_refused():
    step = shard_step(make_train_step(loss_fn, optax.sgd(0.1), prune(0.5)), data_mesh())
    with pytest.raises(ValueError, match="must be a multiple of 4") as error:
        step(None, {"x": np.ones((10, 6), np.float32), "y": np.zeros(12, np.int32), "z": np.float32(1)})
    assert str(error.value).splitlines()[1:] == ["  x: shape (10, 6)", "  z: shape ()"]
