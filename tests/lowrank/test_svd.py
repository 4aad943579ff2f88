"""Low rank against float64 singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import chain, low_rank, pack, prune
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank import factorize

MATRIX = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(2, 3, 2, 5)).astype(np.float32)


@pytest.mark.parametrize("weight", [MATRIX, MATRIX.T, KERNEL], ids=["tall", "wide", "convolution"])
def test_errors_are_the_singular_values_left_out(weight: np.ndarray) -> None:
    flat = weight.reshape(-1, weight.shape[-1]).astype(np.float64)
    values = np.linalg.svd(flat, compute_uv=False)
    for rank in (1, 3, 5):
        leaf = factorize(jnp.asarray(weight), rank)
        assert (leaf.u.shape, leaf.v.shape, leaf.rank) == ((flat.shape[0], rank), (rank, flat.shape[1]), rank)
        assert leaf.shape == leaf.unpack().shape == weight.shape
        assert leaf.unpack().dtype == leaf.dtype == jnp.float32
        error = np.linalg.norm(np.asarray(leaf.unpack(), np.float64) - weight)
        np.testing.assert_allclose(error, np.sqrt(np.sum(values[rank:] ** 2)), rtol=1e-5, atol=1e-5)
        # Both factors carry the same share.
        np.testing.assert_allclose(np.linalg.norm(leaf.u, axis=0), np.sqrt(values[:rank]), rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(leaf.v, axis=1), np.sqrt(values[:rank]), rtol=1e-5)
    np.testing.assert_allclose(leaf.unpack(), weight, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_product() -> None:
    transform = low_rank(2)
    params, state = transform.init({"w": jnp.asarray(KERNEL)})
    slope = jnp.asarray(np.random.default_rng(2).normal(size=KERNEL.shape), jnp.float32)
    grads = jax.grad(lambda p: jnp.sum(slope * transform.view(p, state)["w"] ** 2))(params)["w"]

    def product(u: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(slope * (u @ v).reshape(KERNEL.shape) ** 2)

    expected = jax.grad(product, (0, 1))(params["w"].u, params["w"].v)
    np.testing.assert_allclose(grads.u, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads.v, expected[1], rtol=1e-5, atol=1e-6)


def test_factors_are_pruned_one_by_one() -> None:
    transform = chain(low_rank(2), prune(0.5))
    params, state = transform.init({"w": jnp.asarray(MATRIX)})
    leaf = pack(transform, params, state)["w"]
    assert isinstance(leaf, LowRank)
    assert (int((leaf.u == 0).sum()), int((leaf.v == 0).sum())) == (7, 5)
    np.testing.assert_array_equal(transform.view(params, state)["w"], leaf.u @ leaf.v)


def test_every_bad_rank_is_named() -> None:
    params = {"a": jnp.ones((7, 5)), "b": jnp.ones((2, 9)), "c": jnp.ones(4), "d": jnp.ones((3, 3, 2, 9))}
    with pytest.raises(ValueError, match=r"rank 6:\n  a: shape \(7, 5\); the rank must be 1 to 5.*\n  b: .*1 to 2") as caught:
        low_rank(6).init(params)
    assert "d:" not in str(caught.value)
    with pytest.raises(ValueError, match=r"Svd cannot factorize .*:\n  c: shape \(4,\) has 1 axes"):
        low_rank(1, select="c").init(params)
    with pytest.raises(ValueError, match="matches no floating leaf"):
        low_rank(1, select="e").init(params)


@pytest.mark.parametrize("rank", [2.0, "2", True, 0, -1])
def test_a_rank_is_a_whole_number(rank: object) -> None:
    with pytest.raises(ValueError, match="rank must be a whole number from 1 up; got"):
        low_rank(rank)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_matrix_has_no_rank(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"empty: shape .* must be 1 to 0"):
        low_rank(1).init({"empty": jnp.zeros(shape)})
