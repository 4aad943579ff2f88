"""The training step against hand-written ones: values, tracing, donation, scanning."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import Transform, chain, fake_quant, identity, prune
from lepton_jax.core import schedules
from lepton_jax.training import create, make_scan_steps, make_train_step


def linear_loss(params, model_state, batch, key):
    x, y = batch
    return jnp.mean((x @ params["kernel"] - y) ** 2), (model_state, {"rows": jnp.float32(x.shape[0])})


def keep_where(mask):
    """A transform whose state is a mask; it counts its updates."""

    def masked(params, state):
        return jax.tree.map(lambda w: jnp.where(state[0], w, 0), params)

    def update(params, state, grads, step):
        return masked(params, state), (state[0], state[1] + step + jnp.int32(jnp.sum(grads["kernel"]) != 0))

    return Transform(lambda params: (masked(params, (mask,)), (mask, jnp.int32(0))), masked, update)


def mlp(params, x):
    for name in sorted(params):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"][None, :])
    return x


def mlp_params(key, widths=(6, 8, 4)):
    keys = jax.random.split(key, len(widths))
    return {
        f"Dense_{i}": {"kernel": jax.random.normal(keys[i], (m, n)), "bias": jnp.zeros(n)}
        for i, (m, n) in enumerate(itertools.pairwise(widths))
    }


def mlp_loss(params, model_state, batch, key):
    loss = optax.softmax_cross_entropy_with_integer_labels(mlp(params, batch[0]), batch[1]).mean()
    return loss, (model_state, {"draw": jax.random.uniform(key)})


def mlp_batches(count, rows=16):
    rng = np.random.default_rng(5)
    return [(rng.normal(size=(rows, 6)).astype(np.float32), rng.integers(0, 4, rows)) for _ in range(count)]


def test_golden_step_with_momentum_and_mask():
    """Two steps of masked linear regression against float64 numpy."""
    rng = np.random.default_rng(1)
    w, x, y = rng.normal(size=(3, 2)), rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    mask = np.array([[True, False], [True, True], [False, True]])
    tx, transform = optax.sgd(0.1, momentum=0.9), keep_where(jnp.array(mask))
    state = create({"kernel": jnp.array(w, jnp.float32)}, {}, tx, transform, jax.random.key(0))
    step = make_train_step(linear_loss, tx, transform)
    w, trace, losses = w * mask, np.zeros_like(w), []
    for _ in range(2):
        state, metrics = step(state, (np.float32(x), np.float32(y)))
        residual = x @ w - y
        losses.append(np.mean(residual**2))
        trace = 0.9 * trace + 2 / residual.size * x.T @ residual * mask
        w = (w - 0.1 * trace) * mask
        np.testing.assert_allclose(metrics["loss"], losses[-1], rtol=1e-5)
    np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-5, atol=1e-7)
    assert state.params["kernel"].dtype == jnp.float32
    assert int(state.step) == 2
    assert state.step.dtype == jnp.int32
    assert int(state.tstate[1]) == 0 + 1 + 2  # update saw steps 0 and 1, and gradients that were not zero
    assert metrics["rows"] == 5


def test_identity_is_the_plain_flax_step():
    """Adam over 5 steps: every leaf equals a hand-written optax step's, bit for bit."""
    tx, params = optax.adam(1e-2), mlp_params(jax.random.key(3))

    @jax.jit
    def plain(params, opt_state, batch):
        grads = jax.grad(lambda p: mlp_loss(p, {}, batch, jax.random.key(0))[0])(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    state, step = create(params, {}, tx, identity(), jax.random.key(0)), make_train_step(mlp_loss, tx, identity())
    opt_state = tx.init(params)
    for batch in mlp_batches(5):
        params, opt_state = plain(params, opt_state, batch)
        state, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, opt_state)


def test_traced_once_and_keys_differ_by_step():
    traces = []

    def counted(params, model_state, batch, key):
        traces.append(1)
        return mlp_loss(params, model_state, batch, key)

    tx = optax.inject_hyperparams(optax.adam)(learning_rate=optax.cosine_decay_schedule(0.1, 10))
    transform = chain(prune(schedules.polynomial(0.8, begin=2, end=8)), fake_quant(bits=4))
    state = create(mlp_params(jax.random.key(0)), {}, tx, transform, jax.random.key(9))
    step, draws = make_train_step(counted, tx, transform), []
    for batch in mlp_batches(12):
        state, metrics = step(state, batch)
        draws.append(float(metrics["draw"]))
    assert len(traces) == 1
    expected = [jax.random.uniform(jax.random.fold_in(jax.random.key(9), k)) for k in range(12)]
    np.testing.assert_array_equal(draws, expected)
    kept = [int(mask.sum()) for mask in state.tstate[0].masks.values()]
    assert kept == [round(0.2 * 48), round(0.2 * 32)]


def test_state_is_donated_and_shares_nothing():
    """Params that are also the transform's state and the optimiser's moments: all buffers are apart, and all are donated."""
    params = {"kernel": jnp.ones((3, 2))}
    ema = Transform(
        lambda params: (params, params), lambda params, state: params, lambda params, state, grads, step: (params, state)
    )
    tx = optax.GradientTransformation(lambda p: p, lambda g, s, p: (jax.tree.map(lambda x: -x, g), s))
    state = create(params, {}, tx, ema, jax.random.key(0))
    step = make_train_step(linear_loss, tx, ema)
    after, _ = step(state, (np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not params["kernel"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_model_state_is_handed_on():
    def loss_fn(params, model_state, batch, key):
        return jnp.sum(params["w"] * batch), ({"seen": {"total": model_state["seen"]["total"] + batch}}, {})

    state = create({"w": jnp.float32(1)}, {"seen": {"total": 0.0}}, optax.sgd(1.0), identity(), jax.random.key(0))
    step = make_train_step(loss_fn, optax.sgd(1.0), identity())
    for value in (1.0, 2.5):
        state, _ = step(state, np.float32(value))
    assert float(state.model_state["seen"]["total"]) == 3.5
    assert state.model_state["seen"]["total"].dtype == jnp.float32
    assert float(state.params["w"]) == 1 - 3.5


def test_scanned_steps_equal_looped_ones():
    tx, transform = optax.adam(1e-2), chain(prune(schedules.polynomial(0.5, begin=1, end=5)), fake_quant(bits=4))
    step, batches = make_train_step(mlp_loss, tx, transform), mlp_batches(6)
    looped, losses = create(mlp_params(jax.random.key(0)), {}, tx, transform, jax.random.key(1)), []
    for batch in batches:
        looped, metrics = step(looped, batch)
        losses.append(metrics["loss"])
    scanned = create(mlp_params(jax.random.key(0)), {}, tx, transform, jax.random.key(1))
    three = make_scan_steps(step, 3)
    for start in (0, 3):
        scanned, metrics = three(scanned, jax.tree.map(lambda *leaves: np.stack(leaves), *batches[start : start + 3]))
    assert metrics["loss"].shape == (3,)
    np.testing.assert_allclose(metrics["loss"], losses[3:], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, scanned.tstate[0].masks, looped.tstate[0].masks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), scanned.params, looped.params)
    assert int(scanned.step) == 6


def test_members_of_an_ensemble_train_under_vmap():
    """A vmapped step equals the members' own steps."""
    tx, transform = optax.sgd(0.1, momentum=0.9), prune(0.5)
    step, (batch,) = make_train_step(mlp_loss, tx, transform), mlp_batches(1)

    def members():
        return [create(mlp_params(jax.random.key(i)), {}, tx, transform, jax.random.key(i)) for i in range(3)]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members())
    together, metrics = jax.vmap(step, in_axes=(0, None))(stacked, batch)
    assert metrics["loss"].shape == (3,)
    for i, alone in enumerate(members()):
        alone, _ = step(alone, batch)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), together.params, alone.params)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"typed key, as jax.random.key"):
        create({"w": jnp.ones(1)}, {}, optax.sgd(0.1), identity(), jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match="count must be at least 1; got 0"):
        make_scan_steps(make_train_step(mlp_loss, optax.sgd(0.1), identity()), 0)
