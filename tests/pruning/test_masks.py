"""Masks against a stable argsort in numpy, group by group and block by block."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.pruning import block, channel, keep_count, n_of_m, top, top_of_all


def reference(scores: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` highest; NaN below everything, -0 equal to 0, ties to the lower index."""
    flat = np.where(np.isnan(scores), -np.inf, scores).reshape(-1) + 0.0
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:keep]] = True
    return mask.reshape(scores.shape)


def _cases() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    normal = draw.normal(size=(5, 7))
    return {
        "random": normal,
        "tied": draw.integers(-2, 3, size=(5, 7)) / 4,
        "equal": np.full((5, 7), 0.3),
        "negative": -np.abs(normal),
        "infinite": np.where(draw.random((5, 7)) < 0.3, np.inf, np.where(draw.random((5, 7)) < 0.3, -np.inf, normal)),
        "nan": np.where(draw.random((5, 7)) < 0.3, np.nan, normal),
        "zeros of both signs": np.where(draw.random((5, 7)) < 0.5, -0.0, 0.0),
        "wide": np.ldexp(normal, draw.integers(-100, 100, size=(5, 7))),
    }


SPARSITIES = [0.0, 0.1, 0.3, 0.5, 0.77, 0.999]


@pytest.mark.parametrize("name", _cases())
def test_top_is_the_stable_sort(name: str) -> None:
    scores = _cases()[name].astype(np.float32)
    for sparsity in SPARSITIES:
        mask = top(jnp.asarray(scores), sparsity)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, reference(scores, scores.size - round(sparsity * scores.size)))


def test_traced_scores_and_sparsity_give_the_same_masks() -> None:
    traced = jax.jit(top)
    for scores in _cases().values():
        scores = scores.astype(np.float32)
        for sparsity in SPARSITIES:
            keep = scores.size - int(np.round(np.float32(sparsity) * np.float32(scores.size)))
            np.testing.assert_array_equal(traced(scores, jnp.float32(sparsity)), reference(scores, keep))


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_small_sizes(size: int) -> None:
    scores = np.random.default_rng(size).normal(size=size).astype(np.float32)
    for keep in range(size + 1):
        [mask] = top_of_all([jnp.asarray(scores)], keep)
        np.testing.assert_array_equal(mask, reference(scores, keep))


def test_narrow_scores_are_compared_exactly() -> None:
    scores = jnp.asarray(np.random.default_rng(2).normal(size=33), jnp.bfloat16)
    np.testing.assert_array_equal(top(scores, 0.4), reference(np.asarray(scores, np.float32), 33 - round(0.4 * 33)))


def test_global_scope_equals_the_joined_array() -> None:
    draw = np.random.default_rng(3)
    shapes = [(4, 3), (5,), (2, 2, 2), (0, 3)]
    for tied in (False, True):
        scores = [(draw.integers(0, 3, s) if tied else draw.normal(size=s)).astype(np.float32) for s in shapes]
        joined = np.concatenate([s.reshape(-1) for s in scores])
        for keep in (0, 1, 12, 24, 25):
            masks = top_of_all([jnp.asarray(s) for s in scores], keep)
            assert [m.shape for m in masks] == shapes
            np.testing.assert_array_equal(np.concatenate([m.reshape(-1) for m in masks]), reference(joined, keep))


def test_leaves_too_large_to_be_joined() -> None:
    """Counted where they lie, beside a small one of their group; ties run over both."""
    draw = np.random.default_rng(9)
    shapes = [(2049, 2048), (100,)]
    assert np.prod(shapes[0]) > 1 << 22
    for scores in ([draw.normal(size=s) for s in shapes], [draw.integers(0, 9, s) for s in shapes]):
        scores = [s.astype(np.float32) for s in scores]
        joined = np.concatenate([s.reshape(-1) for s in scores])
        for keep in (joined.size // 5, joined.size - 3):
            bound = np.sort(joined)[-keep]
            above, ties = joined > bound, joined == bound
            expected = above | (ties & (np.cumsum(ties) <= keep - above.sum()))
            masks = top_of_all([jnp.asarray(s) for s in scores], keep)
            np.testing.assert_array_equal(np.concatenate([np.ravel(mask) for mask in masks]), expected)


def test_keep_count_of_a_float_is_pythons_own_rounding() -> None:
    for size in (1, 10, 235_200, 430_500):
        for sparsity in (0.0, 0.05, 0.15, 0.25, 0.35, 0.9, 0.985, 0.999):
            assert keep_count(size, sparsity) == size - round(sparsity * size)
    assert int(keep_count(10, jnp.float32(0.25))) == 8
    assert keep_count(10, jnp.float32(0.25)).dtype == jnp.int32


# --------------------------------------------------------------------------------------------------------------------- N of M


def groups_reference(scores: np.ndarray, n: int, m: int, axis: int) -> np.ndarray:
    """Each group by itself; a short last one keeps n too, or all it has."""
    mask = np.zeros(scores.shape, bool)
    moved, seen = np.moveaxis(mask, axis, -1), np.moveaxis(scores, axis, -1)  # views
    for line in np.ndindex(moved.shape[:-1]):
        for start in range(0, moved.shape[-1], m):
            part = seen[line][start : start + m]
            moved[line][start : start + m] = reference(part, min(n, part.size))
    return mask


@pytest.mark.parametrize("name", _cases())
@pytest.mark.parametrize(("n", "m", "axis"), [(1, 5, 0), (2, 7, 1), (3, 7, -1), (5, 5, -2), (1, 1, 1), (0, 7, 1)])
def test_n_of_m_is_a_sort_of_each_group(name: str, n: int, m: int, axis: int) -> None:
    scores = _cases()[name].astype(np.float32)
    mask = n_of_m(jnp.asarray(scores), n, m, axis)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, groups_reference(scores, n, m, axis))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (7, 16), (5, 24), (31, 48)])
def test_n_of_m_of_any_size_along_any_axis(n: int, m: int, axis: int) -> None:
    """On both sides of the size at which the arithmetic changes, ties included."""
    shape = [3, 3, 3]
    shape[axis] = 48
    for scores in (np.random.default_rng(m).normal(size=shape), np.random.default_rng(n).integers(0, 3, shape)):
        scores = scores.astype(np.float32)
        np.testing.assert_array_equal(n_of_m(scores, n, m, axis), groups_reference(scores, n, m, axis))


@pytest.mark.parametrize("m", [3, 4, 20])
def test_a_short_last_group_keeps_what_it_can(m: int) -> None:
    draw = np.random.default_rng(m)
    for scores in (draw.normal(size=(3, 10)), np.full((3, 10), -np.inf), np.full((3, 10), np.nan), np.zeros((3, 10))):
        scores = scores.astype(np.float32)
        for n in (1, 2, m):
            mask = np.asarray(n_of_m(scores, n, m, 1, pad=True))
            np.testing.assert_array_equal(mask, groups_reference(scores, n, m, 1))
            assert (mask[:, 10 - 10 % m :].sum(1) == min(n, 10 % m)).all()
    assert n_of_m(jnp.ones((2, 10)), 1, 4, 0, pad=True).sum() == 10


def test_n_of_m_under_transformations() -> None:
    scores = jnp.asarray(np.random.default_rng(4).normal(size=(3, 8, 5)), jnp.float32)
    kept = jax.jit(jax.vmap(lambda n: n_of_m(scores, n, 4, 1)))(jnp.arange(5))
    for n in range(5):
        np.testing.assert_array_equal(kept[n], groups_reference(np.asarray(scores), n, 4, 1))
    np.testing.assert_array_equal(jax.vmap(lambda s: n_of_m(s, 2, 4, 0))(scores), kept[2])
    large = jnp.asarray(np.random.default_rng(5).normal(size=(2, 40)), jnp.float32)
    mapped = jax.jit(jax.vmap(lambda s: n_of_m(s, 9, 20, -1)))(large)
    np.testing.assert_array_equal(mapped, groups_reference(np.asarray(large), 9, 20, 1))


def test_the_program_of_a_large_group_is_no_larger() -> None:
    def size(m: int) -> int:
        return len(str(jax.make_jaxpr(partial(n_of_m, n=1, m=m, axis=0))(jnp.ones(1024))).splitlines())

    assert size(16) == size(2)
    assert size(1024) == size(64)


# --------------------------------------------------------------------------------------------------------- blocks and channels


def blocks_reference(scores: np.ndarray, keep: int, block_shape: tuple[int, ...]) -> np.ndarray:
    """Block by block in float64."""
    full = (1,) * (scores.ndim - len(block_shape)) + tuple(block_shape)
    starts = list(itertools.product(*(range(0, size, width) for size, width in zip(scores.shape, full))))
    places = [tuple(slice(at, at + width) for at, width in zip(start, full)) for start in starts]
    means = np.array([scores[place].astype(np.float64).mean() for place in places])
    mask = np.zeros(scores.shape, bool)
    for place, kept in zip(places, reference(means, keep)):
        mask[place] = kept
    return mask


BLOCKS = [
    ((6, 8), (2, 4), 6),
    ((6, 8), (4, 3), 6),  # both axes end in smaller blocks
    ((5, 7), (1, 2), 20),
    ((5, 7), (100, 100), 1),
    ((5, 7), (1, 1), 35),
    ((3, 5, 7), (3,), 45),  # the last axis only
    ((2, 3, 5, 4), (2, 3), 2 * 3 * 3 * 2),
]


@pytest.mark.parametrize(("shape", "block_shape", "count"), BLOCKS)
def test_blocks(shape: tuple, block_shape: tuple, count: int) -> None:
    draw = np.random.default_rng(count)
    for scores in (draw.normal(size=shape), draw.integers(0, 2, size=shape), np.full(shape, 0.3), np.full(shape, -1e30)):
        scores = scores.astype(np.float32)
        for sparsity in (0.0, 0.25, 0.5, 0.9, 0.999):
            expected = blocks_reference(scores, count - round(sparsity * count), block_shape)
            mask = block(jnp.asarray(scores), sparsity, block_shape)
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, expected)
            traced = jax.jit(block, static_argnums=2)(scores, jnp.float32(sparsity), block_shape)
            np.testing.assert_array_equal(traced, expected)


def test_one_bad_score_is_its_own_block_s_matter() -> None:
    scores = np.ones((2, 6), np.float32)
    for bad, place in ((np.nan, 0), (-np.inf, 2), (np.nan, 3)):
        spoilt = scores.copy()
        spoilt[1, place] = bad
        assert block(spoilt, 1 / 6, (1, 2)).tolist() == [[True] * 6, [i // 2 != place // 2 for i in range(6)]]
    spoilt[1, 3] = np.inf
    assert block(spoilt, 5 / 6, (1, 2)).tolist() == [[False] * 6, [False, False, True, True, False, False]]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, (0, 2), (-2, -1), (0, 1, 2)])
def test_channels(axis: int | tuple[int, ...]) -> None:
    draw = np.random.default_rng(6)
    shape = (4, 5, 6)
    along = [a % 3 for a in (axis if isinstance(axis, tuple) else (axis,))]
    others = tuple(a for a in range(3) if a not in along)
    for scores in (draw.normal(size=shape), draw.integers(0, 2, size=shape), np.full(shape, 0.7)):
        scores = scores.astype(np.float32)
        sums = scores.astype(np.float64).sum(others, keepdims=True)
        for sparsity in (0.0, 0.3, 0.5, 0.9):
            kept = reference(sums, sums.size - round(sparsity * sums.size))
            mask = channel(jnp.asarray(scores), sparsity, axis)
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, np.broadcast_to(kept, shape))


# ------------------------------------------------------------------------------------------------------------------- all four

FUNCTIONS = {
    "top": top,
    "n_of_m": lambda scores, sparsity: n_of_m(scores, keep_count(2, sparsity), 2, -1, pad=True),
    "block": lambda scores, sparsity: block(scores, sparsity, (2,)),
    "channel": lambda scores, sparsity: channel(scores, sparsity, -1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8, jnp.uint8, bool])
def test_scores_of_any_dtype(name: str, dtype: jnp.dtype) -> None:
    scores = jnp.asarray(np.random.default_rng(7).integers(0, 100, size=(4, 6)), dtype)
    mask = FUNCTIONS[name](scores, 0.5)
    np.testing.assert_array_equal(mask, FUNCTIONS[name](scores.astype(jnp.float32), 0.5))
    assert mask.sum() == 12


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hardly_any_scores(name: str) -> None:
    assert FUNCTIONS[name](jnp.ones((1, 1)), 0.25).tolist() == [[True]]
    for shape in ((0, 4), (4, 0), (0,)):
        mask = FUNCTIONS[name](jnp.ones(shape), 0.5)
        assert (mask.shape, mask.dtype) == (shape, bool)
    assert top(jnp.float32(3), 0.25).tolist() is True


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_over_sparsities(name: str) -> None:
    scores = jnp.asarray(np.random.default_rng(8).normal(size=(4, 6)), jnp.float32)
    masks = jax.jit(jax.vmap(lambda s: FUNCTIONS[name](scores, s)))(jnp.array([0.0, 0.5, 0.75]))
    for mask, sparsity in zip(masks, (0.0, 0.5, 0.75)):
        np.testing.assert_array_equal(mask, FUNCTIONS[name](scores, sparsity))


ONES = np.ones((6, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top(ONES, 1.0), r"sparsity must be in \[0, 1\).*got 1.0"),
        (lambda: block(ONES, -0.1, (2, 2)), r"sparsity must be in \[0, 1\).*got -0.1"),
        (lambda: channel(ONES, 90, 0), r"sparsity must be in \[0, 1\).*For 90 %, write 0.9"),
        (lambda: n_of_m(ONES, 5, 4, 1), "n must be a whole number from 0 to 4; got 5"),
        (lambda: n_of_m(ONES, -1, 4, 1), "n must be a whole number from 0 to 4; got -1"),
        (lambda: n_of_m(ONES, 0, 0, 1), "m must be a whole number from 1 up; got 0"),
        (lambda: n_of_m(ONES, 2, 4, 0), r"groups of 4 must divide axis 0; shape \(6, 4\) has 6 .* or pad=True"),
        (lambda: n_of_m(ONES, 2, 4, 2), r"axis 2 is none of the 2 axes of shape \(6, 4\)"),
        (lambda: n_of_m(jnp.float32(1), 1, 1, 0), "axis 0 is none of the 0 axes"),
        (lambda: block(ONES, 0.5, (2, 0)), "size must be a whole number from 1 up; got 0"),
        (lambda: block(ONES, 0.5, (1, 2, 2)), r"\(1, 2, 2\) has more axes than scores of shape \(6, 4\)"),
        (lambda: channel(ONES, 0.5, -3), "axis -3 is none of the 2 axes"),
        (lambda: channel(ONES, 0.5, (0, -2)), "several different ones"),
        (lambda: channel(ONES, 0.5, ()), "one axis or several"),
    ],
)
def test_bad_settings(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
