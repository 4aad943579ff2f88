"""Soft thresholds: values and gradients by hand, training that drives the sparsity, fixed masks afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import cast, chain, fake_quant, pack, unpack
from lepton_jax.pruning.sparse_training import Thresholded, fixed_masks, nonzero_masks, soft_threshold, sparsity_of

FOUR = {"kernel": jnp.array([[1.0, -0.25], [0.5, -2.5]]), "bias": jnp.ones(2)}


def test_view_and_gradients_by_hand() -> None:
    """s = 0, so g = 0.5 and g' = 0.25. ``|w| = g`` is pruned."""
    transform = soft_threshold(initial=0.0)
    params, state = transform.init(FOUR)
    slope = jnp.array([[1.0, 2.0], [3.0, 5.0]])
    value, grads = jax.value_and_grad(lambda p: jnp.sum(slope * transform.view(p, state)["kernel"]))(params)
    assert float(value) == 0.5 - 10
    assert grads["kernel"].weight.tolist() == [[1.0, 0.0], [0.0, 5.0]]
    assert grads["kernel"].threshold.tolist() == [[-0.25 * (1.0 - 5.0)]]
    assert transform.view(params, state)["bias"] is params["bias"]


@pytest.mark.parametrize("g", [jax.nn.sigmoid, jnp.exp])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_view_against_numpy(g: object, axis: int | None) -> None:
    weight = np.random.default_rng(1).normal(size=(5, 4))
    transform = soft_threshold(initial=-0.7, g=g, channel_axis=axis)
    params, state = transform.init({"w": jnp.asarray(weight, jnp.float32)})
    shape = {None: (1, 1), 0: (5, 1), -1: (1, 4)}[axis]
    assert params["w"].threshold.shape == shape
    start = np.linspace(-1.5, 0.5, np.prod(shape)).reshape(shape)
    params = {"w": Thresholded(params["w"].weight, jnp.asarray(start, jnp.float32))}
    limit = np.exp(start) if g is jnp.exp else 1 / (1 + np.exp(-start))
    expected = np.sign(weight) * np.maximum(np.abs(weight) - limit, 0)
    seen = jax.jit(transform.view)(params, state)["w"]
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-7)
    assert not np.signbit(np.asarray(seen)[expected == 0]).any()
    np.testing.assert_array_equal(pack(transform, params, state)["w"], transform.view(params, state)["w"])


def test_decay_drives_the_sparsity_and_a_later_phase_keeps_it() -> None:
    goal = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)
    transform, traces = soft_threshold(initial=-6.0), []
    tx = optax.chain(optax.add_decayed_weights(0.05), optax.sgd(0.5))  # the decay is the loss's, as in the paper

    @jax.jit
    def step(params: dict, moments: object) -> tuple:
        traces.append(1)
        grads = jax.grad(lambda p: jnp.mean((transform.view(p, ())["w"] - goal) ** 2))(params)
        updates, moments = tx.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments

    params, state = transform.init({"w": goal})
    moments, reached = tx.init(params), []
    for _ in range(80):
        params, moments = step(params, moments)
        params, state = transform.update(params, state, params, 0)
        reached.append(float(sparsity_of(nonzero_masks(transform.view(params, state)))))
    assert len(traces) == 1
    assert reached[0] == 0
    assert 0.1 < reached[-1] < 0.5
    seen = transform.view(params, state)
    fixed = fixed_masks(nonzero_masks(seen))
    masters, masks = fixed.init(seen)
    np.testing.assert_array_equal(fixed.view(masters, masks)["w"], seen["w"])


def test_composes() -> None:
    transform = chain(soft_threshold(initial=0.0), fake_quant(bits=4), cast(jnp.bfloat16))
    params, state = transform.init(FOUR)
    seen = transform.view(params, state)["kernel"]
    assert seen.dtype == jnp.bfloat16
    assert (np.asarray(seen) != 0).tolist() == [[True, False], [False, True]]
    np.testing.assert_array_equal(unpack(pack(transform, params, state))["kernel"], seen)
    grads = jax.grad(lambda p: jnp.sum(transform.view(p, state)["kernel"].astype(jnp.float32)))(params)
    assert grads["kernel"].weight.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_narrow_weights_keep_their_dtype() -> None:
    params, state = soft_threshold(channel_axis=-1).init({"w": jnp.ones((3, 2), jnp.bfloat16)})
    assert soft_threshold().view(params, state)["w"].dtype == jnp.bfloat16


def test_bad_axes_are_all_named() -> None:
    with pytest.raises(ValueError, match=r"bias: shape \(2,\) has no axis 1"):
        soft_threshold(channel_axis=1, select="*").init(FOUR)
    with pytest.raises(ValueError, match="matches no floating leaf"):
        soft_threshold(select="nothing").init(FOUR)
