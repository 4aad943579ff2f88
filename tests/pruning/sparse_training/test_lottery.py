"""Lottery tickets: exact counts of survivors, nested masks, what each round begins from."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.pruning.sparse_training import (
    RandomReinitialization,
    fixed_masks,
    lottery,
    next_masks,
    rate_rewinding,
    rewind,
    weight_rewinding,
)

PARAMS = {"a": jnp.array([[1.0, -4.0], [3.0, 2.0]]), "b": jnp.array([[0.5, 10.0]]), "bias": jnp.array([0.1])}
ALL = {"b": jnp.ones((1, 2), bool), "a": jnp.ones((2, 2), bool)}


def test_next_masks_by_hand() -> None:
    layer = next_masks(PARAMS, ALL, 0.5, scope="layer")
    assert layer["a"].tolist() == [[False, True], [True, False]]
    assert layer["b"].tolist() == [[False, True]]
    every = next_masks(PARAMS, ALL, 0.5)
    assert every["a"].tolist() == [[False, True], [True, False]]
    again = next_masks(PARAMS, every, 0.5)  # 3 left: 3 - round(1.5) = 1
    assert again["a"].tolist() == [[False, False], [False, False]]
    assert again["b"].tolist() == [[False, True]]
    apart = next_masks(PARAMS, ALL, {"a": 0.25, "b": 0.0}, scope="layer")
    assert apart["a"].tolist() == [[False, True], [True, True]]
    assert apart["b"].all()


def test_ties_and_zeros_of_survivors() -> None:
    """A survivor that trained to zero still comes before what is pruned; ties go to the lower index; NaN is worth nothing."""
    mask = {"w": jnp.array([False, True, True, True, True])}
    for value in (0.0, 1.0, jnp.nan):
        assert next_masks({"w": jnp.full(5, value)}, mask, 0.5)["w"].tolist() == [False, True, True, False, False]
    jitted = jax.jit(lambda p, m: next_masks(p, m, 0.5))({"w": jnp.ones(5)}, mask)
    assert jitted["w"].tolist() == [False, True, True, False, False]


def train(params: dict, masks: dict) -> dict:
    """Stand-in for training: moves every weight by its own amount, under the masks."""
    transform = fixed_masks(masks)
    masters, state = transform.init(params)
    moved = jax.tree.map(lambda w: 1.5 * w + 0.25, masters)
    return transform.update(moved, state, masters, 0)[0]


RESTARTS = {
    "weights": weight_rewinding,
    "rate": rate_rewinding,
    "random": RandomReinitialization(key=jax.random.key(3), init=jax.nn.initializers.normal(1.0)),
}


@pytest.mark.parametrize("name", RESTARTS)
def test_rounds(name: str) -> None:
    draw = np.random.default_rng(0).normal
    initial = {"a": jnp.asarray(draw(size=(10, 10)), jnp.float32), "bias": jnp.ones(10)}
    rounds = list(lottery(initial, train, rounds=3, fraction=0.2, restart=RESTARTS[name]))
    assert [one.number for one in rounds] == [0, 1, 2, 3]
    left = [100]
    for _ in range(3):
        left.append(left[-1] - round(0.2 * left[-1]))
    assert [int(one.masks["a"].sum()) for one in rounds] == left == [100, 80, 64, 51]
    assert rounds[0].begun is initial
    for before, one in itertools.pairwise(rounds):
        mask = np.asarray(one.masks["a"])
        assert not (mask & ~np.asarray(before.masks["a"])).any()
        by_hand = np.argsort(np.where(before.masks["a"], np.abs(before.trained["a"]), np.inf), axis=None, kind="stable")
        assert not mask.reshape(-1)[by_hand[: int(before.masks["a"].sum()) - int(mask.sum())]].any()
        begun = np.asarray(one.begun["a"])
        assert not begun[~mask].any()
        if name == "weights":
            np.testing.assert_array_equal(begun[mask], np.asarray(initial["a"])[mask])
            np.testing.assert_array_equal(one.begun["bias"], initial["bias"])
        elif name == "rate":
            np.testing.assert_array_equal(begun[mask], np.asarray(before.trained["a"])[mask])
            np.testing.assert_array_equal(one.begun["bias"], before.trained["bias"])
        else:
            assert np.unique(begun[mask]).size == mask.sum()
            assert not np.isin(begun[mask], initial["a"]).any()
            assert not np.isin(begun[mask], before.begun["a"]).any()
        assert not np.asarray(one.trained["a"])[~mask].any()


def test_rewind_hides_nan() -> None:
    assert rewind({"w": jnp.array([jnp.nan, 2.0])}, {"w": jnp.array([False, True])})["w"].tolist() == [0.0, 2.0]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="rounds must be a whole number from 0 up; got -1"):
        lottery(PARAMS, train, rounds=-1)
    with pytest.raises(ValueError, match=r"scope must be(.|\n)*b: no fraction given"):
        next_masks(PARAMS, ALL, {"a": 0.2}, scope="none")
    with pytest.raises(ValueError, match="a fraction by path needs scope='layer'"):
        next_masks(PARAMS, ALL, {"a": 0.2, "b": 0.2})
    with pytest.raises(ValueError, match=r"fraction of b must be in \[0, 1\)"):
        next_masks(PARAMS, ALL, 1.0)
    with pytest.raises(ValueError, match="c: no such floating leaf"):
        next_masks(PARAMS, {"c": ALL["a"]}, 0.5)
