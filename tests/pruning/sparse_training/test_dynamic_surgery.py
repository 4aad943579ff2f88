"""Dynamic network surgery: hand-computed masks, masters that live on, a whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import pack
from lepton_jax.pruning.sparse_training import dynamic_surgery, sparsity_of
from lepton_jax.pruning.sparse_training.dynamic_surgery import prune_and_splice, surgery_threshold

EIGHT = {"w": jnp.array([[1.0, -2.0, 3.0, -4.0], [0.5, 0.0, -6.0, 1.5]])}


def test_thresholds_and_masks_by_hand() -> None:
    """|w| has mean 2.25 and, in float64, std 1.8875...; with c = 0.5 the middle is 3.1937, so a = 2.874 and b = 3.513."""
    size = np.abs(np.asarray(EIGHT["w"], np.float64))
    middle = size.mean() + 0.5 * size.std()
    np.testing.assert_allclose(surgery_threshold(EIGHT["w"], 0.5), middle, rtol=1e-6)
    assert float(surgery_threshold(EIGHT["w"], -9.0)) == 0

    transform = dynamic_surgery(0.5, jax.random.key(0), end=10, select="w")
    _, state = transform.init(EIGHT)
    assert state.masks["w"].tolist() == [[False, False, True, True], [False, False, True, False]]  # 3.0 is between: kept
    moved = {"w": jnp.array([[3.3, 3.6, 2.8, -3.0], [-3.6, jnp.inf, 6.0, jnp.nan]])}
    for step in (9, 10):  # before and from the end
        after, new = transform.update(moved, state, EIGHT, step)
        np.testing.assert_array_equal(after["w"], moved["w"])  # masters live on
        spliced = [[False, True, False, True], [True, False, True, False]]  # 3.3 stays out, 3.6 is in; inf and nan stay out
        assert new.masks["w"].tolist() == (spliced if step < 10 else state.masks["w"].tolist())
        np.testing.assert_array_equal(new.thresholds["w"], state.thresholds["w"])


def test_boundaries() -> None:
    """``|w| < a`` is off, ``|w| >= b`` is on."""
    values = jnp.array([0.5, 0.5, 1.0, 1.0, 0.75, 0.75, -0.25, -2.0])
    mask = jnp.array([True, False] * 4)
    expected = [True, False, True, True, True, False, False, True]
    assert prune_and_splice(mask, values, 0.5, 1.0).tolist() == expected


def test_one_step_by_hand() -> None:
    """``w <- w - rate dL/d(w T)`` for all w; the gradient is that at the view, not at the masters."""
    transform = dynamic_surgery(0.5, jax.random.key(0), end=10, select="w")
    params, state = transform.init(EIGHT)
    goal = jnp.ones((2, 4))
    grads = jax.grad(lambda p: jnp.sum((transform.view(p, state)["w"] - goal) ** 2))(params)
    expected = 2 * (np.asarray([[0, 0, 3.0, -4.0], [0, 0, -6.0, 0]]) - 1)
    np.testing.assert_array_equal(grads["w"], expected)
    updates, _ = optax.sgd(1.0).update(grads, optax.sgd(1.0).init(params))
    after, state = transform.update(optax.apply_updates(params, updates), state, grads, 0)
    np.testing.assert_array_equal(after["w"], EIGHT["w"] - expected)
    assert state.masks["w"].tolist() == (np.abs(EIGHT["w"] - expected) > 3.52).tolist()
    seen = transform.view(after, state)["w"]
    np.testing.assert_array_equal(seen, np.where(state.masks["w"], after["w"], 0))
    np.testing.assert_array_equal(pack(transform, after, state)["w"], seen)


def test_updates_come_by_interval_and_chance() -> None:
    transform = dynamic_surgery(0.0, jax.random.key(0), end=4000, interval=2, gamma=1.0, power=0.5, select="w")
    _, state = transform.init({"w": jnp.array([1.0, 3.0])})
    flipped = {"w": jnp.array([3.0, 1.0])}
    steps = jnp.arange(4000)
    moved = jax.jit(jax.vmap(lambda step: transform.update(flipped, state, flipped, step)[1].masks["w"][0]))(steps)
    assert not moved[1::2].any()
    for low, high in ((0, 200), (200, 2000), (2000, 4000)):
        chance = (1 + np.arange(low, high, 2.0)) ** -0.5
        deviation = np.sqrt((chance * (1 - chance)).sum())
        assert abs(int(moved[low:high].sum()) - chance.sum()) < 4 * deviation


def test_stacked_states_are_separate_ones() -> None:
    """Of several keys and thresholds, under one vmap."""
    weights = [{"w": jnp.asarray(np.random.default_rng(seed).normal(size=(4, 6)), jnp.float32)} for seed in range(3)]
    make = [dynamic_surgery(0.1 * i, jax.random.key(i), end=9, gamma=1.0) for i in range(3)]
    states = [transform.init(w)[1] for transform, w in zip(make, weights)]
    moved = [{"w": w["w"][::-1]} for w in weights]
    update = jax.jit(jax.vmap(make[0].update, in_axes=(0, 0, 0, None)))
    stacked, params = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (states, moved))
    changed = set()
    for step in range(4):
        after = update(params, stacked, params, step)[1].masks["w"]
        for i, transform in enumerate(make):
            np.testing.assert_array_equal(after[i], transform.update(moved[i], states[i], moved[i], step)[1].masks["w"])
            changed.add(bool((after[i] != states[i].masks["w"]).any()))
    assert changed == {True, False}


def test_a_run_prunes_and_splices() -> None:
    """Pruned weights come back as the loss asks for them; one trace."""
    goal = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    transform, tx, traces = dynamic_surgery(0.0, jax.random.key(0), end=20), optax.adam(0.2), []

    @jax.jit
    def step(params: dict, state: object, moments: object, number: jax.Array) -> tuple:
        traces.append(1)
        grads = jax.grad(lambda p: jnp.sum((transform.view(p, state)["w"] - goal) ** 2))(params)
        updates, moments = tx.update(grads, moments, params)
        params, state = transform.update(optax.apply_updates(params, updates), state, grads, number)
        return params, state, moments

    params, state = transform.init({"w": goal[::-1]})
    moments, spliced = tx.init(params), 0
    for number in range(30):
        before = np.asarray(state.masks["w"])
        params, state, moments = step(params, state, moments, jnp.int32(number))
        spliced += int((np.asarray(state.masks["w"]) & ~before).sum())
        assert not np.asarray(transform.view(params, state)["w"])[~np.asarray(state.masks["w"])].any()
    assert spliced > 0
    assert 0 < float(sparsity_of(state.masks)) < 1
    assert len(traces) == 1
    large = np.abs(goal) > 1.5 * float(state.thresholds["w"])
    assert np.asarray(state.masks["w"])[large].all()


def test_bad_arguments() -> None:
    with pytest.raises(
        ValueError, match=r"margin must be in \[0, 1\); got 1(.|\n)*gamma and power must not be negative; got -1"
    ):
        dynamic_surgery(0.0, jax.random.key(0), end=10, margin=1, gamma=-1)
    with pytest.raises(ValueError, match="end must be a whole number from 1 up"):
        dynamic_surgery(0.0, jax.random.key(0), end=0)
    with pytest.raises(ValueError, match="matches no floating leaf"):
        dynamic_surgery(0.0, jax.random.key(0), end=10, select="nothing").init(EIGHT)
