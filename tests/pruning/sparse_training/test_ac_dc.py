"""AC/DC: when phases change, what trains in each, how a dense phase begins; and that static sparse training is `prune`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import prune
from lepton_jax.pruning import allocation, keep_count
from lepton_jax.pruning.criteria import Random
from lepton_jax.pruning.sparse_training import ac_dc, masked_moments
from lepton_jax.training import create, make_train_step

GOAL = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)


def loss_fn(params: dict, model_state: dict, batch: jax.Array, key: jax.Array) -> tuple:
    return jnp.sum((params["a"] - batch) ** 2) + jnp.sum((params["b"] - 2 * batch[:4]) ** 2), (model_state, {})


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_phases(scope: str) -> None:
    """Dense 0-1, compressed 2-4, dense 5-6, compressed 7-9, dense 10-11, compressed from 12; update(t) acts on step t + 1."""
    transform = ac_dc(0.75, begin=2, end=12, compressed=3, dense=2, scope=scope)
    tx = masked_moments(optax.sgd(0.05, momentum=0.9))
    params = {"a": GOAL + 1, "b": GOAL[:4] * 0.1}
    state, step = create(params, {}, tx, transform, jax.random.key(0)), make_train_step(loss_fn, tx, transform)
    last_masks: dict = {}
    dense_after = {0, 1, 5, 6, 10, 11}
    for number in range(16):
        before_masks = {path: np.asarray(mask) for path, mask in state.tstate.masks.items()}
        state, _ = step(state, GOAL)
        masks = {path: np.asarray(mask) for path, mask in state.tstate.masks.items()}
        kept = {path: int(mask.sum()) for path, mask in masks.items()}
        if number in dense_after:
            assert kept == {"a": 40, "b": 20}
        elif scope == "global":
            assert sum(kept.values()) == keep_count(60, 0.75)
        else:
            assert kept == {"a": 10, "b": 5}
        for path, mask in masks.items():
            shown = np.asarray(transform.view(state.params, state.tstate)[path])
            assert not shown[~mask].any()
            assert not np.asarray(state.params[path])[~mask].any()
            if number not in dense_after and number - 1 not in dense_after:
                np.testing.assert_array_equal(mask, before_masks[path])  # fixed within a phase
            assert not np.asarray(state.opt_state[0].trace[path])[~before_masks[path]].any()
            if number in (6, 11):  # the first dense step: the weights come from zero, with a momentum of one gradient
                grown = ~last_masks[path]
                factor = {"a": 1, "b": 2}[path]
                np.testing.assert_allclose(shown[grown], 0.1 * factor * np.asarray(GOAL)[: len(mask)][grown], rtol=1e-5)
        last_masks = before_masks


def test_ends_compressed_and_refuses_bad_phases() -> None:
    with pytest.raises(ValueError, match="end must come after begin"):
        ac_dc(0.5, begin=5, end=5, compressed=1, dense=1)
    with pytest.raises(ValueError, match="dense must be a whole number from 1 up"):
        ac_dc(0.5, begin=0, end=5, compressed=1, dense=0)


def test_static_sparse_training_is_prune_by_random_scores() -> None:
    """Exact ERK counts; the masks hold for the run, whatever the weights become."""
    transform = prune(0.8, criterion=Random(key=jax.random.key(4)), allocation=allocation.erk)
    tx = masked_moments(optax.adamw(0.1, weight_decay=0.1))
    params = {"a": GOAL, "b": GOAL[:4]}
    state, step = create(params, {}, tx, transform, jax.random.key(0)), make_train_step(loss_fn, tx, transform)
    start = {path: np.asarray(mask) for path, mask in state.tstate.masks.items()}
    goals = allocation.erk({"a": (8, 5), "b": (4, 5)}, 0.8)
    kept = {path: int(mask.sum()) for path, mask in start.items()}
    assert kept == {"a": keep_count(40, goals["a"]), "b": keep_count(20, goals["b"])}
    for _ in range(5):
        state, _ = step(state, GOAL)
        for path, mask in start.items():
            np.testing.assert_array_equal(state.tstate.masks[path], mask)
            assert not np.asarray(state.params[path])[~mask].any()
