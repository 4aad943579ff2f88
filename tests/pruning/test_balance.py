"""No leaf loses all that it has, and pruning that starves some layers says so."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import Model, prune, prune_model
from lepton_jax.core import schedules
from lepton_jax.pruning import (
    Blocks,
    Channels,
    Explicit,
    Filters,
    NofM,
    UnevenWarning,
    erk,
    iterative_masks,
    keep_some,
    sparsegpt_prune,
    uniform,
)
from lepton_jax.pruning.criteria import Lamp, Magnitude, Random, Saliency
from lepton_jax.pruning.sparse_training import ac_dc, dynamic_surgery, lottery, next_masks, rigl, set_
from lepton_jax.pruning.threshold import leave_one

KEY = jax.random.key(0)
RISING = schedules.polynomial(0.95, begin=0, end=3)


def tree() -> dict:
    """A leaf of one weight, a small one of small weights, and a large one."""
    draw = np.random.default_rng(17).normal
    return {
        "w_one": jnp.array([[0.01]]),
        "small": jnp.asarray(1e-3 * draw(size=(1, 1, 2, 3)), jnp.float32),
        "large": jnp.asarray(draw(size=(40, 30)), jnp.float32),
    }


MASKS = {
    "uniform": lambda v: prune(0.9).init(v)[1].masks,
    "traced": lambda v: jax.jit(lambda s: prune(s).init(v)[1].masks)(0.9),
    "erk": lambda v: prune(0.98, allocation=partial(erk, power=0)).init(v)[1].masks,
    "explicit": lambda v: prune(0.9, allocation=lambda shapes, s: dict.fromkeys(shapes, 0.97)).init(v)[1].masks,
    "global": lambda v: prune(0.9, scope="global").init(v)[1].masks,
    "global, many": lambda v: prune(0.999, scope="global").init(v)[1].masks,
    "lamp": lambda v: prune(0.99, scope="global", criterion=Lamp()).init(v)[1].masks,
    "random": lambda v: prune(0.99, scope="global", criterion=Random(key=KEY)).init(v)[1].masks,
    "all alike": lambda v: prune(0.99, scope="global", criterion=Saliency()).init(v)[1].masks,
    "blocks": lambda v: prune(0.95, structure=Blocks(shape=(4, 4))).init(v)[1].masks,
    "channels": lambda v: prune(0.95, structure=Channels(axis=0)).init(v)[1].masks,
    "filters, global": lambda v: prune(0.95, structure=Filters(), scope="global").init(v)[1].masks,
    "n of m": lambda v: prune(0.5, structure=NofM(n=1, m=2, pad=True)).init(v)[1].masks,
    "set": lambda v: set_(0.9, KEY, end=3, allocation=uniform).init(v)[1].masks,
    "rigl": lambda v: rigl(0.99, KEY, end=3, allocation=uniform).init(v)[1].masks,
    "surgery": lambda v: dynamic_surgery(9.0, KEY, end=3).init(v)[1].masks,
    "rounds": lambda v: iterative_masks(Magnitude(), v, 0.95, 3, progress=False),
    "rounds by layer": lambda v: iterative_masks(Magnitude(), v, 0.95, 3, scope="layer", progress=False),
    "lottery": lambda v: next_masks(v, {p: jnp.ones(w.shape, bool) for p, w in v.items()}, 0.95, scope="layer"),
    "lottery, global": lambda v: list(lottery(v, lambda params, masks: params, rounds=2, fraction=0.95))[-1].masks,
    "ac/dc": lambda v: _after(ac_dc(0.95, begin=0, end=2, compressed=1, dense=1), v),
    "gradual": lambda v: _after(prune(RISING), v),
    "gradual, global": lambda v: _after(prune(RISING, scope="global"), v),
    "may return": lambda v: _after(prune(RISING, scope="global", gradient="straight_through"), v),
}


def _after(transform, params: dict) -> dict:
    params, state = transform.init(params)
    for step in range(4):
        params, state = transform.update(params, state, params, step)
        assert all(mask.any() for mask in state.masks.values())
        assert all(np.asarray(leaf)[np.asarray(state.masks[path])].any() for path, leaf in params.items())
    return state.masks


@pytest.mark.filterwarnings("ignore::lepton_jax.pruning.UnevenWarning")
@pytest.mark.parametrize("name", MASKS)
def test_every_leaf_keeps_something(name: str) -> None:
    masks = MASKS[name](tree())
    kept = {path: int(mask.sum()) for path, mask in masks.items()}
    assert min(kept.values()) >= 1, kept
    assert sum(kept.values()) < 1207 / 2 + 5


def test_what_is_kept_is_the_best_and_counts_change_nowhere_else() -> None:
    v = tree()
    masks = _quiet(prune(0.9, scope="global"), v)
    best = np.abs(np.asarray(v["small"])) == np.abs(np.asarray(v["small"])).max()
    np.testing.assert_array_equal(masks["small"], best)
    size = np.sort(np.abs(np.asarray(v["large"])).reshape(-1))
    kept = 1207 - round(0.9 * 1207)
    np.testing.assert_array_equal(masks["large"], np.abs(v["large"]) >= size[-kept])  # the threshold is as before
    assert int(_quiet(prune(0.9), {"w": jnp.ones((5, 4))})["w"].sum()) == 2


def _quiet(transform, params: dict) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnevenWarning)
        return transform.init(params)[1].masks


@pytest.mark.parametrize("seed", range(5))
def test_leave_one_by_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = [rng.integers(-3, 3, size=shape).astype(np.float32) for shape in [(3, 4), (1,), (2, 2, 2), (0, 3), ()]]
    allowed = [rng.random(s.shape) < 0.6 for s in scores]
    masks = [(rng.random(s.shape) < 0.5) & bool(i % 2) for i, s in enumerate(scores)]
    found = jax.jit(partial(leave_one, needed=[True] * 5))(masks, scores, allowed)
    assert all((a == b).all() for a, b in zip(leave_one(masks, scores, needed=[False] * 5), masks))
    for mask, score, free, new in zip(masks, scores, allowed, found):
        expected = np.array(mask)
        if score.size and not mask.any():
            ranked = np.where(free, score, -np.inf).reshape(-1)
            expected.reshape(-1)[int(np.argmax(ranked))] = True
        np.testing.assert_array_equal(new, expected)


def test_biases_may_lose_all() -> None:
    v = {"w": jnp.asarray(np.random.default_rng(2).normal(size=(8, 8)), jnp.float32), "b": 1e-3 * jnp.ones(8)}
    masks = prune(0.5, scope="global", select="*").init(v)[1].masks
    assert not masks["b"].any()
    assert int(masks["w"].sum()) == 36


def test_keep_some() -> None:
    for size in (0, 1, 2, 9, 100):
        for sparsity in (0.0, 0.3, 0.5, 0.9, 0.99):
            expected = max(size - round(sparsity * size), min(size, 1))
            assert keep_some(size, sparsity) == expected
            traced = jax.jit(keep_some, static_argnums=0)(size, sparsity)
            assert abs(int(traced) - expected) <= (1 if size else 0)
            assert traced.dtype == jnp.int32
            assert int(traced) >= min(size, 1)


def test_sparsegpt_keeps_one() -> None:
    v = {"w": jnp.array([[2.0]])}
    _, masks = sparsegpt_prune(lambda v, x: x @ v["w"], v, [jnp.ones((3, 1))], 0.9, progress=False)
    assert masks["w"].tolist() == [[True]]


def uneven() -> dict:
    draw = np.random.default_rng(23).normal
    return {"first": jnp.asarray(0.1 * draw(size=(12, 12)), jnp.float32), "last": jnp.asarray(draw(size=(12, 12)), jnp.float32)}


@pytest.mark.parametrize(
    "call",
    [
        lambda v: prune(0.7, scope="global").init(v),
        lambda v: prune_model(Model(lambda v, x: x, v), sparsity=0.7, scope="global"),
        lambda v: prune_model(Model(lambda v, x: x, v), threshold=0.25),
    ],
)
def test_starved_layers_are_named_with_the_remedy(call) -> None:
    with pytest.warns(UnevenWarning, match=r"first \(\d of 144\) keep less than 5%, while last keep more.*erk") as caught:
        call(uneven())
    assert len(caught) == 1
    assert caught[0].filename == __file__ or "techniques" in caught[0].filename


def test_what_was_asked_for_leaf_by_leaf_does_not_warn() -> None:
    v = uneven()
    with warnings.catch_warnings(record=True, action="always") as caught:
        prune(0.96).init(v | {"w_one": jnp.ones((1, 1))})
        prune(0.7, allocation=erk).init(v)
        prune(0.675, allocation=Explicit(sparsities={"first": 0.98, "last": 0.37})).init(v)
        prune(0.5, scope="global").init(v)  # about 10 % are left of the first
        prune_model(Model(lambda v, x: x, v), sparsity=0.96)
        prune(schedules.polynomial(0.7, begin=0, end=9), scope="global").init(v)
    assert [str(one.message) for one in caught] == []
