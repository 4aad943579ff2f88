"""The entropy penalty: hand-computed bits, its derivative, and what training with it does to a file."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import chain, fake_quant, pack, prune, save
from lepton_jax.artifact import account
from lepton_jax.quantization import Uniform, entropy_bits
from lepton_jax.quantization.entropy_penalty import level_bits


def tree(values) -> dict:
    return {"kernel": jnp.asarray(values, jnp.float32).reshape(2, -1)}


def test_four_weights_by_hand():
    # 2 bits, symmetric: levels -1, 0, 1 with scale 2. Two zeros, one of each other: 2 * 1 + 2 * 2 bits.
    weights = tree([0.0, 0.0, 2.0, -2.0])
    for fmt, levels in ((Uniform(bits=2, narrow_range=True), 3), (Uniform(bits=2), 4)):
        assert entropy_bits(weights, fmt).item() == 6.0
        # Lengths with half a count for each level.
        total = 4 + 0.5 * levels
        none, one, zero = (math.log2(total / (count + 0.5)) for count in (0, 1, 2))
        slopes = jax.grad(lambda p, f=fmt: entropy_bits(p, f))(weights)["kernel"].reshape(-1)
        # A zero lies between two equal levels; from the ends there is half a step inwards; below -1 may be an empty level.
        below = (zero - one) / 2 if levels == 3 else (zero - none) / 2
        expected = [0.0, 0.0, (one - zero) / 2 / 2, below / 2]
        np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-6)


def test_weights_on_levels_are_read_on_these_levels_and_others_are_calibrated():
    # 3 bits, one leaf a case: the codes, and at which the largest magnitude is.
    step = 0.37
    for codes in ([-4, -2, 0, 1, 1, 3], [3, 3, -1, 0, 0, 2], [-3, 1, 1, 0, 2, 2], [0, 0, 0, 0, 0, 0]):
        for fmt in (Uniform(bits=3), Uniform(bits=3, group_size=2, group_axis=0), Uniform(3, channel_axis=-1)):
            weights = np.float32(np.array(codes) * step).reshape(6, 1)
            _, counts = np.unique(weights, return_counts=True)
            expected = (counts * np.log2(6 / counts)).sum()
            found = entropy_bits({"w": jnp.asarray(weights)}, fmt).item()
            # In groups the largest may be at either end of a few levels; codes of one tensor are what they were.
            assert fmt.group_size or found == pytest.approx(expected, abs=1e-3)
            for dtype in ("bfloat16", "float16"):
                again = entropy_bits({"w": jnp.asarray(weights, dtype)}, fmt).item()
                assert again == pytest.approx(found, abs=0.3)
    off = jnp.asarray(np.random.default_rng(0).normal(size=(40, 1)), jnp.float32)
    scale = float(jnp.abs(off).max()) / 3.5
    place = np.clip(np.asarray(off, np.float64).reshape(-1) / scale + 4, 0, 7)
    counts, below = np.zeros(8), np.minimum(np.floor(place), 6).astype(int)
    np.add.at(counts, below, 1 - (place - below))
    np.add.at(counts, below + 1, place - below)
    expected = sum(c * math.log2(40 / c) for c in counts if c > 0)
    assert entropy_bits({"w": off}, Uniform(3)).item() == pytest.approx(expected, rel=1e-4)


def test_bits_are_those_of_the_histogram():
    rng = np.random.default_rng(0)
    for bits, symmetric in ((2, True), (4, True), (3, False), (8, False)):
        fmt = Uniform(bits=bits, symmetric=symmetric)
        weights = tree(rng.normal(size=4000) * 0.1 + (0 if symmetric else 0.05))
        transform = fake_quant(fmt)
        params, state = transform.init(weights)
        codes = pack(transform, params, state)["kernel"].qvalue
        _, counts = np.unique(np.asarray(codes), return_counts=True)
        shares = counts / counts.sum()
        expected = -4000 * (shares * np.log2(shares)).sum()
        assert entropy_bits(transform.view(params, state), fmt).item() == pytest.approx(expected, rel=1e-4)


def test_soft_bits_by_differences():
    """Half-way between levels the derivative is the one of the soft histogram, but for the prior."""
    rng = np.random.default_rng(1)
    places = np.concatenate([rng.integers(0, 7, 3000).astype(float), [2.5, 3.5, 0.5]])

    def soft(p: np.ndarray) -> float:
        counts = np.zeros(8)
        below = np.minimum(np.floor(p), 6).astype(int)
        np.add.at(counts, below, 1 - (p - below))
        np.add.at(counts, below + 1, p - below)
        counts = counts[counts > 0]
        return float((counts * np.log2(len(p) / counts)).sum())

    assert level_bits(8, jnp.asarray(places, jnp.float32)).item() == pytest.approx(soft(places), rel=1e-5)
    slopes = jax.grad(lambda p: level_bits(8, p))(jnp.asarray(places, jnp.float32))
    for number in (3000, 3001, 3002):
        moved = [places.copy(), places.copy()]
        moved[0][number] += 1e-4
        moved[1][number] -= 1e-4
        assert slopes[number].item() == pytest.approx((soft(moved[0]) - soft(moved[1])) / 2e-4, abs=3e-3)


def test_the_derivative_pulls_to_the_common_level_and_stays_finite():
    weights = jnp.array([0.0] * 90 + [1.0] * 6 + [-1.0] * 3 + [7.0])
    slopes = np.asarray(jax.grad(lambda w: entropy_bits({"w": w.reshape(1, -1)}, Uniform(bits=4)))(weights))
    assert np.isfinite(slopes).all()
    assert (slopes[90:96] > 0).all()
    assert (slopes[96:99] < 0).all()
    assert np.abs(slopes[:90]).max() < np.abs(slopes[90:99]).min()
    both = jax.jit(jax.value_and_grad(lambda w: entropy_bits({"w": w}, Uniform(bits=4))))
    for odd in (jnp.zeros((1, 2)), jnp.array([[jnp.nan, 1.0]]), jnp.zeros((0, 3))):
        value, slope = both(odd)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
        assert slope.dtype == odd.dtype
    assert entropy_bits({"w": jnp.zeros((4, 4))}, Uniform(bits=4)).item() == 0.0


def test_close_to_what_the_file_takes(tmp_path):
    """Independent codes have no contexts: the file needs what the estimate says, and its own tables."""
    rng = np.random.default_rng(2)
    weights = tree(rng.laplace(size=40_000) * 0.05)
    for transform in (fake_quant(Uniform(4)), chain(prune(0.7), fake_quant(Uniform(4)))):
        params, state = transform.init(weights)
        estimate = entropy_bits(transform.view(params, state), Uniform(bits=4)).item() / 8
        save(tmp_path / "m", lambda v, x: x @ v["kernel"], pack(transform, params, state), jnp.ones((1, 2)))
        (tensor,) = account(tmp_path / "m").tensors
        assert tensor.total == pytest.approx(estimate, rel=0.03, abs=64)


def test_training_with_it_makes_codes_cheaper():
    """A linear model under chain(prune, fake_quant): a step under jit, finite, traced once, and fewer bits in the end."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
    y = x @ jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    transform, traces = chain(prune(0.25), fake_quant(Uniform(4))), []
    start, tstate = transform.init({"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)})

    def run(rate: float) -> tuple[float, float]:
        @jax.jit
        def step(params, rate):
            traces.append(1)

            def loss(p):
                seen = transform.view(p, tstate)
                bits = entropy_bits(seen, Uniform(bits=4))
                error = jnp.mean((x @ seen["kernel"] - y) ** 2)
                return error + rate * bits, (error, bits)

            (_, figures), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return jax.tree.map(lambda w, g: w - 0.05 * g, params, grads), figures, grads

        params = start
        for _ in range(150):
            params, figures, grads = step(params, rate)
            assert np.isfinite(grads["kernel"]).all()
        return float(figures[0]), float(figures[1])

    plain, small = run(0.0), run(0.1)
    assert len(traces) == 2
    assert small[1] < 0.8 * plain[1]
    assert plain[0] < small[0]


def test_refusals():
    with pytest.raises(TypeError, match="must be a Uniform"):
        entropy_bits(tree([1.0, 2.0]), 4)
    with pytest.raises(ValueError, match="matches no floating leaf"):
        entropy_bits(tree([1.0, 2.0]), Uniform(bits=4), select="bias")
