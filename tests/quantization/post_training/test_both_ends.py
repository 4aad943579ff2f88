"""Symmetric integers after training: with the largest weight half a step off, or exact, whichever leaves less output error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.formats.ranges import MinMax
from lepton_jax.quantization import Gptq, Nearest, Uniform, awq_scale, quantize, quantize_layers


def apply(variables, x):
    return (x * variables["scale"][None]) @ variables["w"]


def draw(seed: int, inputs: int = 48, outputs: int = 6) -> tuple[dict[str, jax.Array], jax.Array]:
    """A layer, and inputs that hang together, a few of them large."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, inputs)) @ (np.eye(inputs) + 0.1 * rng.normal(size=(inputs, inputs)))
    x *= np.where(np.arange(inputs) % 16 == 3, 20, 1)
    w = rng.normal(size=(inputs, outputs))
    return {"scale": jnp.ones(inputs), "w": jnp.asarray(w, jnp.float32)}, jnp.asarray(x, jnp.float32)


def errors(variables, x, w) -> np.ndarray:
    """Of each output, in float64."""
    return np.sum(
        (np.asarray(x, np.float64) @ (np.asarray(variables["w"].unpack(), np.float64) - np.asarray(w, np.float64))) ** 2, 0
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("where", [{"channel_axis": -1}, {"group_size": 16}, {"group_size": 20}])
def test_no_output_is_worse_than_by_either_end(bits, where):
    variables, x = draw(bits)
    fmt, narrow = Uniform(bits, **where), Uniform(bits, narrow_range=True, **where)
    rounded = {"method": Nearest(), "select": "w", "progress": False}
    both, reports = quantize_layers(apply, variables, [x], fmt, **rounded)
    ends = [errors({"w": quantize(variables["w"], one)}, x, variables["w"]) for one in (fmt, narrow)]
    found = errors(both, x, variables["w"])
    assert (found <= np.minimum(*ends) * 1.0001).all()
    if fmt.group_size:  # one scale an output: at 2 bits the full range may be best for each
        assert found.sum() < 0.99 * min(end.sum() for end in ends)
    whole = np.sum((np.asarray(x, np.float64) @ np.asarray(variables["w"], np.float64)) ** 2)
    assert reports["w"].error == pytest.approx(found.sum() / whole, rel=1e-3)
    assert reports["w"].nearest == pytest.approx(ends[0].sum() / whole, rel=1e-3)  # as `quantize` does
    # The same format, as many bytes, and scales of the one or the other end alone.
    plain, inside = (quantize(variables["w"], one) for one in (fmt, narrow))
    assert (both["w"].format, both["w"].scale.shape, both["w"].zero_point.shape) == (
        fmt,
        plain.scale.shape,
        plain.zero_point.shape,
    )
    relative = np.asarray(both["w"].scale, np.float64) / np.asarray(plain.scale, np.float64)
    wider = float(inside.scale.ravel()[0] / plain.scale.ravel()[0])
    np.testing.assert_allclose(np.where(relative > (1 + wider) / 2, relative / wider, relative), 1, rtol=1e-5)


@pytest.mark.parametrize("method", [Nearest(), Gptq()])
@pytest.mark.parametrize("group_size", [8, 16])
def test_awq_loses_nothing_to_the_full_range(method, group_size):
    """The weights that it makes large are exact where that is better."""
    found = []
    for narrow in (False, True):
        total = 0.0
        for seed in range(4):
            variables, x = draw(seed)
            fmt = Uniform(4, group_size=group_size, narrow_range=narrow)
            scaled, left = awq_scale(apply, variables, [x], fmt, select="w")
            assert not left
            quantized, _ = quantize_layers(apply, scaled, [x], fmt, method, select="w", progress=False)
            wanted = np.asarray(x, np.float64) @ np.asarray(variables["w"], np.float64)
            given = np.asarray(x * quantized["scale"][None], np.float64) @ np.asarray(quantized["w"].unpack(), np.float64)
            total += np.sum((given - wanted) ** 2)
        found.append(total)
    assert found[0] < 0.95 * found[1]


def test_one_range_where_it_is_asked_for():
    variables, x = draw(5)
    fmt = Uniform(3, group_size=16)
    plain = quantize(variables["w"], fmt)
    for options in ({"factors": ()}, {"factors": (1.0,)}, {"calibration": MinMax()}, {"sequential": False}):
        found, _ = quantize_layers(apply, variables, [x], fmt, Nearest(), select="w", progress=False, **options)
        np.testing.assert_array_equal(found["w"].scale, plain.scale)
        np.testing.assert_array_equal(found["w"].qvalue, plain.qvalue)
    affine = Uniform(3, symmetric=False, group_size=16)
    found, _ = quantize_layers(apply, variables, [x], affine, Nearest(), select="w", progress=False)
    np.testing.assert_array_equal(found["w"].qvalue, quantize(variables["w"], affine).qvalue)


def test_stacked_matrices_choose_for_themselves():
    """Three layers of a scan, of different sizes and inputs, as three layers by hand."""
    rng = np.random.default_rng(8)
    w = jnp.asarray(rng.normal(size=(3, 24, 24)) * np.array([1, 0.1, 0.01])[:, None, None], jnp.float32)
    x = jnp.asarray(rng.normal(size=(100, 24)) * np.where(np.arange(24) < 2, 20, 1), jnp.float32)

    def scanned(variables, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, variables["w"])[0]

    def unrolled(variables, x):
        for name in "abc":
            x = jnp.tanh(x @ variables[name])
        return x

    for fmt in (Uniform(3, group_size=8), Uniform(3, channel_axis="out")):
        one, _ = quantize_layers(scanned, {"w": w}, [x], fmt, Nearest(), progress=False, follow_float=False)
        each, _ = quantize_layers(unrolled, dict(zip("abc", w)), [x], fmt, Nearest(), progress=False, follow_float=False)
        np.testing.assert_allclose(one["w"].unpack(), jnp.stack([each[name].unpack() for name in "abc"]), rtol=1e-6)
        assert len(set(np.round(np.asarray(one["w"].scale).ravel() / np.abs(np.asarray(one["w"].scale)).max(), 6))) > 3
