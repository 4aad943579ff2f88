"""Criteria that need a loss or the model itself: SNIP, GraSP, SynFlow, Wanda."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lepton_jax.core import paths
from lepton_jax.pruning import prune, top
from lepton_jax.pruning.criteria import Grasp, Snip, SynFlow, Wanda
from lepton_jax.pruning.criteria.wanda import wanda_masks

CURVES = np.array([[2.0, 1.0, 0.0, 0.0], [1.0, 3.0, 0.5, 0.0], [0.0, 0.5, 1.0, -1.0], [0.0, 0.0, -1.0, 4.0]])
SLOPE = np.array([1.0, -1.0, 0.5, 2.0])
START = np.array([1.0, -2.0, 0.5, 3.0])


def quadratic(params: dict) -> jax.Array:
    """w'Aw/2 + b'w, of two leaves."""
    w = jnp.concatenate([params["a"].reshape(-1), params["b"]])
    return w @ jnp.asarray(CURVES, jnp.float32) @ w / 2 + jnp.asarray(SLOPE, jnp.float32) @ w


def start() -> dict:
    return {"a": jnp.asarray(START[:2], jnp.float32).reshape(2, 1), "b": jnp.asarray(START[2:], jnp.float32)}


def scored(criterion, params, select=paths.floating) -> dict:
    weights = paths.select(params, select)
    return criterion.score_all(weights, criterion.init_all(weights, params), params)


def joined(scores: dict) -> np.ndarray:
    return np.concatenate([np.ravel(s) for s in scores.values()])


def test_snip_by_hand():
    # A w = [0, -4.75, -3.5, 11.5]; g = A w + b = [1, -5.75, -3, 13.5]
    scores = scored(Snip(loss=quadratic), start())
    np.testing.assert_allclose(joined(scores), [1.0, 11.5, 1.5, 40.5], rtol=1e-6)
    assert [s.shape for s in scores.values()] == [(2, 1), (2,)]


def test_grasp_by_hand():
    g = CURVES @ START + SLOPE
    np.testing.assert_allclose(g, [1, -5.75, -3, 13.5])
    # A g = [2 - 5.75, 1 - 17.25 - 1.5, -2.875 - 3 - 13.5, 3 + 54] = [-3.75, -17.75, -19.375, 57]
    np.testing.assert_allclose(joined(scored(Grasp(loss=quadratic), start())), [-3.75, 35.5, -9.6875, 171], rtol=1e-6)


def test_grasp_keeps_the_weights_whose_removal_costs_most_gradient_flow():
    """Against the definition: the change of |g|^2 by removal, to first order in the removal."""
    scores = joined(scored(Grasp(loss=quadratic), start()))

    def flow(w: np.ndarray) -> float:
        g = CURVES @ w + SLOPE
        return float(g @ g)

    changes = []
    for q in range(4):
        less = START.copy()
        less[q] *= 1 - 1e-6
        changes.append((flow(less) - flow(START)) / 1e-6)
    np.testing.assert_allclose(changes, -2 * scores, rtol=1e-4)
    kept = np.asarray(top(jnp.asarray(scores), 0.5))
    assert set(np.flatnonzero(kept)) == set(np.argsort(changes)[:2])


def test_only_selected_weights_take_part():
    """Gradient flow is that of the selected weights."""
    scores = scored(Grasp(loss=quadratic), start(), "a")
    g = (CURVES @ START + SLOPE)[:2]
    np.testing.assert_allclose(joined(scores), START[:2] * (CURVES[:2, :2] @ g), rtol=1e-6)


@pytest.mark.parametrize("criterion", [Snip, Grasp])
def test_scores_of_a_network_in_float64(criterion):
    rng = np.random.default_rng(4)
    params = {"a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)}
    x = rng.normal(size=(8, 3))

    def loss(p):
        return jnp.mean(jnp.tanh(jnp.asarray(x, p["a"].dtype) @ p["a"]) @ p["b"] ** 2)

    scores = scored(criterion(loss=loss), params)
    with jax.enable_x64(True):
        wide = {path: jnp.asarray(np.asarray(leaf, np.float64)) for path, leaf in params.items()}
        flat, back = ravel_pytree(wide)
        g = jax.grad(lambda w: loss(back(w)))(flat)
        expected = jnp.abs(flat * g) if criterion is Snip else flat * (jax.hessian(lambda w: loss(back(w)))(flat) @ g)
    np.testing.assert_allclose(joined(scores), expected, rtol=1e-4, atol=1e-6)
    traced = jax.jit(lambda p: scored(criterion(loss=loss), p))(params)
    np.testing.assert_allclose(joined(traced), joined(scores), rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------------ SynFlow


class Deep(nn.Module):
    layers: int = 3
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            x = nn.relu(nn.Dense(6, use_bias=self.bias)(x))
        return nn.Dense(2, use_bias=self.bias)(x)


def deep(layers: int = 3, bias: bool = False) -> tuple:
    model = Deep(layers, bias)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 5)))["params"]


def synflow(model: nn.Module) -> SynFlow:
    return SynFlow(apply=lambda params, x: model.apply({"params": params}, x), inputs=jax.ShapeDtypeStruct((1, 5), jnp.float32))


def test_synflow_is_conserved_from_layer_to_layer():
    model, params = deep()
    scores = scored(synflow(model), params)
    totals = [float(s.astype(np.float64).sum()) for s in map(np.asarray, scores.values())]
    assert len(totals) == 4
    np.testing.assert_allclose(totals, totals[0], rtol=1e-5)


def test_synflow_is_conserved_at_every_hidden_unit():
    model, params = deep()
    scores = {path: np.asarray(s, np.float64) for path, s in scored(synflow(model), params).items()}
    for layer in range(3):
        np.testing.assert_allclose(
            scores[f"Dense_{layer}/kernel"].sum(0), scores[f"Dense_{layer + 1}/kernel"].sum(1), rtol=1e-5
        )


def test_synflow_in_float64_with_biases():
    model, params = deep(bias=True)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    found = scored(synflow(model), params)
    held = [[np.abs(np.asarray(params[f"Dense_{n}"][name], np.float64)) for name in ("kernel", "bias")] for n in range(4)]
    values = [np.ones(5)]
    for kernel, bias in held:
        values.append(values[-1] @ kernel + bias)
    slope, expected = np.ones(2), {}
    for n in reversed(range(4)):
        expected[f"Dense_{n}/kernel"] = held[n][0] * np.outer(values[n], slope)
        expected[f"Dense_{n}/bias"] = held[n][1] * slope
        slope = held[n][0] @ slope
    largest = max(e.max() for e in expected.values())
    assert found.keys() == expected.keys()
    for path, scores in found.items():
        assert scores.dtype == jnp.float32
        np.testing.assert_allclose(scores, expected[path] / largest, rtol=1e-5, err_msg=path)


def test_synflow_of_a_network_whose_flow_is_beyond_float32():
    params = {f"{n:02}": jnp.full((10, 10), 100.0) for n in range(25)}  # R = 10 * 1000**25

    def apply(p, x):
        for n in range(25):
            x = x @ p[f"{n:02}"]
        return x

    scores = scored(SynFlow(apply=apply, inputs=jnp.zeros((1, 10))), params)
    np.testing.assert_allclose(joined(scores), 1.0, rtol=1e-6)


def test_synflow_under_jit_and_vmap():
    model, params = deep()
    criterion = synflow(model)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf + 0.1]), params)
    together = jax.jit(jax.vmap(lambda p: scored(criterion, p)))(stacked)
    for number in range(2):
        separate = scored(criterion, jax.tree.map(lambda leaf, n=number: leaf[n], stacked))
        for path, scores in separate.items():
            assert together[path].dtype == jnp.float32
            np.testing.assert_allclose(together[path][number], scores, rtol=1e-5)


def test_synflow_of_zeros_is_finite():
    model, params = deep()
    assert joined(scored(synflow(model), jax.tree.map(jnp.zeros_like, params))).tolist() == [0.0] * (30 + 36 + 36 + 12)


# -------------------------------------------------------------------------------------------------------------------- Wanda


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.relu(nn.DenseGeneral((2, 3))(x.reshape(x.shape[0], -1)))
        return nn.DenseGeneral(5, axis=(-2, -1))(x)


def test_wanda_norms_of_convolutions_and_dense_kernels():
    model, rng = Small(), np.random.default_rng(0)
    batches = [jnp.asarray(rng.normal(size=(n, 6, 6, 2)), jnp.float32) for n in (3, 2)]
    params = jax.jit(model.init)(jax.random.key(0), batches[0])["params"]
    scores = scored(Wanda(apply=lambda p, x: model.apply({"params": p}, x), batches=batches, compare="leaf"), params, "*kernel")

    x = np.concatenate(batches).astype(np.float64)
    kernel = np.asarray(params["Conv_0"]["kernel"], np.float64)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))  # SAME, stride 2, 6 -> 3: one row after
    squares = np.zeros((3, 3, 2))
    hidden = np.zeros((5, 3, 3, 4))
    for i in range(3):
        for j in range(3):
            patch = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            squares += (patch**2).sum(0)
            hidden[:, i, j] = np.tensordot(patch, kernel, 3)
    np.testing.assert_allclose(scores["Conv_0/kernel"], abs(kernel) * np.sqrt(squares)[..., None], rtol=1e-5)

    hidden = np.maximum(hidden, 0).reshape(5, -1)
    kernel = np.asarray(params["DenseGeneral_0"]["kernel"], np.float64)
    norms = np.sqrt((hidden**2).sum(0))
    np.testing.assert_allclose(scores["DenseGeneral_0/kernel"], abs(kernel) * norms[:, None, None], rtol=1e-4, atol=1e-6)

    hidden = np.maximum(np.tensordot(hidden, kernel, 1), 0)
    kernel = np.asarray(params["DenseGeneral_1"]["kernel"], np.float64)
    norms = np.sqrt((hidden**2).sum(0))
    np.testing.assert_allclose(scores["DenseGeneral_1/kernel"], abs(kernel) * norms[..., None], rtol=1e-4, atol=1e-6)


def test_wanda_compares_within_an_output():
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.normal(size=(8, 5)) * [1, 10, 0.1, 5, 1], jnp.float32)}
    x = jnp.asarray(rng.normal(size=(20, 8)), jnp.float32)
    transform = prune(0.75, criterion=Wanda(apply=lambda p, x: x @ p["w"], batches=[x]))
    mask = np.asarray(transform.init(params)[1].masks["w"])
    assert mask.sum(0).tolist() == [2] * 5
    scores = np.abs(np.asarray(params["w"], np.float64)) * np.sqrt((np.asarray(x, np.float64) ** 2).sum(0))[:, None]
    for output in range(5):
        assert set(np.flatnonzero(mask[:, output])) == set(np.argsort(scores[:, output])[-2:])
    norms = jnp.linalg.norm(x, axis=0)
    np.testing.assert_array_equal(wanda_masks(params["w"], norms, 0.75), mask)


def test_wanda_ties_and_counts_of_every_output():
    mask = wanda_masks(jnp.ones((7, 3)), jnp.ones(7), 0.5)
    assert mask.tolist() == [[True] * 3] * 3 + [[False] * 3] * 4
    params = {"w": jnp.ones((8, 3))}
    transform = prune(0.5, criterion=Wanda(apply=lambda p, x: x @ p["w"], batches=[jnp.ones((2, 8))]))
    assert np.asarray(transform.init(params)[1].masks["w"]).tolist() == [[True] * 3] * 4 + [[False] * 3] * 4


def test_wanda_of_layers_in_a_scan():
    rng = np.random.default_rng(6)
    params, x = {"w": jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32)}, rng.normal(size=(9, 4)).astype(np.float32)

    def apply(p, x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["w"])[0]

    scores = scored(Wanda(apply=apply, batches=[jnp.asarray(x)], compare="leaf"), params)["w"]
    ranked = scored(Wanda(apply=apply, batches=[jnp.asarray(x)]), params)["w"]
    for number in range(2):
        expected = np.abs(params["w"][number]) * np.linalg.norm(x, axis=0)[:, None]
        np.testing.assert_allclose(scores[number], expected, rtol=1e-4)
        np.testing.assert_allclose(ranked[number], np.argsort(np.argsort(expected, axis=0), axis=0) / 3, rtol=1e-6)
        x = np.tanh(x @ np.asarray(params["w"][number]))


def test_wanda_under_jit():
    params = {"w": jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32)}
    criterion = Wanda(apply=lambda p, x: x @ p["w"], batches=[jnp.ones((2, 4)), jnp.eye(4)], compare="leaf")
    eager = scored(criterion, params)["w"]
    np.testing.assert_allclose(jax.jit(lambda p: scored(criterion, p))(params)["w"], eager, rtol=1e-6)
    np.testing.assert_allclose(eager, np.abs(params["w"]) * np.sqrt(3), rtol=1e-6)


def test_wanda_names_leaves_without_inputs():
    with pytest.raises(ValueError, match=r"table: reaches none that could be followed; it goes into gather"):
        scored(Wanda(apply=lambda p, x: p["table"][x], batches=[jnp.array([0, 1])]), {"table": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="compare must be 'output' or 'leaf'; got 'row'"):
        Wanda(apply=lambda p, x: x, batches=[], compare="row")
