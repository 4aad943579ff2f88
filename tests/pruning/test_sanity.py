"""Sanity ablations: counts stay, positions and values do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.pruning.sanity import reinitialize, shuffle_masks

MASKS = {"b": jnp.arange(40).reshape(5, 8) < 13, "a": jnp.arange(30) % 3 == 0, "none": jnp.zeros((2, 3), bool)}


def test_shuffled_masks_keep_counts_and_lose_positions() -> None:
    shuffled = shuffle_masks(jax.random.key(0), MASKS)
    for path, mask in MASKS.items():
        assert (shuffled[path].shape, shuffled[path].dtype) == (mask.shape, jnp.bool_)
        assert int(shuffled[path].sum()) == int(mask.sum())
    assert not np.array_equal(shuffled["a"], MASKS["a"])
    assert not np.array_equal(shuffled["b"], MASKS["b"])
    other = shuffle_masks(jax.random.key(1), MASKS)
    assert not np.array_equal(shuffled["b"], other["b"])
    again = jax.jit(shuffle_masks)(jax.random.key(0), MASKS)  # jit hands over dicts in another order
    jax.tree.map(np.testing.assert_array_equal, again, shuffled)
    assert shuffle_masks(jax.random.key(0), {}) == {}


def test_every_position_is_as_likely() -> None:
    keys = jax.random.split(jax.random.key(0), 2000)
    often = jax.vmap(lambda key: shuffle_masks(key, {"w": jnp.arange(8) < 2})["w"])(keys).sum(axis=0)
    assert (np.abs(np.asarray(often) - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_new_weights_under_old_masks() -> None:
    params = {"a": jnp.full(30, 7.0), "b": jnp.full((5, 8), jnp.nan, jnp.bfloat16), "bias": jnp.ones(3)}
    masks = {path: MASKS[path] for path in ("a", "b")}
    init = jax.nn.initializers.normal(1.0)
    drawn = reinitialize(jax.random.key(0), params, masks, init)
    assert drawn["bias"] is params["bias"]
    for path, mask in masks.items():
        assert (drawn[path].dtype, drawn[path].shape) == (params[path].dtype, mask.shape)
        np.testing.assert_array_equal(np.asarray(drawn[path]) != 0, mask)
    first, second = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(drawn["a"], jnp.where(MASKS["a"], init(first, (30,), jnp.float32), 0))
    np.testing.assert_array_equal(drawn["b"], jnp.where(MASKS["b"], init(second, (5, 8), jnp.bfloat16), 0))


def test_masks_that_fit_nothing_are_all_named() -> None:
    with pytest.raises(
        ValueError, match=r"(.|\n)*a: there is no leaf of that path and of shape \(30,\)(.|\n)*none: there is no"
    ):
        reinitialize(jax.random.key(0), {"b": jnp.ones((5, 8)), "a": jnp.ones(3)}, MASKS, jax.nn.initializers.ones)
