"""Masks made in rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core import paths
from lepton_jax.pruning import keep_count, prune
from lepton_jax.pruning.criteria import Criterion, Magnitude, Random, Snip, SynFlow
from lepton_jax.pruning.rounds import iterative_masks


def params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    shapes = {"a": (5, 8), "b": (8, 6), "c": (6, 3)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()} | {"bias": jnp.ones(3)}


def apply(p: dict, x: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.maximum(x @ p["a"], 0) @ p["b"], 0) @ p["c"]


X = jnp.asarray(np.random.default_rng(9).normal(size=(7, 5)), jnp.float32)
CRITERIA = {
    "magnitude": Magnitude(),
    "snip": Snip(loss=lambda p: jnp.mean(apply(p, X) ** 2)),
    "synflow": SynFlow(apply=apply, inputs=X),
}


def by_hand(criterion: Criterion, tree: dict, sparsity: float, rounds: int) -> dict:
    """The same with one round after the other, scored eagerly and ranked by numpy."""
    masks = {path: np.ones(leaf.shape, bool) for path, leaf in paths.select(tree, paths.matrices).items()}
    total = sum(mask.size for mask in masks.values())
    for k in range(1, rounds + 1):
        weights = {path: jnp.where(mask, tree[path], 0) for path, mask in masks.items()}
        seen = tree | weights
        scores = criterion.score_all(weights, criterion.init_all(weights, seen), seen)
        flat = np.concatenate([np.where(masks[p], np.asarray(s, np.float64), -np.inf).reshape(-1) for p, s in scores.items()])
        keep = total - round((1 - (1 - sparsity) ** (k / rounds)) * total)
        chosen = np.zeros(total, bool)
        chosen[np.argsort(-flat, kind="stable")[:keep]] = True
        ends = np.cumsum([mask.size for mask in masks.values()])
        parts = np.split(chosen, ends[:-1])
        masks = {path: part.reshape(mask.shape) for (path, mask), part in zip(masks.items(), parts)}
    return masks


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("rounds", [1, 7])
def test_against_rounds_by_hand(name, rounds):
    tree = params()
    masks = iterative_masks(CRITERIA[name], tree, 0.8, rounds, progress=False)
    expected = by_hand(CRITERIA[name], tree, 0.8, rounds)
    assert masks.keys() == expected.keys() == {"a", "b", "c"}
    for path, mask in masks.items():
        assert mask.dtype == jnp.bool_
        np.testing.assert_array_equal(mask, expected[path])
    assert sum(int(m.sum()) for m in masks.values()) == keep_count(106, 0.8)


def test_one_round_is_one_shot():
    masks = iterative_masks(CRITERIA["snip"], params(), 0.5, 1, progress=False)
    _, state = prune(0.5, criterion=CRITERIA["snip"], scope="global").init(params())
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, state.masks[path])


@pytest.mark.parametrize("sparsity", [0.0, 0.33, 0.9])
def test_counts_are_exact_in_every_layer(sparsity):
    masks = iterative_masks(
        Random(key=jax.random.key(0)), params(), sparsity, 5, scope="layer", select=("a", "c"), progress=False
    )
    assert {p: int(m.sum()) for p, m in masks.items()} == {"a": keep_count(40, sparsity), "c": keep_count(18, sparsity)}


def test_rounds_keep_layers_alive_where_one_shot_cuts_them_off():
    """Layer collapse: what iterating is for."""
    rng = np.random.default_rng(0)
    tree = {f"{n}": jnp.asarray(rng.normal(size=(20, 20)) * scale, jnp.float32) for n, scale in enumerate((1, 1, 1, 1))}
    tree["4"] = jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)

    def chain(p, x):
        for n in range(5):
            x = jnp.maximum(x @ p[f"{n}"], 0)
        return x

    criterion = SynFlow(apply=chain, inputs=jnp.ones((1, 20)))
    flow = lambda masks: float(chain({p: jnp.abs(tree[p]) * m for p, m in masks.items()}, jnp.ones((1, 20))).sum())  # noqa: E731
    many = iterative_masks(criterion, tree, 0.985, 60, progress=False)
    once = iterative_masks(criterion, tree, 0.985, 1, progress=False)
    assert flow(many) > 0
    assert all(bool(mask.any()) for mask in many.values())
    assert flow(many) > flow(once)


def test_one_program_for_all_rounds():
    calls = []

    class Counted(Criterion):
        def scores(self, weight, state):
            calls.append(weight)
            return jnp.abs(weight)

    iterative_masks(Counted(), params(), 0.5, 6, select="a", progress=False)
    assert len(calls) == 1


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        iterative_masks(Magnitude(), params(), 1.2)
    with pytest.raises(ValueError, match="rounds must be a whole number from 1 up; got 0"):
        iterative_masks(Magnitude(), params(), 0.5, 0)
    with pytest.raises(ValueError, match="scope must be 'global' or 'layer'; got 'leaf'"):
        iterative_masks(Magnitude(), params(), 0.5, scope="leaf")
    with pytest.raises(ValueError, match="matches no floating leaf"):
        iterative_masks(Magnitude(), params(), 0.5, select="z")
