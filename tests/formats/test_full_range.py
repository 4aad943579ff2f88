"""Symmetric integers with all their levels, and without the lowest: errors, steps, files, and what did not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from uniform_by_hand import ends, rounded

from lepton_jax import fake_quant, load, pack, save, unpack
from lepton_jax.artifact import ArtifactError
from lepton_jax.formats.numbers import format_of, numbers_of
from lepton_jax.quantization import (
    BitSchedule,
    Dynamic,
    LearnedStep,
    Pact,
    QArray,
    Static,
    TwiceMean,
    Uniform,
    calibrated,
    dequantize,
    fake,
    gptq,
    lsq,
    quantize,
    scheduled_quant,
    stochastic_quant,
)
from lepton_jax.quantization.learned_step import grid

BITS = (2, 3, 4, 5, 6, 7, 8, 16)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def error(w: np.ndarray, fmt: Uniform) -> float:
    """Root mean square."""
    seen = np.asarray(quantize(jnp.asarray(w), fmt).unpack(), np.float64)
    return float(np.sqrt(np.mean((seen - w) ** 2)))


# ------------------------------------------------------------------------------------------------------------ how good


@pytest.mark.parametrize(("bits", "gain"), [(2, 1.39), (3, 1.16), (4, 1.06), (8, 0.995)])
def test_gaussian_weights_by_channel_have_the_error_of_qwix_and_a_smaller_one_than_in_the_narrow_range(bits, gain):
    """Qwix and AQT: ``round(w / s)`` clipped to the integers, with ``s = absmax / (2**(b-1) - 1/2)``; in float64."""
    w = draw(bits, 128, 1500)
    wide = np.asarray(w, np.float64)
    s = np.abs(wide).max(0, keepdims=True) / (2.0 ** (bits - 1) - 0.5)
    theirs = np.clip(np.round(wide / s), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * s
    full, narrow = (error(w, Uniform(bits, channel_axis=-1, narrow_range=one)) for one in (False, True))
    assert full == pytest.approx(np.sqrt(np.mean((theirs - wide) ** 2)), rel=1e-3)
    assert narrow / full == pytest.approx(gain, rel=0.02)


@pytest.mark.parametrize("bits", BITS)
def test_scales_and_ends(bits):
    w = draw(20 + bits, 9, 4)
    w[0, :2], w[0, 2:] = 5.0, -5.0  # the largest magnitude, at the upper end of two columns and at the lower of two
    half = 2 ** (bits - 1)
    for narrow, divisor, lowest in ((False, half - 0.5, -half), (True, half - 1, 1 - half)):
        fmt = Uniform(bits, channel_axis=-1, narrow_range=narrow)
        q = quantize(jnp.asarray(w), fmt)
        assert (fmt.q_range, fmt.steps, fmt.reach) == ((lowest, half - 1), divisor, max(-lowest, half - 1))
        np.testing.assert_allclose(q.scale, np.full((1, 4), 5 / divisor), rtol=1e-6)
        assert np.asarray(q.qvalue)[0, :2].tolist() == [half - 1] * 2
        # Half-way between two levels at the lower end.
        assert all(lowest <= code <= 1 - half for code in np.asarray(q.qvalue)[0, 2:].tolist())
        assert np.abs(np.asarray(q.unpack()) - w).max() <= 5 / divisor / 2 * (1 + 1e-5)
    exact = jnp.array([-1.0, 1.0, 0.25, 0.0]) * (half - 0.5)  # whose scale is 1
    lowest = -half if half > 2 else -2
    assert quantize(exact, Uniform(bits)).qvalue.tolist()[:2] == [lowest, half - 1]


def test_the_range_may_be_clipped_down_to_the_lowest_level():
    x = jnp.array([-9.0, -4.4, -3.4, 3.4, 9.0])
    for fmt, expected in ((Uniform(3), [-4, -4, -3, 3, 3]), (Uniform(3, narrow_range=True), [-3, -3, -3, 3, 3])):
        codes = fmt.to_codes(x, jnp.ones(1), jnp.zeros(1, jnp.int32))
        assert codes.tolist() == expected
        assert fmt.from_bits(fmt.to_bits(codes)).tolist() == expected
        assert fmt.to_bits(codes).tolist() == [code - expected[0] for code in expected]
        assert fmt.quiet_code == -expected[0]


def test_int8_of_small_groups_is_better_in_the_narrow_range():
    """What the docstring says: where many values are the largest of their group, the half step at the end costs more."""
    w = draw(3, 1024, 64)
    full, narrow = (error(w, Uniform(8, group_size=32, narrow_range=one)) for one in (False, True))
    assert 1.01 < full / narrow < 1.05
    full, narrow = (error(w, Uniform(4, group_size=32, narrow_range=one)) for one in (False, True))
    assert full < narrow


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_lowest_level_of_the_largest_numbers_is_finite(dtype, bits):
    largest = jnp.finfo(dtype).max
    x = jnp.array([[-largest, 1.0], [largest / 2, -jnp.inf], [jnp.inf, 0.0]], dtype)
    for fmt in (Uniform(bits), Uniform(bits, channel_axis=-1)):
        q = quantize(x, fmt)
        assert np.isfinite(np.asarray(q.unpack(), np.float64)).all()
        assert np.isfinite(np.asarray(fake(x, fmt, *calibrated(x, fmt)), np.float64)).all()
        assert float(q.unpack()[0, 0]) < 0


# ---------------------------------------------------------------------------------------- calibrated, learned, by chance


def test_what_is_quantized_again_keeps_its_codes_on_its_own_scale():
    """Not with a range of its own: that of what was rounded is half a step wider or narrower. In the narrow range it does."""
    w = jnp.asarray(draw(4, 40, 6))
    for fmt in (Uniform(3, channel_axis=-1), Uniform(4, group_size=8)):
        once = quantize(w, fmt)
        scale, zero = once.scale, once.zero_point
        seen = dequantize(once)
        np.testing.assert_array_equal(fake(seen, fmt, scale, zero), seen)
        again = quantize(seen, fmt)
        ratio = np.asarray(again.scale / scale) * fmt.steps  # the largest code in a scale
        np.testing.assert_allclose(ratio, np.round(ratio), rtol=1e-5)
        assert set(np.round(ratio).reshape(-1).tolist()) <= {-fmt.q_range[0], fmt.q_range[1]}
        narrow = quantize(w, dataclasses.replace(fmt, narrow_range=True))
        np.testing.assert_array_equal(quantize(dequantize(narrow), narrow.format).qvalue, narrow.qvalue)


def test_a_leaf_that_is_trained_on_keeps_its_levels_and_follows_its_largest_weight():
    w = jnp.asarray(draw(5, 40, 6))
    for fmt in (Uniform(2), Uniform(3, channel_axis=-1), Uniform(4, group_size=8, scale_dtype="bfloat16")):
        leaf = quantize(w.at[:, 0].set(0), fmt)
        same = leaf.retrained(leaf.trained())
        np.testing.assert_array_equal(same.qvalue, leaf.qvalue)
        np.testing.assert_allclose(same.scale, leaf.scale, rtol=1e-6)
        double = jax.jit(lambda leaf: leaf.retrained(2 * leaf.trained()))(leaf)
        np.testing.assert_array_equal(double.qvalue, leaf.qvalue)
        np.testing.assert_allclose(double.unpack(), 2 * leaf.unpack(), rtol=1e-6)
    nothing = quantize(jnp.zeros((2, 2)), Uniform(2)).retrained(jnp.array([[1.5, 0.0], [0.25, -1.0]]))
    assert nothing.unpack().tolist() == [[1.0, 0.0], [0.0, -1.0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("narrow", [False, True])
def test_the_first_learned_step_is_the_papers(bits, narrow):
    """Esser et al. 2020, section 2.1: ``2 mean|w| / sqrt(Q_p)``, whatever the range; of activations, too."""
    w = draw(bits, 30, 5)
    fmt = Uniform(bits, narrow_range=narrow)
    expected = 2 * np.abs(w.astype(np.float64)).mean() / np.sqrt(2.0 ** (bits - 1) - 1)
    params, _ = lsq(fmt).init({"k": jnp.asarray(w)})
    np.testing.assert_allclose(params["k"].step, [expected], rtol=1e-6)
    low, high = TwiceMean()(jnp.asarray(w), (0, 1), fmt)
    np.testing.assert_allclose(LearnedStep(fmt).init(low, high)["step"], [[expected]], rtol=1e-6)
    step, _ = grid(params["k"].step, jnp.zeros(1), fmt)
    np.testing.assert_array_equal(step, params["k"].step)


def test_chance_is_right_on_average_up_to_both_ends():
    w = jnp.array([[1.0, -1.0, 0.9, -0.95, 0.1]])
    transform = stochastic_quant(Uniform(2), jax.random.key(1))
    params, state = transform.init({"k": w})
    keys = jax.random.split(jax.random.key(2), 4000)
    found = jax.jit(jax.vmap(lambda key: transform.view(params, state._replace(key=key))["k"]))(keys)
    np.testing.assert_allclose(np.asarray(found, np.float64).mean(0), w, atol=4.5 / 2 / np.sqrt(4000))
    leaf = pack(transform, params, state)["k"]
    assert leaf.format == Uniform(2)
    np.testing.assert_array_equal(leaf.unpack(), transform.view(params, state)["k"])


@pytest.mark.parametrize("narrow", [False, True])
def test_everything_that_rounds_takes_the_range_of_its_format(narrow):
    fmt = Uniform(3, narrow_range=narrow)
    w = draw(7, 24, 6)
    w[3, 4] = 6.0  # the largest is at the upper end
    wide, low = np.asarray(w, np.float64), ends(fmt)[0]
    expected = rounded(wide, fmt)
    array, params = jnp.asarray(w), {"k": jnp.asarray(w)}
    shown = fake_quant(fmt)
    np.testing.assert_allclose(shown.view(*shown.init(params))["k"], expected, rtol=1e-6)
    np.testing.assert_allclose(unpack(pack(shown, *shown.init(params)))["k"], expected, rtol=1e-6)
    np.testing.assert_allclose(Dynamic(fmt)(array, {}), expected, rtol=1e-6)
    static = Static(fmt)
    site = static.init(jnp.full((1, 1), -2.0), jnp.full((1, 1), 1.0))
    np.testing.assert_allclose(static(array, site), rounded(wide, fmt, low=-2.0, high=1.0), rtol=1e-6)
    assert int(static.quantized(array, site).qvalue.min()) == low
    x = jnp.asarray(draw(8, 50, 24))
    assert low <= int(gptq(array, x, fmt, factors=(0.5,)).qvalue.min()) <= 1 + low
    learned = lsq(fmt)
    masters, state = learned.init(params)
    masters = jax.tree.map(lambda leaf: leaf if leaf.ndim == 2 else 0.1 * leaf, masters)
    assert int(pack(learned, masters, state)["k"].qvalue.min()) == low


def test_a_signed_height_and_fewer_bits_step_by_step():
    quantizer, x = Pact(3, signed=True), jnp.linspace(-5.0, 5.0, 41)
    site = {"alpha": jnp.float32(3.5)}
    np.testing.assert_array_equal(quantizer(x, site), np.clip(np.round(np.asarray(x)), -4, 3))
    schedule = BitSchedule(begin=(0, 1), bits=(8, 2))
    transform = scheduled_quant(schedule, channel_axis=None)
    params, state = transform.init({"k": jnp.array([[1.5, -1.5, 0.6]])})
    np.testing.assert_array_equal(transform.view(params, state)["k"], quantize(params["k"], Uniform(8)).unpack())
    _, state = transform.update(params, state, params, 0)
    assert transform.view(params, state)["k"].tolist() == [[1.0, -2.0, 1.0]]


# ------------------------------------------------------------------------------------------------------------- unchanged


@pytest.mark.parametrize(
    "fmt",
    [Uniform(b, False, channel_axis=-1, signed=s) for b in (2, 5, 8) for s in (False, True)]
    + [Uniform(b, True, signed=False) for b in (2, 4, 8)]
    + [Uniform(b, narrow_range=True, channel_axis=-1) for b in (2, 3, 8)],
    ids=lambda fmt: f"{fmt.name} {fmt.channel_axis}",
)
def test_other_levels_are_bit_for_bit_what_they_were(fmt):
    """The formulas of version 1.3, in float32, operation by operation."""
    x = draw(9, 33, 5)
    axes = (0,) if fmt.channel_axis == -1 else (0, 1)
    low, high = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
    levels = 2 ** (fmt.bits - 1) - 1 if fmt.symmetric and fmt.signed else 2**fmt.bits - 1
    q_low = 0 if not fmt.signed else -levels if fmt.symmetric else -(2 ** (fmt.bits - 1))
    q_high = q_low + (2 * levels if fmt.symmetric and fmt.signed else levels)
    width = high - low if not fmt.symmetric else np.maximum(-low, high) if fmt.signed else high
    scale = width * np.float32(1 / levels)
    zero = np.zeros_like(scale) if fmt.symmetric else np.clip(np.round(-low / scale) + q_low, q_low, q_high)
    codes = np.clip(np.round(x * (np.float32(1) / scale)) + zero, q_low, q_high)
    q = quantize(jnp.asarray(x), fmt)
    assert np.asarray(q.scale).tobytes() == scale.tobytes()
    np.testing.assert_array_equal(q.zero_point, zero)
    np.testing.assert_array_equal(q.qvalue, codes)
    assert np.asarray(q.unpack()).tobytes() == ((codes - zero).astype(np.float32) * scale).tobytes()


# ----------------------------------------------------------------------------------------------------------------- files

STORED = {
    "full": Uniform(4, channel_axis=-1),
    "full, a tensor": Uniform(2),
    "full, groups": Uniform(4, group_size=4, scale_dtype="float16"),
    "full, 16 bits": Uniform(16),
    "narrow": Uniform(4, channel_axis=-1, narrow_range=True),
    "narrow, groups": Uniform(4, group_size=4, narrow_range=True),
    "affine": Uniform(4, False),
    "affine, signed": Uniform(4, False, signed=True),
    "unsigned": Uniform(4, signed=False),
}


@pytest.mark.parametrize("name", STORED)
def test_files_keep_the_bits_of_both_ranges(name, tmp_path):
    fmt, x = STORED[name], jnp.ones((1, 12))
    leaf = quantize(jnp.asarray(draw(11, 12, 3)), fmt)
    save(tmp_path / "m", lambda v, x: x @ v["k"], {"k": leaf}, x)
    artifact = load(tmp_path / "m")
    back = artifact.packed["k"]
    assert isinstance(back, QArray)
    assert back.unpack().tobytes() == leaf.unpack().tobytes()
    assert back.qvalue.tolist() == leaf.qvalue.tolist()
    assert (back.format.q_range, back.format.steps) == (fmt.q_range, fmt.steps)
    # The kind q has been narrow, or affine, since version 1.1.
    assert artifact.manifest["tree"]["k"][0] == ("q" if name in ("narrow", "affine") else "g")


@pytest.mark.parametrize("fmt", STORED.values(), ids=STORED)
def test_what_an_older_reader_knows_is_written_as_it_was_and_the_full_range_is_refused_by_it(fmt):
    numbers = numbers_of(fmt)
    full = fmt.symmetric and fmt.signed and not fmt.narrow_range
    assert format_of(numbers) == fmt
    # Bits, symmetric, signed, in this order, were all the fields of its own that version 1.3 knew, and it took no more.
    assert numbers[5:] == (fmt.bits, int(fmt.symmetric), int(fmt.signed), *([0] if full else []))
    for wrong in ((*numbers, 0, 0), (*numbers[:7], 0, 1), (*numbers[:6], 0, 0, 1)):
        with pytest.raises(ArtifactError, match="describe no number format"):
            format_of(wrong)
