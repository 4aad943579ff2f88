"""Masks against a stable argsort in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.pruning import keep_count, top, top_of_all


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


def test_keep_count_of_a_float_is_pythons_own_rounding() -> None:
    for size in (1, 10, 235_200, 430_500):
        for sparsity in (0.0, 0.05, 0.15, 0.25, 0.35, 0.9, 0.985, 0.999):
            assert keep_count(size, sparsity) == size - round(sparsity * size)
    assert int(keep_count(10, jnp.float32(0.25))) == 8
    assert keep_count(10, jnp.float32(0.25)).dtype == jnp.int32
