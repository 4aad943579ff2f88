"""Stochastic rounding: unbiased, exact where it can be, and parameters that train without float32 masters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import identity
from lepton_jax.precision import Policy, stochastic_round, stochastic_rounding
from lepton_jax.training import create, make_train_step


@pytest.mark.parametrize("seed", range(2))
def test_unbiased_and_to_a_neighbour(seed: int) -> None:
    """Over n draws the mean is within five standard errors; each draw is one of the two neighbours."""
    rng, draws = np.random.default_rng(seed), 4096
    x = jnp.asarray(rng.normal(size=64) * 10.0 ** rng.integers(-30, 30, 64), jnp.float32)
    keys = jax.random.split(jax.random.key(seed), draws)
    rounded = jax.jit(jax.vmap(stochastic_round, (None, 0)))(x, keys)
    assert rounded.dtype == jnp.bfloat16
    bits = np.asarray(x).view(np.uint32)
    low = (bits & 0xFFFF0000).view(np.float32).astype(np.float64)
    high = ((bits & 0xFFFF0000) + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    seen = np.asarray(rounded, np.float64)
    assert ((seen == low) | (seen == high)).all()
    up = (seen == high).mean(0)
    expected = (bits & 0xFFFF) / 65536.0
    assert (np.abs(up - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-12).all()


def test_what_bfloat16_holds_is_exact() -> None:
    every = jnp.arange(65536, dtype=jnp.uint32).astype(jnp.uint16)
    values = jax.lax.bitcast_convert_type(every, jnp.bfloat16)
    wide = jax.lax.bitcast_convert_type(every.astype(jnp.uint32) << 16, jnp.float32)
    rounded = np.asarray(stochastic_round(wide, jax.random.key(1)))
    numbers = ~np.isnan(np.asarray(values, np.float32))
    np.testing.assert_array_equal(rounded[numbers].view(np.uint16), np.asarray(values)[numbers].view(np.uint16))
    assert np.isnan(rounded[~numbers].astype(np.float32)).all()
    # A NaN whose mark is in the half that is dropped, and one that a carry would make a number.
    bits = jnp.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], jnp.uint32)
    assert bool(jnp.isnan(stochastic_round(jax.lax.bitcast_convert_type(bits, jnp.float32), jax.random.key(2))).all())


def run(tx: optax.GradientTransformation, steps: int) -> tuple[jax.Array, jax.Array]:
    """Move parameters of 1 by 1e-4 a step: a fortieth of the distance to bfloat16's next number."""
    params = Policy(param_dtype="bfloat16").masters({"w": jnp.ones((1, 512)), "count": jnp.int32(3)})["w"]

    def loss_fn(params: dict, model_state: dict, batch: jax.Array, key: jax.Array) -> tuple:
        return jnp.sum(params["w"].astype(jnp.float32) * batch), (model_state, {})

    state = create({"w": params}, {}, tx, identity(), jax.random.key(0))
    step = make_train_step(loss_fn, tx, identity())
    for _ in range(steps):
        state, _ = step(state, jnp.float32(-1))
    return state.params["w"], state.opt_state


def test_small_updates_add_up_without_masters() -> None:
    steps = 100
    plain, _ = run(optax.sgd(1e-4), steps)
    assert plain.dtype == jnp.bfloat16
    assert (np.asarray(plain, np.float32) == 1).all(), "ordinary rounding loses every update"
    w, state = run(stochastic_rounding(optax.sgd(1e-4, momentum=0.0), jax.random.key(5)), steps)
    assert w.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state.inner)} == {jnp.dtype(jnp.float32)}
    # Each walk has variance of at most steps * 1e-4 * 2**-7: the mean of 512 is within 5e-4 * 5 of 1.01.
    np.testing.assert_allclose(np.asarray(w, np.float64).mean(), 1.01, atol=2e-3)
    again, _ = run(stochastic_rounding(optax.sgd(1e-4, momentum=0.0), jax.random.key(5)), steps)
    np.testing.assert_array_equal(np.asarray(w), np.asarray(again))


def test_float32_leaves_are_the_optimisers_own() -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16), "scale": jnp.ones(3)}
    tx = stochastic_rounding(optax.sgd(0.1), jax.random.key(0))
    grads = {"w": jnp.ones(3, jnp.bfloat16), "scale": jnp.full(3, 1e-6)}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["scale"], np.full(3, -1e-7), rtol=1e-6)
    assert optax.apply_updates(params, updates)["scale"].dtype == jnp.float32


def test_misuse() -> None:
    with pytest.raises(TypeError, match=r"takes float32; got bfloat16"):
        stochastic_round(jnp.ones(2, jnp.bfloat16), jax.random.key(0))
    tx = stochastic_rounding(optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(TypeError, match=r"a bfloat16 parameter is required; got w \(float32\)"):
        tx.init({"w": jnp.ones(2)})
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(TypeError, match="update needs the parameters"):
        tx.update(params, tx.init(params))
