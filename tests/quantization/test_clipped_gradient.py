"""What quantizers of activations with a calibrated range do with the gradient of values beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.formats import Float8, NormalFloat4, Uniform, mxfp4
from lepton_jax.formats.ranges import MinMax, Percentile
from lepton_jax.quantization import Dynamic, Rule, Static, calibrate_activations, quantize_activations, with_sites

FORMATS = [
    Uniform(4),
    Uniform(4, symmetric=False),
    Uniform(5, signed=False),
    Uniform(8, channel_axis=1),
    Uniform(4, group_size=4, group_axis=0),
    Float8(),
    NormalFloat4(),
    mxfp4(group_axis=0),
]


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def slopes(quantizer, x, site):
    return np.asarray(jax.grad(lambda x: jnp.sum(quantizer(x, site) * jnp.arange(1, 1 + x.size).reshape(x.shape)))(x))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_only_what_is_clipped_gets_no_gradient(fmt) -> None:
    """A value is clipped if a value further out is shown as the same; one within the calibrated range never is."""
    x = draw(0, 8, 6)
    quantizer = Static(fmt)
    low, high = (jnp.full(fmt.scale_shape(x.shape), end) for end in (-1.0, 1.0))
    site = quantizer.init(low, high)
    weights = np.arange(1, 1 + x.size).reshape(x.shape)
    passed = slopes(quantizer, x, site) / weights
    assert set(np.unique(passed)) <= {0.0, 1.0}
    shown, value = np.asarray(quantizer(x, site)), np.asarray(x)
    further = np.asarray(quantizer(100 * x, site))
    assert (passed[shown != further] == 1).all()
    below = 0.0 if fmt == Uniform(5, signed=False) else -1.0
    assert (passed[(below <= value) & (value <= 1)] == 1).all()
    wide = 1.5  # more than half of the coarsest step beyond
    assert (passed[np.abs(value) > wide] == 0).all()
    assert (np.abs(value) > wide).sum() > 2
    np.testing.assert_array_equal(slopes(Static(fmt, gradient="straight_through"), x, site), weights)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("derivative", ["rounded", "unrounded"])
def test_the_same_through_a_product(native: bool, derivative: str) -> None:
    """d (q(x) w) / dx is w where x is covered and 0 where it is clipped; natively as in simulation."""
    w, x = draw(1, 6, 4), draw(2, 5, 6)
    rule = Rule(quantizer=Static(Uniform(8), Percentile(q=80)))
    weights = Rule(argument="weight", quantizer=Dynamic(Uniform(8)))
    model = lambda v, x: x @ v["w"]  # noqa: E731
    sites = calibrate_activations(model, [rule], {"w": w}, [x])
    rounded = quantize_activations(model, [rule, weights], native=native, derivative=derivative)
    out = jax.grad(lambda x: jnp.sum(rounded(with_sites({"w": w}, sites), x)))(x)
    [scale] = jax.tree.leaves(sites)
    steps = np.abs(np.asarray(x, np.float64)) / np.float64(scale.item())
    far, near = steps > 128, steps < 127
    assert far.sum() > 2
    assert (np.asarray(out)[far] == 0).all()
    seen = w if derivative == "unrounded" and native else Dynamic(Uniform(8))(w, {})
    expected = np.broadcast_to(np.asarray(seen, np.float64).sum(1), x.shape)
    np.testing.assert_allclose(np.asarray(out)[near], expected[near], rtol=1e-5)


def test_a_range_found_anew_clips_only_if_a_calibration_does() -> None:
    x = jnp.array([0.5, -0.25, 0.125, 9.0])
    np.testing.assert_array_equal(slopes(Dynamic(Uniform(4)), x, {}), [1, 2, 3, 4])
    np.testing.assert_array_equal(slopes(Dynamic(Uniform(4), MinMax()), x, {}), [1, 2, 3, 4])
    np.testing.assert_array_equal(slopes(Dynamic(Uniform(4), Percentile(q=60)), x, {}), [1, 2, 3, 0])
    np.testing.assert_array_equal(
        slopes(Dynamic(Uniform(4), Percentile(q=60), gradient="straight_through"), x, {}), [1, 2, 3, 4]
    )
    with pytest.raises(ValueError, match='Static: gradient must be "clipped" or "straight_through"; got \'ste\''):
        Static(Uniform(8), gradient="ste")
