"""Uniform quantization against float64 formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from uniform_by_hand import codes_of, scale_of

from lepton_jax.coding.bit_packing import pack_bits, unpack_bits
from lepton_jax.quantization import MinMax, Uniform, dequantize, quantize

MATRIX = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)

# Root mean square error over the matrix's own, symmetric and per tensor: computed once in float64 by numpy, and written down;
# of the narrow range, too.
GOLDEN = {2: 0.73571, 3: 0.32501, 4: 0.15216, 5: 0.07296, 6: 0.03607, 7: 0.01771, 8: 0.00888}
GOLDEN_NARROW = {2: 0.92835, 3: 0.37909, 4: 0.16279, 5: 0.07531, 6: 0.03626, 7: 0.01796, 8: 0.00896}


def reference(x: np.ndarray, fmt: Uniform) -> tuple[np.ndarray, np.ndarray]:
    """Integers and values in float64."""
    axes = tuple(i for i in range(x.ndim) if fmt.channel_axis is None or i != fmt.channel_axis % x.ndim)
    x = x.astype(np.float64)
    low, high = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
    scale = scale_of(low, high, fmt)
    zero = 0.0 if fmt.symmetric else np.round(-low / scale)
    q = codes_of(x, scale, zero, fmt)
    return q, (q - zero) * scale


@pytest.mark.parametrize(
    ("bits", "symmetric", "axis", "narrow"),
    [(bits, True, None, narrow) for bits in range(2, 9) for narrow in (False, True)]
    + [(bits, *rest, False) for bits in (2, 5, 8) for rest in ((True, -1), (False, None), (False, -1))],
)
def test_against_float64(bits: int, symmetric: bool, axis: int | None, narrow: bool) -> None:
    fmt = Uniform(bits=bits, symmetric=symmetric, channel_axis=axis, narrow_range=narrow)
    q = quantize(jnp.asarray(MATRIX), fmt)
    integers, values = reference(MATRIX, fmt)
    assert q.qvalue.dtype == (jnp.int8 if symmetric else jnp.uint8)
    assert q.scale.shape == q.zero_point.shape == ((1, 1) if axis is None else (1, 48))
    assert (q.scale.dtype, q.zero_point.dtype) == (jnp.float32, jnp.int32)
    assert fmt.q_range[0] <= int(q.qvalue.min()) <= int(q.qvalue.max()) <= fmt.q_range[1]
    # A value that lies on a rounding boundary to the last bit of float32 may go either way; none but the lowest does here.
    np.testing.assert_array_equal(q.qvalue, integers)
    assert dequantize(q).dtype == jnp.float32
    np.testing.assert_allclose(dequantize(q), values, rtol=1e-6)
    if symmetric and axis is None:
        error = np.sqrt(np.mean((np.asarray(dequantize(q)) - MATRIX) ** 2) / np.mean(MATRIX**2))
        np.testing.assert_allclose(error, (GOLDEN_NARROW if narrow else GOLDEN)[bits], atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_bytes(bits: int) -> None:
    for shape in ((3, 5), (1,), (0, 4), (7, 1, 3)):
        x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
        for symmetric in (True, False):
            q = quantize(x, Uniform(bits=bits, symmetric=symmetric))
            assert (q.words.dtype, q.words.shape) == (jnp.uint8, (-(-x.size * bits // 8),))
            assert (q.shape, q.dtype, q.ndim, q.size) == (x.shape, x.dtype, x.ndim, x.size)
            assert q.qvalue.shape == dequantize(q).shape == shape


@pytest.mark.parametrize("bits", [*range(1, 9), 16])
def test_pack_bits_against_numpy(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, size=(5, 7)).astype(np.uint16 if bits > 8 else np.uint8)
    stream = [(int(code) >> place) & 1 for code in codes.reshape(-1) for place in range(bits)]
    expected = np.packbits(np.array(stream, np.uint8), bitorder="little")
    words = pack_bits(jnp.asarray(codes), bits)
    assert words.dtype == jnp.uint8
    np.testing.assert_array_equal(words, expected)
    back = unpack_bits(words, bits, codes.size)
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back.reshape(codes.shape), codes)


SPECIAL = {
    "zeros": np.zeros((3, 2)),
    "a channel of zeros": np.array([[0.0, 1.0], [0.0, -3.0]]),
    "constant": np.full((2, 2), 0.7),
    "negative constant": np.full((2, 2), -0.7),
    "one element": np.array([[-2.5]]),
    "tiny": np.array([[1e-44, 0.0]]),
    "huge": np.array([[3e38, -3e38]]),
    "scalar": np.array(1.5),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("symmetric", [True, False])
def test_special_arrays(name: str, symmetric: bool) -> None:
    x = SPECIAL[name].astype(np.float32)
    axis = -1 if x.ndim else None
    seen = np.asarray(dequantize(quantize(jnp.asarray(x), Uniform(bits=8, symmetric=symmetric, channel_axis=axis))))
    assert np.isfinite(seen).all()
    # At most half a step, in a range of its own for each channel.
    width = np.maximum(x.max(0), 0).astype(np.float64) - np.minimum(x.min(0), 0) if x.ndim else np.abs(x).astype(np.float64)
    assert (np.abs(seen - x.astype(np.float64)) <= width / 254 * 1.01 * (2 if not symmetric else 1) + 2e-38).all()
    assert (seen[x == 0] == 0).all()
    assert not np.signbit(seen[x == 0]).any()


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_is_exact_in_every_range(symmetric: bool) -> None:
    draw = np.random.default_rng(2)
    for shift in (-3.0, -0.3, 0.0, 0.4, 5.0):
        x = (draw.normal(size=(20, 2)) + shift).astype(np.float32)
        x[::3] = 0
        for bits in (2, 4, 7):
            seen = np.asarray(dequantize(quantize(jnp.asarray(x), Uniform(bits=bits, symmetric=symmetric))))
            assert (seen[x == 0] == 0).all()


def test_nan_becomes_zero_and_spoils_nothing_else() -> None:
    x = np.array([[1.0, np.nan], [-0.5, 0.25]], np.float32)
    for symmetric in (True, False):
        fmt = Uniform(bits=8, symmetric=symmetric)
        seen, clean = (np.asarray(dequantize(quantize(jnp.asarray(a), fmt))) for a in (x, np.nan_to_num(x)))
        np.testing.assert_array_equal(seen, clean)
        assert seen[0, 1] == 0


def test_min_max() -> None:
    low, high = MinMax()(jnp.array([[1.0, -2.0], [3.0, jnp.nan]]), (0,))
    assert (low.tolist(), high.tolist()) == ([[0.0, -2.0]], [[3.0, 0.0]])
    low, high = MinMax()(jnp.zeros((0, 2)), (0, 1))
    assert (low.tolist(), high.tolist()) == ([[0.0]], [[0.0]])


@pytest.mark.parametrize("symmetric", [True, False])
def test_masked_is_the_quantized_mask(symmetric: bool) -> None:
    q = quantize(jnp.asarray(MATRIX), Uniform(bits=3, symmetric=symmetric, channel_axis=-1))
    mask = MATRIX > 0.2
    np.testing.assert_array_equal(q.masked(jnp.asarray(mask)).unpack(), np.where(mask, q.unpack(), 0))


def test_cast_to_narrower_keeps_codes_and_to_wider_does_not_undo_the_rounding() -> None:
    q = quantize(jnp.asarray(MATRIX), Uniform(bits=8))
    narrow = q.astype(jnp.bfloat16)
    np.testing.assert_array_equal(narrow.unpack(), q.unpack().astype(jnp.bfloat16))
    assert narrow.unpack().dtype == jnp.bfloat16
    wide = narrow.astype(jnp.float32)
    np.testing.assert_array_equal(wide, q.unpack().astype(jnp.bfloat16).astype(jnp.float32))
    assert wide.dtype == jnp.float32


def test_a_packed_leaf_is_a_pytree_with_named_keys() -> None:
    q = quantize(jnp.asarray(MATRIX), Uniform(bits=4))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path({"k": q})[0]]
    assert names == ["['k'].words", "['k'].scale", "['k'].zero_point"]
    np.testing.assert_array_equal(jax.jit(lambda leaf: leaf.unpack())(q), q.unpack())


@pytest.mark.parametrize("bits", [0, 1, 9, 4.5, -3])
def test_bits_out_of_range(bits: float) -> None:
    with pytest.raises(ValueError, match=rf"Uniform: bits must be a whole number from 2 to 8; got {bits}"):
        Uniform(bits=bits)


@pytest.mark.parametrize("axis", [2, -3])
def test_a_channel_axis_that_is_not_there(axis: int) -> None:
    with pytest.raises(ValueError, match=rf"channel_axis={axis} is out of range for an array of shape \(64, 48\)"):
        quantize(jnp.asarray(MATRIX), Uniform(channel_axis=axis))
