"""Scalings of channels: found in the graph, the function as it was, and what they are good for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from lepton_jax.graph import fold_batch_norm, trace
from lepton_jax.graph.scaling import input_scalings
from lepton_jax.models import ResNetCifar, Transformer
from lepton_jax.quantization import Dynamic, Rule, Uniform, awq_scale, equalize, quantize_activations, smooth_quant


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def kernels(path, leaf):
    return path.endswith("kernel")


@pytest.fixture(scope="module")
def decoder():
    model = Transformer(vocabulary=11, depth=1, width=8, heads=2, mlp=16, max_length=6)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 6)))
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    # A channel that is much larger than the others, as in trained models.
    scale = variables["params"]["Block_0"]["LayerNorm_0"]["scale"].at[3].set(40.0)
    variables["params"]["Block_0"]["LayerNorm_0"]["scale"] = scale
    return model.apply, variables, tokens


@pytest.fixture(scope="module")
def folded():
    model, x = ResNetCifar(depth=8, features=4), normal(1, 3, 8, 8, 3)
    return (*fold_batch_norm(model.apply, jax.jit(model.init)(jax.random.key(1), x), x), x)


def same(apply, one, other, x):
    expected = apply(one, x)
    np.testing.assert_allclose(apply(other, x), expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


PLAIN = {
    "relu, bias": (
        {"a": (6, 4), "bias": (4,), "b": (4, 3)},
        lambda v, x: jax.nn.relu(x @ v["a"] + v["bias"][None]) @ v["b"],
        {"b": (["a", "bias"], ["b"])},
    ),
    "transposed, in a call": (
        {"a": (4, 6), "b": (3, 4)},
        lambda v, x: jax.checkpoint(lambda a, x: jnp.maximum(x @ a.T, 0))(v["a"], x) @ v["b"].T,
        {"b": (["a"], ["b"])},
    ),
    "several axes": (
        {"a": (6, 2, 2), "b": (2, 2, 3)},
        lambda v, x: jnp.einsum("bhd,hdo->bo", jnp.abs(jnp.einsum("bi,ihd->bhd", x, v["a"])), v["b"]),
        {"b": (["a"], ["b"])},
    ),
    "a sum of two layers, used twice": (
        {"a": (6, 4), "c": (6, 4), "b": (4, 3), "d": (4, 3)},
        lambda v, x: (lambda h: h @ v["b"] - jax.nn.relu(h) @ v["d"])(x @ v["a"] + x @ v["c"]),
        {"b": (["a", "c"], ["b", "d"])},
    ),
    "grouped convolution between": (
        {"a": (6, 4), "k": (3, 2, 4), "b": (4, 3)},
        lambda v, x: (
            lax.conv_general_dilated(
                (x @ v["a"])[None], v["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2
            )[0]
            @ v["b"]
        ),
        {"b": (["k"], ["b"])},
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_scalings_of_plain_functions(name):
    shapes, apply, expected = PLAIN[name]
    variables, x = {path: normal(2, *shape) for path, shape in shapes.items()}, normal(3, 5, 6)
    found, _ = input_scalings(trace(apply, variables, x), list(expected))
    for scaling, (made, fed) in zip(found, expected.values(), strict=True):
        assert (sorted(scaling.side(1)), sorted(scaling.side(-1))) == (made, fed)
        new = scaling.apply(variables, jnp.exp(normal(4, scaling.channels)))
        same(apply, variables, new, x)
        assert float(jnp.abs(new[fed[0]] - variables[fed[0]]).max()) > 0.1


LEFT = {
    "tanh": (lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], "its input goes through tanh, which a scale cannot pass"),
    "an output": (
        lambda v, x: (lambda h: (h, h @ v["b"]))(x @ v["a"]),
        "its input comes from an output of the model",
    ),
    "a residual": (lambda v, x: (x + x @ v["a"]) @ v["b"], "its input comes from the input 0 of the model"),
    "a constant": (lambda v, x: (x @ v["a"] + jnp.arange(6.0)[None]) @ v["b"], "its input goes through"),
    "a norm of its own": (
        lambda v, x: (lambda h: (h / jnp.sum(h, 1, keepdims=True)) @ v["b"])(x @ v["a"]),
        "its input goes through",
    ),
    "tied": (lambda v, x: v["b"][jnp.array([1, 2])] @ v["a"] @ v["b"], "its input goes through gather"),
    "a scan": (
        lambda v, x: lax.scan(lambda c, _: (c @ v["a"] @ v["b"], None), x, None, length=2)[0],
        "its input comes from something that all steps of a scan share",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_scaled_is_left_and_says_why(name):
    apply, why = LEFT[name]
    found, left = input_scalings(trace(apply, {"a": jnp.ones((6, 6)), "b": jnp.ones((6, 6))}, normal(5, 4, 6)), ["b"])
    assert found == []
    assert left["b"].startswith(why)


def test_scalings_of_a_transformer(decoder):
    apply, variables, tokens = decoder
    wanted = [f"params/Block_0/{name}/kernel" for name in ("query", "key", "value", "out", "up", "down")]
    found, left = input_scalings(trace(apply, variables, tokens), wanted)
    assert [[path.split("/")[2] for path in scaling.side(-1)] for scaling in found] == [
        ["query", "key", "value"],
        ["out"],
        ["up"],
    ]
    assert found[1].side(1) == ["params/Block_0/value/kernel", "params/Block_0/value/bias"]  # through attention
    assert list(left) == ["params/Block_0/down/kernel"]  # behind a gelu
    new = variables
    for seed, scaling in enumerate(found):
        new = scaling.apply(new, jnp.exp(normal(seed, scaling.channels)))
    same(apply, variables, new, tokens)


def test_smooth_quant(decoder):
    apply, variables, tokens = decoder
    new, left = smooth_quant(apply, variables, [tokens[:2], tokens[2:]], select=kernels)
    same(apply, variables, new, tokens)
    assert left.keys() == {"params/Block_0/down/kernel"}
    rules = [Rule(quantizer=Dynamic(Uniform(8)), argument=kind, path="*/kernel") for kind in ("activation", "weight")]
    rounded, exact = quantize_activations(apply, rules), apply(variables, tokens)
    before, after = (float(jnp.mean((rounded(v, tokens) - exact) ** 2)) for v in (variables, new))
    assert after < 0.7 * before


def test_smooth_quant_by_hand():
    """Equation 4 for two layers that share an input; an input that is never seen keeps its scale."""
    variables = {
        "scale": jnp.array([1.0, 4.0, 1.0]),
        "a": jnp.array([[1.0], [1.0], [5.0]]),
        "b": jnp.array([[-4.0], [0.5], [1.0]]),
    }

    def apply(v, x):
        y = x * v["scale"][None]
        return y @ v["a"] + y @ v["b"]

    new, left = smooth_quant(
        apply, variables, [jnp.array([[1.0, -1.0, 0.0], [0.5, 0.0, 0.0]])], strength=0.5, select=("a", "b")
    )
    s = np.array([np.sqrt(1 / 4), np.sqrt(4 / 1), 1])
    np.testing.assert_allclose(new["scale"], variables["scale"] / s, rtol=1e-6)
    np.testing.assert_allclose(new["a"][:, 0], variables["a"][:, 0] * s, rtol=1e-6)
    assert left == {}
    with pytest.raises(ValueError, match="strength must be in"):
        smooth_quant(apply, variables, [jnp.ones((1, 3))], strength=1.5, select="a")
    with pytest.raises(ValueError, match="at least one calibration batch"):
        smooth_quant(apply, variables, [], select="a")


def test_awq_scale(decoder):
    apply, variables, tokens = decoder
    fmt = Uniform(3, group_size=4)
    new, left = awq_scale(apply, variables, [tokens], fmt, select=kernels, candidates=8)
    same(apply, variables, new, tokens)
    assert left.keys() == {"params/Block_0/down/kernel"}
    factors = new["params"]["Block_0"]["query"]["kernel"] / variables["params"]["Block_0"]["query"]["kernel"]
    assert float(factors[3].mean()) > 1.5 * float(factors[0].mean())  # the large channel's weights grew
    with pytest.raises(ValueError, match="no format for params/Block_0/out/kernel"):
        awq_scale(apply, variables, [tokens], {}, select="*/out/kernel")


def test_equalisation(folded):
    """Between the convolutions of a block ranges become equal; the function stays as it is."""
    apply, variables, x = folded
    kernel = {path: leaf for path, leaf in variables.items() if path.endswith("kernel")}
    new, left = equalize(apply, variables, x, select=kernels)
    same(apply, variables, new, x)
    for block in range(3):
        one, two = (f"ResNetCifar/BasicBlock_{block}/Conv_{i}/conv_general_dilated/kernel" for i in (0, 1))
        made, fed = jnp.abs(new[one]).max((0, 1, 2)), jnp.abs(new[two]).max((0, 1, 3))
        np.testing.assert_allclose(made, fed, rtol=1e-4)
        spread = [float(jnp.std(jnp.log(jnp.abs(v[one]).max((0, 1, 2))))) for v in (variables, new)]
        assert spread[1] != spread[0]
        assert two not in left
    assert set(left) == set(kernel) - {f"ResNetCifar/BasicBlock_{i}/Conv_1/conv_general_dilated/kernel" for i in range(3)}


def test_equalisation_with_a_norm_between_says_so():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))  # the outer one is made first

    x = normal(6, 2, 5)
    variables = Normed().init(jax.random.key(0), x)
    new, left = equalize(Normed().apply, variables, x, select=kernels)
    assert left["params/Dense_0/kernel"].startswith("no selected layer makes its input, but ")
    np.testing.assert_array_equal(new["params"]["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"])
