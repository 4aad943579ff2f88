"""Whole models, layer by layer: every way in which a leaf can be used, and the biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from lepton_jax import unpack
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.quantization import (
    AdaRound,
    Gptq,
    Nearest,
    QArray,
    Uniform,
    compensate_errors,
    correct_biases,
    gptq,
    quantize,
    quantize_layers,
)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(0, 30, 6) @ normal(1, 6, 6)
LAYERS = {
    "plain": ((6, 3), lambda v, x: x @ v["w"], lambda w: w, -1),
    "transposed": ((3, 6), lambda v, x: x @ v["w"].T, lambda w: w.T, 0),
    "einsum": ((2, 3, 6), lambda v, x: jnp.einsum("bf,hdf->bhd", x, v["w"]), lambda w: w.reshape(6, 6).T, 0),
    "tied": ((9, 6), lambda v, x: (x + v["w"][jnp.arange(30) % 9]) @ v["w"].T, lambda w: w.T, 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_use_of_a_leaf(name):
    """The leaf's codes are those of the layer as a matrix, in the leaf's own layout."""
    shape, apply, matrix, axis = LAYERS[name]
    variables = {"w": normal(2, *shape)}
    fmt = Uniform(3, channel_axis=axis)
    new, reports = quantize_layers(apply, variables, [X], fmt, Gptq(damping=0.01), progress=False)
    rows = X + variables["w"][jnp.arange(30) % 9] if name == "tied" else X
    assert isinstance(new["w"], QArray)
    assert (new["w"].shape, new["w"].format) == (shape, fmt)
    if name != "einsum":  # whose channels are two axes of the leaf
        expected = gptq(matrix(variables["w"]), rows, Uniform(3, channel_axis=-1), factors=None, damping=0.01)
        np.testing.assert_array_equal(matrix(new["w"].qvalue), expected.qvalue)
    plain = np.asarray(matrix(quantize(variables["w"], fmt).unpack()), np.float64)
    exact = np.asarray(matrix(variables["w"]), np.float64)
    wide = np.asarray(rows, np.float64)
    error, nearest = (
        np.sum((wide @ (np.asarray(q, np.float64) - exact)) ** 2) / np.sum((wide @ exact) ** 2)
        for q in (matrix(new["w"].unpack()), plain)
    )
    assert reports["w"].error == pytest.approx(error, rel=1e-3)
    assert reports["w"].nearest == pytest.approx(nearest, rel=1e-3)
    assert reports["w"].error < reports["w"].nearest
    assert (reports["w"].dead, reports["w"].damping) == (0, pytest.approx(0.01))


def test_layers_stacked_in_one_leaf():
    """Each step of a scan has its own Hessian."""
    variables = {"w": normal(3, 3, 6, 6)}

    def apply(v, x):
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v["w"])[0]

    fmt = Uniform(3, group_size=3)
    new, _ = quantize_layers(apply, variables, [X[:15], X[15:]], fmt, Gptq(), sequential=False, progress=False)
    state = X
    for layer in range(3):
        expected = gptq(variables["w"][layer], state, fmt, factors=None)
        np.testing.assert_array_equal(new["w"].qvalue[layer], expected.qvalue)
        state = jnp.tanh(state @ variables["w"][layer])


class Net(nn.Module):
    norm: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=not self.norm)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x) if self.norm else x).mean((1, 2))
        return nn.Dense(3, name="last")(nn.relu(nn.Dense(8, name="middle")(x)))


@pytest.fixture(scope="module")
def net():
    model, x = Net(), normal(4, 24, 5, 5, 2)
    return model.apply, jax.jit(model.init)(jax.random.key(1), x), [x[:12], x[12:]]


def kernels(path, leaf):
    return path.endswith("kernel")


def test_a_model_follows_its_float_outputs(net):
    """Layers that see what those before them give, and aim at the float outputs, end up nearer to these."""
    apply, variables, batches = net
    fmt = {path: Uniform(3, channel_axis=-1) for path in ("params/Conv_0/kernel", "params/middle/kernel", "params/last/kernel")}
    x = jnp.concatenate(batches)
    exact = apply(variables, x)
    errors = {}
    for name, method, options in (
        ("nearest", Nearest(), {}),
        ("gptq", Gptq(damping=0.01), {}),
        ("adaround", AdaRound(steps=150), {"factors": (1.0, 0.8)}),
        ("alone", Gptq(damping=0.01), {"sequential": False}),
    ):
        new, reports = quantize_layers(apply, variables, batches, fmt, method, select=kernels, progress=False, **options)
        assert [type(new["params"][layer]["kernel"]) for layer in ("Conv_0", "middle", "last")] == [QArray] * 3
        assert new["params"]["last"]["bias"] is variables["params"]["last"]["bias"]
        assert list(reports) == ["params/Conv_0/kernel", "params/middle/kernel", "params/last/kernel"]
        errors[name] = float(jnp.mean((apply(unpack(new), x) - exact) ** 2))
    assert errors["gptq"] < 0.7 * errors["nearest"]
    assert errors["adaround"] < 0.7 * errors["nearest"]
    assert errors["gptq"] < errors["alone"]


@pytest.mark.parametrize("norm", [True, False])
def test_bias_correction_gives_every_layer_its_mean(norm):
    model, x = Net(norm=norm), normal(5, 24, 5, 5, 2)
    variables = jax.jit(model.init)(jax.random.key(2), x)
    coarse = jax.tree.map(lambda leaf: leaf, variables)
    quantized, _ = quantize_layers(
        model.apply, coarse, [x], Uniform(2, channel_axis=-1), Nearest(), select=kernels, sequential=False, progress=False
    )
    new, left = correct_biases(model.apply, variables, quantized, [x[:12], x[12:]], select=kernels)
    assert left == {}
    mean, before, after = (np.asarray(model.apply(unpack(v), x).mean(0)) for v in (variables, quantized, new))
    np.testing.assert_allclose(after, mean, atol=1e-5)
    assert np.abs(before - mean).max() > 1e-3
    changed = "batch_stats/BatchNorm_0/mean" if norm else "params/Conv_0/bias"
    first, second = changed.split("/", 1)
    part, leaf = second.split("/")
    assert float(jnp.abs(new[first][part][leaf] - variables[first][part][leaf]).max()) > 0
    assert isinstance(new["params"]["last"]["kernel"], QArray)


def test_layers_without_a_bias_of_their_own_are_named():
    def apply(v, x):
        shared = v["bias"][None]
        return jnp.tanh(x @ v["one"] + shared) @ v["two"] + shared + x @ v["three"] * 2

    variables = {name: normal(6, 6, 6) for name in ("one", "two", "three")} | {"bias": jnp.zeros(6)}
    _, left = correct_biases(apply, variables, variables, [X], select=("one", "two", "three"))
    assert set(left) == {"one", "two", "three"}
    assert left["three"] == "no variable of its own is added to its outputs"


def test_low_rank_correction_of_dense_convolution_and_transposed(net):
    apply, variables, batches = net
    fmt = Uniform(2, channel_axis=-1)
    quantized, _ = quantize_layers(apply, variables, batches, fmt, Nearest(), select=kernels, progress=False)
    new = compensate_errors(apply, variables, quantized, batches, 2, select=kernels)
    x = jnp.concatenate(batches)
    exact = apply(variables, x)
    before, after = (float(jnp.mean((apply(unpack(v), x) - exact) ** 2)) for v in (quantized, new))
    assert after < 0.5 * before
    leaf = new["params"]["Conv_0"]["kernel"]
    assert isinstance(leaf, Adapted)
    assert (leaf.shape, leaf.dtype, leaf.correction.rank) == ((3, 3, 2, 4), jnp.float32, 2)
    turned = {"w": normal(7, 3, 6)}
    whole = compensate_errors(lambda v, x: x @ v["w"].T, turned, {"w": quantize(turned["w"], Uniform(2))}, [X], 3)
    np.testing.assert_allclose(whole["w"].unpack(), turned["w"], atol=2e-3)
    with pytest.raises(ValueError, match="no selected leaf is quantized"):
        compensate_errors(apply, variables, variables, batches, 2)


def test_bad_input(net):
    apply, variables, batches = net
    with pytest.raises(ValueError, match="at least one calibration batch"):
        quantize_layers(apply, variables, [], Uniform(4), Gptq(), progress=False)
    with pytest.raises(ValueError, match="params/middle/kernel: has no format") as error:
        quantize_layers(
            apply, variables, batches, {"params/last/kernel": Uniform(4, group_size=99)}, Gptq(), select=kernels, progress=False
        )
    assert "params/last/kernel: Uniform: group_size=99 is larger than axis 0" in str(error.value)
    with pytest.raises(ValueError, match=r"params/Conv_0/kernel: the inputs of the layer, or its weights, are not finite"):
        quantize_layers(apply, variables, [batches[0] * jnp.nan], Uniform(4), Gptq(), select=kernels, progress=False)
    with pytest.raises(ValueError, match="reaches none that could be followed"):
        quantize_layers(lambda v, x: x @ jnp.sin(v["w"]), {"w": jnp.ones((6, 2))}, [X], Uniform(4), Gptq(), progress=False)
