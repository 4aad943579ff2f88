"""Trained codebooks: k-means against scikit-learn, gradients against a plain gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from lepton_jax import chain, fake_quant, pack, prune, unpack
from lepton_jax.quantization import Codebook, k_means, look_up


def inertia(weights: np.ndarray, centroids: np.ndarray, codes: np.ndarray) -> float:
    kept = weights != 0
    return float(np.sum((weights[kept].astype(np.float64) - centroids[codes[kept].astype(int) - 1]) ** 2))


@pytest.mark.parametrize("kind", ["normal", "uniform", "pruned"])
def test_inertia_is_scikit_learns(kind: str) -> None:
    draw = np.random.default_rng(0)
    weights = draw.uniform(-1, 1, size=2000) if kind == "uniform" else draw.normal(size=2000)
    weights = np.where(np.abs(weights) < 1, 0, weights) if kind == "pruned" else weights
    weights = weights.astype(np.float32)
    kept = weights[weights != 0]
    for count in (2, 8):
        centroids, codes = (np.asarray(x) for x in k_means(jnp.asarray(weights), count))
        start = kept.min() + (kept.max() - kept.min()) * (np.arange(count) + 0.5) / count
        fit = KMeans(count, init=start[:, None], n_init=1, max_iter=50, tol=0).fit(kept[:, None].astype(np.float64))
        assert (centroids.dtype, codes.dtype, codes.shape) == (np.float32, np.uint8, weights.shape)
        np.testing.assert_array_equal(codes == 0, weights == 0)
        assert (np.diff(centroids) >= 0).all()
        # Each weight has the nearest centroid.
        nearest = np.abs(kept[:, None] - centroids[None]).min(1)
        np.testing.assert_allclose(np.abs(kept - centroids[codes[weights != 0].astype(int) - 1]), nearest, atol=1e-6)
        assert inertia(weights, centroids, codes) <= 1.02 * fit.inertia_


def test_centroids_are_the_means_of_large_arrays() -> None:
    """Running sums in float32 must not cost accuracy: a layer of the size of LeNet-300-100's first."""
    weights = np.random.default_rng(1).normal(size=235_200).astype(np.float32)
    centroids, codes = (np.asarray(x) for x in k_means(jnp.asarray(weights), 4))
    means = [weights[codes == j + 1].astype(np.float64).mean() for j in range(4)]
    np.testing.assert_allclose(centroids, means, atol=2e-3)


def test_special_arrays() -> None:
    cases = {
        "one centroid": ([1.0, 2.0, 0.0, 6.0], 1, [1.0, 2.0, 0.0, 6.0], [3.0, 3.0, 0.0, 3.0]),
        "fewer values than centroids": ([1.0, 1.0, -2.0], 4, None, [1.0, 1.0, -2.0]),
        "all zero": ([0.0, -0.0], 4, None, [0.0, 0.0]),
        "constant": ([0.7, 0.7], 2, None, [0.7, 0.7]),
        "a tie on the boundary": ([1.0, 2.0, 3.0], 2, None, [1.5, 1.5, 3.0]),
        "empty": ([], 2, None, []),
    }
    for name, (weights, count, _, expected) in cases.items():
        centroids, codes = k_means(jnp.asarray(weights, jnp.float32), count)
        assert centroids.shape == (count,), name
        assert bool(jnp.all(jnp.isfinite(centroids))), name
        np.testing.assert_allclose(look_up(centroids, codes), expected, rtol=1e-6, err_msg=name)


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights() -> None:
    codes = jnp.array([[1, 3], [0, 1]], jnp.uint8)
    slope = jnp.array([[1.0, 2.0], [4.0, 8.0]])
    by_hand = jax.grad(lambda c: jnp.sum(slope * look_up(c, codes)))(jnp.array([1.0, 2.0, 3.0]))
    assert by_hand.tolist() == [9.0, 0.0, 2.0]

    draw = np.random.default_rng(2)
    codes = jnp.asarray(draw.integers(0, 9, size=(13, 7)), jnp.uint8)
    slope, centroids = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in ((13, 7), (8,)))

    def gathered(c: jax.Array) -> jax.Array:
        return jnp.sum(slope * jnp.where(codes == 0, 0, c[codes.astype(int) - 1]) ** 2)

    ours = jax.grad(lambda c: jnp.sum(slope * look_up(c, codes) ** 2))(centroids)
    np.testing.assert_allclose(ours, jax.grad(gathered)(centroids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 7])
def test_pruned_zeros_stay_and_all_is_packed(bits: int) -> None:
    params = {"w": jnp.asarray(np.random.default_rng(3).normal(size=(16, 15)), jnp.float32)}
    transform = chain(prune(0.7), fake_quant(Codebook(bits=bits)))
    params, state = transform.init(params)
    [table] = jax.tree.leaves(params)
    assert (table.shape, table.dtype) == ((2**bits,), jnp.float32)
    seen = np.asarray(transform.view(params, state)["w"])
    np.testing.assert_array_equal(seen != 0, state[0].masks["w"])
    leaf = pack(transform, params, state)["w"]
    assert leaf.index.shape == (-(-240 * (bits + 1) // 8),)
    assert int(leaf.codes.max()) <= 2**bits
    assert np.asarray(unpack(leaf)).tobytes() == seen.tobytes()


def test_masked_codes() -> None:
    params = {"w": jnp.asarray(np.random.default_rng(4).normal(size=(5, 4)), jnp.float32)}
    transform = fake_quant(Codebook(bits=2))
    masters, state = transform.init(params)
    leaf = pack(transform, masters, state)["w"]
    mask = params["w"] > 0
    np.testing.assert_array_equal(leaf.masked(mask).unpack(), jnp.where(mask, leaf.unpack(), 0))


@pytest.mark.parametrize("bits", [0, 8, 2.5])
def test_bits_out_of_range(bits: float) -> None:
    with pytest.raises(ValueError, match=f"Codebook: bits must be a whole number from 1 to 7; got {bits}"):
        Codebook(bits=bits)
