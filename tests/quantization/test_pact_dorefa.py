"""PACT and DoReFa: values and gradients of the papers, codes that are what is shown, gradients right on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from uniform_by_hand import codes_of, scale_of

from lepton_jax import chain, pack, prune, unpack
from lepton_jax.quantization import (
    DoReFa,
    Pact,
    Rule,
    Uniform,
    calibrate_activations,
    dorefa,
    dorefa_gradient,
    quantize_activations,
    with_sites,
)


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_pact_by_hand():
    x, site = jnp.array([-1.0, 0.0, 0.7, 2.9, 3.0, 8.0]), {"alpha": jnp.float32(3.0)}
    quantizer = Pact(2)
    assert quantizer(x, site).tolist() == [0, 0, 1, 3, 3, 3]
    slopes = jax.jacobian(quantizer, argnums=(0, 1))(x, site)
    assert jnp.diag(slopes[0]).tolist() == [0, 0, 1, 1, 0, 0]
    assert slopes[1]["alpha"].tolist() == [0, 0, 0, 0, 1, 1]
    slopes = jax.jacobian(Pact(3, signed=True), argnums=(0, 1))(-x, site)
    assert jnp.diag(slopes[0]).tolist() == [1, 1, 1, 1, 0, 0]
    assert slopes[1]["alpha"].tolist() == [0, 0, 0, 0, -1, -1]


@pytest.mark.parametrize("signed", [False, True])
def test_pact_rounds_to_even_levels_of_its_height(signed):
    x, alpha = draw(0, 200), 1.3
    y = Pact(4, signed=signed)(x, {"alpha": jnp.float32(alpha)})
    levels, ends = (7.5, (-8, 7)) if signed else (15, (0, 15))
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, np.clip(np.round(wide * levels / alpha), *ends) * alpha / levels, rtol=1e-5, atol=1e-6)


def test_pact_and_dorefa_in_a_network():
    x, v = draw(1, 6, 5), {"w": draw(2, 5, 4), "u": draw(3, 4, 3)}

    def model(v, x):
        return jax.nn.relu(x @ v["w"]) @ v["u"]

    for quantizer in (Pact(4), DoReFa(4)):
        rule = Rule(operation="dot_general_1", quantizer=quantizer)
        sites = calibrate_activations(model, rule, v, [x])
        variables = with_sites(v, sites)
        hidden = jax.nn.relu(x @ v["w"])
        top = float(hidden.max()) if isinstance(quantizer, Pact) else 1.0
        expected = (
            np.round(np.clip(np.asarray(hidden, np.float64), 0, top) * 15 / top) * top / 15 @ np.asarray(v["u"], np.float64)
        )
        rounded = quantize_activations(model, rule)
        np.testing.assert_allclose(jax.jit(rounded)(variables, x), expected, rtol=1e-4, atol=1e-5)
        slopes = jax.grad(lambda v, f=rounded: jnp.sum(f(v, x) ** 2))(variables)
        assert all(np.any(leaf) for leaf in jax.tree.leaves({"w": slopes["w"], "sites": slopes["quantization"]}))


@pytest.mark.parametrize("quantizer", [Pact(3), Pact(8, signed=True), DoReFa(5)], ids=str)
def test_codes_are_what_is_shown(quantizer):
    x = draw(4, 40)
    site = quantizer.init(jnp.full((1,), -0.9), jnp.full((1,), 1.1))
    codes = quantizer.quantized(x, site)
    assert np.asarray(codes.qvalue.astype(jnp.float32) * codes.scale).tobytes() == np.asarray(quantizer(x, site)).tobytes()
    assert quantizer(jnp.zeros(3), site).tolist() == [0, 0, 0]


def test_dorefa_clips_to_one():
    x = jnp.array([-0.5, 0.0, 0.4, 1.0, 2.0])
    np.testing.assert_allclose(DoReFa(3)(x, {}), [0, 0, 3 / 7, 1, 1], rtol=1e-6)
    assert jnp.diag(jax.jacobian(lambda x: DoReFa(3)(x, {}))(x)).tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("scale", ["unit", "kept"])
def test_dorefa_weights(scale):
    w, slope = draw(5, 7, 6), draw(6, 7, 6)
    transform = dorefa(4, scale=scale)
    params, state = transform.init({"k": w, "b": jnp.ones(3)})
    wide = np.tanh(np.asarray(w, np.float64))
    size = np.abs(np.asarray(w)).max() if scale == "kept" else 1.0
    bent = wide / np.abs(wide).max()
    seen = transform.view(params, state)["k"]
    steps = scale_of(-size, size, Uniform(4))
    np.testing.assert_allclose(steps, size / 7.5, rtol=1e-6)
    np.testing.assert_allclose(seen, codes_of(bent * size, steps, 0, Uniform(4)) * steps, rtol=1e-5, atol=1e-6)
    # The gradient is that of what is rounded, the maximum included; its size is a constant.
    got = jax.grad(lambda p: jnp.sum(slope * transform.view(p, state)["k"]))(params)["k"]
    smooth = jax.grad(lambda w: jnp.sum(slope * size * jnp.tanh(w) / jnp.max(jnp.abs(jnp.tanh(w)))))(w)
    np.testing.assert_allclose(got, smooth, rtol=1e-5, atol=1e-6)
    leaf = pack(transform, params, state)["k"]
    assert leaf.format == Uniform(4)
    assert np.asarray(unpack(leaf)).tobytes() == np.asarray(transform.view(params, state)["k"]).tobytes()


def test_dorefa_keeps_pruned_weights_and_defines_all_zeros():
    transform = chain(prune(0.5), dorefa(2))
    params, state = transform.init({"k": draw(7, 6, 6)})
    assert not np.asarray(transform.view(params, state)["k"])[~np.asarray(state[0].masks["k"])].any()
    zeros = {"k": jnp.zeros((2, 2))}
    for scale in ("unit", "kept"):
        value, slopes = jax.value_and_grad(lambda p, s=scale: jnp.sum(dorefa(3, scale=s).view(p, ())["k"]))(zeros)
        assert value == 0
        assert np.isfinite(slopes["k"]).all()


def test_dorefa_gradients_are_few_and_right_on_average():
    slope, bits = draw(8, 3, 5), 3
    slope = slope.at[1].set(0)

    @jax.jit
    @jax.vmap
    def gradient(key):
        return jax.grad(lambda x: jnp.sum(slope * dorefa_gradient(x, key, bits)))(jnp.ones((3, 5)))

    found = np.asarray(gradient(jax.random.split(jax.random.key(0), 4000)), np.float64)
    tops = np.abs(np.asarray(slope, np.float64)).max(axis=1, keepdims=True)
    step = 2 * tops / 7
    np.testing.assert_allclose(found.mean(0), slope, atol=4 * step.max() / 2 / np.sqrt(4000))
    levels = (found[:, [0, 2]] + tops[[0, 2]]) / step[[0, 2]]
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    assert not found[:, 1].any()
    assert dorefa_gradient(slope, jax.random.key(0), bits).tolist() == slope.tolist()


def test_settings_out_of_range_are_refused():
    for make in (Pact, DoReFa, dorefa):
        with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8; got 9"):
            make(9)
    with pytest.raises(ValueError, match="scale must be 'unit' or 'kept'; got 'both'"):
        dorefa(4, scale="both")
