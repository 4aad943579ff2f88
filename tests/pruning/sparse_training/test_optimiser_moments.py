"""Moments under masks: against hand computation, for every way that optax nests states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lepton_jax import chain, fake_quant
from lepton_jax.pruning.sparse_training import fixed_masks, masked_moments
from lepton_jax.pruning.sparse_training.fixed_masks import FixedMasksState

MASK = jnp.array([True, False, True, False])
GROWN = jnp.array([True, True, False, False])  # 1 grows, 2 is dropped
PARAMS = {"w": jnp.array([1.0, 0.0, 2.0, 0.0]), "b": jnp.ones(3)}
GRADS = {"w": jnp.array([1.0, 9.0, -2.0, jnp.nan]), "b": jnp.ones(3)}

NESTED = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.5),
    "momentum": optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9)),
    "partition": optax.partition({"x": optax.adam(0.1), "y": optax.sgd(0.1, momentum=0.9)}, {"w": "x", "b": "y"}),
    "partition by function": optax.partition(
        {"x": optax.adam(0.1), "y": optax.sgd(0.1, momentum=0.9)}, lambda tree: {"w": "y", "b": "x"}
    ),
    "masked": optax.masked(optax.adam(0.1), {"w": True, "b": False}),
    "chain": optax.chain(optax.clip_by_global_norm(100.0), optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
    "multi steps": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
}


def moments_of_w(state: object) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state) if leaf.shape == (4,)]


@pytest.mark.parametrize("name", NESTED)
def test_what_is_pruned_gathers_nothing(name: str) -> None:
    tx = masked_moments(NESTED[name])
    update = jax.jit(tx.update)
    state, params = tx.init(PARAMS), PARAMS
    for _ in range(3):
        updates, state = update(GRADS, state, params, tstate=FixedMasksState({"w": MASK}))
        params = optax.apply_updates(params, updates)
        assert not np.asarray(updates["w"])[[1, 3]].any()
        found = moments_of_w(state)
        assert found
        assert all(not moment[[1, 3]].any() for moment in found)
        assert any(moment[[0, 2]].any() for moment in found)
    assert params["w"][1] == 0
    assert (params["b"] != 1).all()
    # 2 is dropped: its moment goes with the next step, and its gradient is not gathered.
    _, state = update(GRADS, state, params, tstate=FixedMasksState({"w": GROWN}))
    assert all(not moment[[2, 3]].any() for moment in moments_of_w(state))


def test_a_grown_weight_starts_afresh_under_adam() -> None:
    """Three steps with 1 pruned; then it grows: its moments are those of one gradient, beside the count of four."""
    tx = masked_moments(optax.adam(0.1))
    state = tx.init(PARAMS)
    clean = GRADS | {"w": jnp.array([1.0, 9.0, -2.0, 5.0])}
    for _ in range(3):
        _, state = tx.update(clean, state, PARAMS, tstate=FixedMasksState({"w": MASK}))
    updates, state = tx.update(clean, state, PARAMS, tstate=FixedMasksState({"w": GROWN}))
    np.testing.assert_allclose(state[0].mu["w"][1], 0.1 * 9.0, rtol=1e-6)
    np.testing.assert_allclose(state[0].nu["w"][1], 0.001 * 81.0, rtol=1e-5)
    np.testing.assert_allclose(state[0].mu["w"][0], 1 - 0.9**4, rtol=1e-5)
    assert int(state[0].count) == 4
    first, second = 0.1 * 9 / (1 - 0.9**4), 0.001 * 81 / (1 - 0.999**4)
    np.testing.assert_allclose(updates["w"][1], -0.1 * first / (np.sqrt(second) + 1e-8), rtol=1e-4)


def test_fresh_is_what_the_optimizer_starts_from() -> None:
    """Adagrad's accumulator starts at 0.1, not at zero."""
    tx = masked_moments(optax.adagrad(0.1, initial_accumulator_value=0.1))
    state = tx.init(PARAMS)
    _, state = tx.update(GRADS, state, PARAMS, tstate=FixedMasksState({"w": ~MASK & False}))
    np.testing.assert_array_equal(state[0].sum_of_squares["w"], jnp.full(4, 0.1))
    _, state = tx.update(GRADS, state, PARAMS, tstate=FixedMasksState({"w": MASK}))
    np.testing.assert_allclose(state[0].sum_of_squares["w"], [1.1, 0.1, 4.1, 0.1], rtol=1e-6)


def test_without_masks_it_is_the_optimizer() -> None:
    tx, grads = optax.adamw(0.1), GRADS | {"w": jnp.arange(4.0)}
    plain, wrapped = tx.update(grads, tx.init(PARAMS), PARAMS), masked_moments(tx)
    jax.tree.map(np.testing.assert_array_equal, wrapped.update(grads, wrapped.init(PARAMS), PARAMS, tstate=()), plain)


def test_extra_arguments_and_missing_state() -> None:
    tx = masked_moments(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=jnp.float32(1), tstate=FixedMasksState({"w": MASK}))
    assert float(state[1].best_value) == 1.0
    with pytest.raises(TypeError, match=r"needs the transform's state: tx.update\(grads, opt_state, params, tstate=tstate\)"):
        masked_moments(optax.sgd(0.1)).update(PARAMS, optax.sgd(0.1).init(PARAMS), PARAMS)


def test_nnx_state_and_nested_masks() -> None:
    params = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)[1]
    mask = jnp.arange(6).reshape(3, 2) % 2 == 0
    transform, tx = chain(fixed_masks({"kernel": mask}), fake_quant(bits=4)), masked_moments(optax.adam(0.1))
    masters, tstate = transform.init(params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, masters), tx.init(masters), masters, tstate=tstate)
    assert jax.tree.structure(updates) == jax.tree.structure(masters)
    assert (np.asarray(state[0].mu["kernel"].get_value()) != 0).tolist() == mask.tolist()
    assert (np.asarray(state[0].mu["bias"].get_value()) != 0).all()


def test_moments_of_another_shape_are_left() -> None:
    """Adafactor's are factored: rows and columns, not the weight."""
    params = {"w": jnp.ones((128, 128))}
    tx = masked_moments(optax.adafactor(0.1))
    mask = FixedMasksState({"w": jnp.arange(128 * 128).reshape(128, 128) % 2 == 0})
    updates, state = tx.update(params, tx.init(params), params, tstate=mask)
    assert not np.asarray(updates["w"])[:, 1::2].any()
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves((updates, state)))
