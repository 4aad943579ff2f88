"""Leaves of 2**31 weights and more: counts against numpy's int64, the search on small leaves against the usual one."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import graph, prune
from lepton_jax.core import schedules
from lepton_jax.pruning import NofM, UnevenWarning, keep_count, keep_some, top_of_all, top_of_groups, words
from lepton_jax.pruning.hide import sparsity_of
from lepton_jax.pruning.sparse_training import rigl
from lepton_jax.pruning.threshold import leave_one

LEAF = (80, 8192, 28672)  # of a decoder of 70 billion
BIG = {"a": {"kernel": jax.ShapeDtypeStruct(LEAF, jnp.float32)}, "b": {"kernel": jax.ShapeDtypeStruct((64, 3), jnp.float32)}}


def number(count) -> int:
    return words.as_int(jax.device_get(count))


@pytest.mark.parametrize("n", [1, 3, 80, 2**12 + 1])
def test_sums_are_those_of_int64(n):
    rng = np.random.default_rng(n)
    for largest in (1, 2**16 + 1, 2**31 - 1, 2**32 - 1):
        counts = rng.integers(0, largest, size=(n, 3), dtype=np.uint64, endpoint=True)
        found = jax.jit(partial(words.add_up, largest=largest))(jnp.asarray(counts.astype(np.uint32)))
        assert [number(one) for one in found] == counts.sum(axis=0).tolist()


def test_arithmetic_is_that_of_int64():
    rng = np.random.default_rng(0)
    edge = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5]
    a = np.array(edge * len(edge) + rng.integers(0, 2**50, size=50).tolist())
    b = np.array([one for one in edge for _ in edge] + rng.integers(0, 2**50, size=50).tolist())
    one, other = words.counts_of(a.tolist(), wide=True), words.counts_of(b.tolist(), wide=True)
    assert [number(x) for x in words.plus(one, other)] == (a + b).tolist()
    assert [number(x) for x in words.minus(one, other)] == np.maximum(a - b, 0).tolist()
    assert words.reaches(one, other).tolist() == (a >= b).tolist()
    assert words.saturated(one).tolist() == np.minimum(a, 2**31 - 1).tolist()


def test_how_many_are_kept_of_many():
    size = int(np.prod(LEAF))
    assert keep_count(size, 0.9) == size - round(0.9 * size)
    for sparsity in (0.0, 0.3, 0.9, 0.9999):
        found = number(jax.jit(partial(keep_some, size))(jnp.float32(sparsity)))
        assert abs(found - (size - round(float(np.float32(sparsity)) * size))) <= size * 2**-23
    both = keep_some(np.array([size, 10]), jnp.array([0.5, 0.5], jnp.float32))
    assert [number(one) for one in both] == [size // 2, 5]
    share = words.share(0.25, words.counts_of(2**40, wide=True))
    assert number(share) == 2**38


def test_small_leaves_are_counted_in_int32():
    """What was compiled for them is what is compiled now."""
    state = prune(0.5).init({"w": jnp.ones((4, 4))})[1]
    assert (state.goals.keep.dtype, state.goals.keep.shape) == (jnp.int32, (1,))
    with pytest.raises(ValueError, match="more than the 2147483647"):
        jax.eval_shape(partial(top_of_groups, groups=(0,)), [BIG["a"]["kernel"]], jax.ShapeDtypeStruct((1,), jnp.int32))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("structure", ["unstructured", NofM(n=2, m=4, axis=-2)], ids=["weights", "2:4"])
def test_a_leaf_of_2_to_the_34_is_pruned_on_paper(scope, structure):
    if scope == "global" and structure != "unstructured":
        return
    kind = {} if structure == "unstructured" else {"structure": structure}
    transform = prune(0.5 if kind else schedules.polynomial(0.9, begin=0, end=10), scope=scope, **kind)
    params, state = jax.eval_shape(transform.init, BIG)
    after = jax.eval_shape(lambda p, s: transform.update(p, s, p, 3), params, state)
    assert jax.tree.structure(after) == jax.tree.structure((params, state))
    assert after[1].masks["a/kernel"].shape == LEAF
    program = jax.make_jaxpr(lambda p, s: transform.update(p, s, p, 3))(params, state)
    assert len(str(program).splitlines()) < 1600
    text = str(program)
    assert "i64" not in text
    assert "f64" not in text


def test_top_of_all_of_2_to_the_34_on_paper():
    [mask] = jax.eval_shape(lambda w: top_of_all([w], keep_count(w.size, 0.9)), BIG["a"]["kernel"])
    assert mask.shape == LEAF
    key = jax.random.key(0)
    params, state = jax.eval_shape(rigl(0.9, key, end=10).init, BIG)
    assert state.masks["a/kernel"].shape == LEAF
    jax.eval_shape(lambda p, s: rigl(0.9, key, end=10).update(p, s, p, 3), params, state)


@pytest.fixture
def few(monkeypatch):
    """An int32 that counts to 20 only."""
    jax.clear_caches()
    monkeypatch.setattr(words, "COUNTABLE", 20)
    yield monkeypatch
    jax.clear_caches()


def arrays(seed: int, *, tied: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(5, 3, 4), (7,), (41,), (2, 30), (0, 3), (1,), (), (3, 1, 1, 9)]
    draw = (lambda s: rng.integers(-2, 3, size=s) / 4) if tied else (lambda s: rng.normal(size=s))
    made = [np.asarray(draw(shape), np.float32) for shape in shapes]
    made[3][0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    return made


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("groups", [(0,) * 8, tuple(range(8)), (0, 1, 0, 1, 2, 2, 0, 1)], ids=["one", "each", "three"])
def test_the_masks_are_those_of_the_other_search(few, groups, tied):
    for seed in range(2):
        scores = [jnp.asarray(one) for one in arrays(seed, tied=tied)]
        rng = np.random.default_rng([seed, 1])
        totals = [sum(one.size for one, g in zip(scores, groups) if g == group) for group in range(max(groups) + 1)]
        allowed = [jnp.asarray(rng.random(one.shape) < 0.8) for one in scores]
        for share in (0.0, 0.1, 0.5, 1.0):
            keep = [round(share * total) for total in totals]
            for free in (None, allowed):
                found = top_of_groups(scores, words.counts_of(keep, wide=True), groups=groups, allowed=free)
                few.setattr(words, "COUNTABLE", 2**31 - 1)
                wanted = top_of_groups(scores, jnp.asarray(keep), groups=groups, allowed=free)
                few.setattr(words, "COUNTABLE", 20)
                for mine, theirs in zip(found.masks, wanted.masks):
                    np.testing.assert_array_equal(mine, theirs)
                np.testing.assert_array_equal(found.not_finite, wanted.not_finite)


def scanned(params, x):
    return jax.lax.scan(lambda h, kernel: (jnp.tanh(h @ kernel), None), x, params["layers"]["kernel"])[0] @ params["head"]


@pytest.mark.parametrize("kind", ["layer", "global", "stacked", "straight_through", "rigl"])
def test_whole_runs_end_with_the_same_masks(few, kind):
    rng = np.random.default_rng(5)
    params = {"layers": {"kernel": rng.normal(size=(3, 8, 8))}, "head": rng.integers(-2, 3, size=(8, 5))}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    late = schedules.polynomial(0.7, begin=1, end=4)
    roles = graph.weights(scanned, params, jnp.ones((2, 8)))
    made = {
        "layer": lambda: prune(late),
        "global": lambda: prune(late, scope="global"),
        "stacked": lambda: prune(late, select=roles),
        "straight_through": lambda: prune(late, gradient="straight_through", scope="global"),
        "rigl": lambda: rigl(0.7, jax.random.key(3), end=9, interval=1),
    }

    def run():
        transform = made[kind]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnevenWarning)
            now, state = transform.init(params)
        update = jax.jit(transform.update)
        for step in range(1, 6):
            grads = jax.tree.map(jnp.sin, jax.tree.map(lambda leaf, n=step: leaf + n, now))
            now, state = update(jax.tree.map(lambda p, g: p - 0.1 * g, now, grads), state, grads, step)
        return state

    wide = run()
    if kind != "rigl":
        assert wide.goals.keep.ndim == 2
    few.setattr(words, "COUNTABLE", 2**31 - 1)
    narrow = run()
    for path, mask in narrow.masks.items():
        assert 0 < int(mask.sum()) < mask.size
        np.testing.assert_array_equal(mask, wide.masks[path])


def test_scores_that_are_not_finite_are_told_of(few):
    bad = {"w": jnp.full((5, 9), jnp.nan)}
    transform = prune(schedules.polynomial(0.5, begin=0, end=4), scope="global")
    _, state = transform.init({"w": jnp.ones((5, 9))})
    _, state = transform.update(bad, state, bad, 2)
    assert "45 scores are NaN" in str(state.problems())


def test_the_best_that_is_left_is_the_first(few):
    scores = jnp.asarray(np.array([1.0, 3.0, 3.0, 0.0] * 10, np.float32).reshape(5, 4, 2))
    [mask] = leave_one([jnp.zeros(scores.shape, bool)], [scores], needed=[True])
    assert np.flatnonzero(mask).tolist() == [1]


def test_the_sparsity_of_many(few):
    masks = {"a": jnp.arange(40).reshape(5, 8) % 4 == 0, "b": jnp.zeros(30, bool)}
    assert float(sparsity_of(masks)) == pytest.approx(60 / 70)


def test_many_runs_at_once(few):
    """Several sparsities under vmap."""
    w = jnp.asarray(np.random.default_rng(2).integers(-9, 9, size=(6, 7)), jnp.float32)
    masks = jax.vmap(lambda s: prune(s, scope="global").init({"w": w})[1].masks["w"])(jnp.array([0.25, 0.5, 0.75]))
    assert masks.sum((1, 2)).tolist() == [42 - round(s * 42) for s in (0.25, 0.5, 0.75)]
