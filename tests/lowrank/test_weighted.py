"""Weighted decompositions: errors in their own norm, against float64, and never above plain SVD's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import low_rank
from lepton_jax.graph.moments import second_moments
from lepton_jax.lowrank import (
    SingularCovarianceWarning,
    SkippedWarning,
    Svd,
    WeightedSvd,
    activation_aware,
    fisher_weighted,
    squared_gradients,
)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def correlated(rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Inputs of very different sizes along turned axes."""
    turned = np.linalg.qr(draw(inputs, inputs, seed=seed))[0]
    return (draw(rows, inputs, seed=seed) * np.geomspace(1, 0.03, inputs, dtype=np.float32)) @ turned


def best(root: np.ndarray, weight: np.ndarray, rank: int) -> float:
    """The least there is of ``||root (W - W')||^2`` at a rank, for a root with an inverse."""
    return float(np.sum(np.linalg.svd(np.float64(root) @ np.float64(weight), compute_uv=False)[rank:] ** 2))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("columns", [True, False])
def test_the_weighted_error_is_the_least_there_is(shape: tuple[int, int], diagonal: bool, columns: bool) -> None:
    weight = draw(*shape)
    side = shape[1] if columns else shape[0]
    root = np.abs(draw(side)) if diagonal else draw(side + 1, side)
    full = np.diag(root) if diagonal else root
    method = WeightedSvd(root=jnp.asarray(root), columns=columns)
    for rank in (1, 3, 6):
        leaf = method.factorize(jnp.asarray(weight), rank)
        assert (leaf.u.shape, leaf.v.shape) == ((shape[0], rank), (rank, shape[1]))
        change = np.float64(leaf.unpack()) - weight
        found, least = (full @ change.T, best(full, weight.T, rank)) if columns else (full @ change, best(full, weight, rank))
        np.testing.assert_allclose(np.sum(found**2), least, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(leaf.u, axis=0), np.linalg.norm(leaf.v, axis=1), rtol=1e-4)
    np.testing.assert_allclose(leaf.unpack(), weight, atol=1e-5)
    [given] = method.matrices(jnp.asarray(weight))
    np.testing.assert_allclose(given, full @ (weight.T if columns else weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_a_singular_root_loses_nothing_at_the_highest_rank(shape: tuple[int, int]) -> None:
    root = np.zeros(shape[0], np.float32)
    root[:2] = 1
    leaf = WeightedSvd(root=jnp.asarray(root)).factorize(jnp.asarray(draw(*shape)), 6)
    np.testing.assert_allclose(leaf.unpack(), draw(*shape), atol=1e-5)


def model(v: dict, x: jax.Array) -> jax.Array:
    """A convolution, a dense layer, attention's two kinds of kernels, a scan over layers, a tied table used transposed."""
    x = jax.lax.conv_general_dilated(x, v["conv"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jnp.tanh(x).mean((1, 2)) @ v["dense"]
    x = jnp.tanh(jnp.einsum("bd,dhk->bhk", x, v["query"]))
    x = jnp.einsum("bhk,hkd->bd", x, v["out"])
    x = jax.lax.scan(lambda c, w: (c + jnp.tanh(c @ w), None), x, v["layers"])[0]
    return x @ v["table"].T


WEIGHTS = {
    "conv": draw(3, 3, 2, 6),
    "dense": draw(6, 8),
    "query": draw(8, 2, 3),
    "out": draw(2, 3, 8),
    "layers": draw(3, 8, 8) / 3,
    "table": draw(11, 8),
}
IMAGES = correlated(12 * 25, 2).reshape(12, 5, 5, 2)


def test_outputs_on_calibration_data_are_never_worse_than_plain_svds() -> None:
    params = jax.tree.map(jnp.asarray, WEIGHTS)
    moments = dict(second_moments(model, params, [jnp.asarray(IMAGES[:6]), jnp.asarray(IMAGES[6:])]))
    assert moments.keys() == WEIGHTS.keys()
    with pytest.warns(SingularCovarianceWarning):
        aware = activation_aware(moments)
    plain = {"query": Svd(rows=1), "layers": Svd(stacked=1)}
    better = 0
    for path, weight in params.items():
        method, found = aware.method.at(path), moments[path]
        assert method.refusal(weight.shape) is None
        second = np.float64(found.second)
        assert method.max_rank(weight.shape) == plain.get(path, Svd()).max_rank(weight.shape)
        for rank in (1, 3, method.max_rank(weight.shape)):
            errors = []
            for one in (method, plain.get(path, Svd())):
                change = np.float64(found.layout.matrix(one.factorize(weight, rank).unpack() - weight))
                errors.append(np.sum(change * (second @ change)))
            mine, other = errors
            assert mine <= other * (1 + 1e-5) + 1e-6 * np.sum(np.diagonal(second, axis1=-2, axis2=-1)), (path, rank)
            better += mine < 0.9 * other
        np.testing.assert_allclose(method.factorize(weight, rank).unpack(), weight, atol=1e-5)
    assert better > 6


def test_outputs_of_one_layer_against_float64() -> None:
    x, weight = correlated(50, 7), draw(7, 9)
    moments = dict(second_moments(lambda v, x: x @ v["w"], {"w": jnp.asarray(weight)}, [jnp.asarray(x)]))
    method = activation_aware(moments, damping=1e-9).method.at("w")
    for rank in (1, 3, 5):
        change = np.float64(method.factorize(jnp.asarray(weight), rank).unpack()) - weight
        np.testing.assert_allclose(np.sum((np.float64(x) @ change) ** 2), best(np.float64(x), weight, rank), rtol=1e-3)


def test_a_singular_covariance_is_damped_and_reported() -> None:
    x = draw(4, 6)
    x[:, 5] = 0
    moments = dict(second_moments(lambda v, x: x @ v["w"], {"w": jnp.asarray(draw(6, 5))}, [jnp.asarray(x)]))
    with pytest.warns(
        SingularCovarianceWarning, match=r"singular for 1 layers \(w: rank 4 of 6 inputs, 4 rows\). It is damped by 1e-05"
    ):
        found = activation_aware(moments)
    assert found.covariances["w"] == (6, 4, 4, 1e-5)
    assert found.covariances["w"].is_singular
    leaf = found.method.at("w").factorize(jnp.asarray(draw(6, 5)), 4)
    assert np.isfinite(leaf.unpack()).all()
    # All that was seen fits into four directions.
    np.testing.assert_allclose(x @ np.asarray(leaf.unpack()), x @ draw(6, 5), atol=1e-3)
    zeros = dict(second_moments(lambda v, x: x @ v["w"], {"w": jnp.asarray(draw(6, 5))}, [jnp.zeros((2, 6))]))
    with pytest.warns(SingularCovarianceWarning, match="rank 0 of 6"):
        dead = activation_aware(zeros).method.at("w").factorize(jnp.asarray(draw(6, 5)), 2)
    np.testing.assert_allclose(dead.unpack(), Svd().factorize(jnp.asarray(draw(6, 5)), 2).unpack(), atol=1e-5)


def test_leaves_without_moments_are_refused_or_skipped() -> None:
    tree = {"w": jnp.asarray(draw(6, 5)), "unused": jnp.ones((4, 4))}
    moments = dict(second_moments(lambda v, x: x @ v["w"], tree, [jnp.asarray(draw(9, 6))], select="w"))
    method = activation_aware(moments).method
    with pytest.raises(
        ValueError, match=r"cannot factorize these.*\n  unused: shape \(4, 4\) has no second moments of its inputs"
    ):
        low_rank(2, method=method).init(tree)
    with pytest.warns(SkippedWarning, match="unused"):
        params, _ = low_rank(2, method=method, unsupported="skip").init(tree)
    assert params["w"].rank == 2
    assert params["unused"] is tree["unused"]


def test_moments_that_say_nothing_are_refused() -> None:
    tree = {"w": jnp.asarray(draw(6, 5))}
    apply = lambda v, x: x @ v["w"]  # noqa: E731
    with pytest.raises(ValueError, match="the second moments of w are only a diagonal"):
        activation_aware(dict(second_moments(apply, tree, [jnp.ones((2, 6))], diagonal=True)))
    with pytest.raises(ValueError, match="the second moments of w are not finite"):
        activation_aware(dict(second_moments(apply, tree, [jnp.full((2, 6), jnp.nan)])))
    with pytest.raises(ValueError, match="damping must be above 0; got 0"):
        activation_aware({}, damping=0)


# ------------------------------------------------------------------------------------------------------------------- Fisher


def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ params["w"]) - y) ** 2)


def test_squared_gradients_are_means_over_batches() -> None:
    params = {"w": jnp.asarray(draw(4, 3))}
    batches = [(jnp.asarray(draw(5, 4, seed=s)), jnp.asarray(draw(5, 3, seed=s))) for s in range(3)]
    expected = np.mean([np.asarray(jax.grad(loss)(params, *batch)["w"]) ** 2 for batch in batches], axis=0)
    found = squared_gradients(loss, params, iter(batches))
    np.testing.assert_allclose(found["w"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="at least one batch"):
        squared_gradients(loss, params, [])


@pytest.mark.parametrize("stacked", [0, 1])
def test_the_fisher_error_is_the_least_there_is(stacked: int) -> None:
    shape = (2, 6, 9)[1 - stacked :]
    weight, information = draw(*shape), draw(*shape, seed=1) ** 2
    information[..., 2, :] = 0
    method = fisher_weighted({"w": jnp.asarray(information)}, method=Svd(stacked=stacked), damping=1e-6)
    leaf = method.at("w").factorize(jnp.asarray(weight), 3)
    change = np.float64(leaf.unpack()) - weight
    for layer in np.ndindex(shape[:stacked]):
        root = np.diag(np.sqrt(np.float64(information[layer]).sum(1)))
        np.testing.assert_allclose(np.sum((root @ change[layer]) ** 2), best(root, weight[layer], 3), rtol=1e-3)
    full = method.at("w").factorize(jnp.asarray(weight), 6)
    np.testing.assert_allclose(full.unpack(), weight, atol=1e-5)


def test_fisher_falls_back_and_refuses() -> None:
    weight = jnp.asarray(draw(6, 5))
    blind = fisher_weighted({"w": jnp.zeros((6, 5))}).at("w").factorize(weight, 2)
    np.testing.assert_allclose(blind.unpack(), Svd().factorize(weight, 2).unpack(), atol=1e-5)
    with pytest.raises(ValueError, match=r"v: shape \(6, 5\) has no Fisher information"):
        low_rank(2, method=fisher_weighted({"w": jnp.ones((6, 5))})).init({"v": weight})
    with pytest.raises(ValueError, match="information of w is negative or not finite"):
        fisher_weighted({"w": -jnp.ones((6, 5))})
    with pytest.raises(ValueError, match="damping must be 0 or more"):
        fisher_weighted({"w": jnp.ones((6, 5))}, damping=-1)
