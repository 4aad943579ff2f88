"""Every number format and granularity, against numpy, float64 and ml_dtypes."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from uniform_by_hand import codes_of, ends, scale_of

from lepton_jax import chain, fake_quant, pack, prune, unpack
from lepton_jax.core.schedules import polynomial
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.quantization import (
    MX,
    Binary,
    Codebook,
    Float8,
    Format,
    MinMax,
    NormalFloat4,
    QArray,
    Ternary,
    Uniform,
    calibrated,
    dequantize,
    fake,
    mxfp4,
    mxfp8,
    quantize,
)

FORMATS = {
    "int4 groups": Uniform(4, True, None, 8, scale_dtype="float16"),
    "uint4 groups": Uniform(4, False, None, 8, scale_dtype="bfloat16"),
    "int8 groups along the last": Uniform(8, True, None, 3, group_axis=-1),
    "int4 narrow groups": Uniform(4, True, None, 8, scale_dtype="float16", narrow_range=True),
    "int2": Uniform(2, channel_axis=-1),
    "int3 affine": Uniform(3, False, signed=True),
    "uint2 symmetric": Uniform(2, True, -1, signed=False),
    "int16": Uniform(16),
    "uint16": Uniform(16, False, 0),
    "binary": Binary(),
    "binary groups": Binary(group_size=5, scale_dtype="float16"),
    "ternary": Ternary(channel_axis=-1),
    "ternary groups": Ternary(group_size=4),
    "e4m3": Float8(channel_axis=-1),
    "e5m2": Float8("float8_e5m2", None, 4),
    "nf4": NormalFloat4(),
    "nf4 groups": NormalFloat4(group_size=6, scale_dtype="float16"),
    "mxfp4": mxfp4(),
    "mxfp8": mxfp8(group_axis=-1),
    "mxfp8 e5m2": mxfp8("float8_e5m2"),
}
NAMES = list(FORMATS)
VIEW = jax.jit(lambda x, fmt: fake(x, fmt, *calibrated(x, fmt)), static_argnums=1)
PACK = jax.jit(quantize, static_argnums=1)
UNPACK = jax.jit(dequantize)


def drawn(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_same(a: jax.Array, b: jax.Array) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# --------------------------------------------------------------------------------------------------------------- references


# Dettmers et al. 2023, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def grouped(x: np.ndarray, fmt: Format) -> tuple[np.ndarray, tuple[int, ...]]:
    """The index of each element's scale, and the scales' shape: by loops."""
    shape = list(x.shape) if fmt.group_size else [1] * x.ndim
    where = list(np.indices(x.shape))
    if fmt.group_size:
        axis = (x.ndim - 2 if fmt.group_axis is None else fmt.group_axis) % x.ndim
        shape[axis] = math.ceil(x.shape[axis] / fmt.group_size)
        where[axis] = where[axis] // fmt.group_size
    else:
        for axis in range(x.ndim):
            if fmt.channel_axis is not None and axis == fmt.channel_axis % x.ndim:
                shape[axis] = x.shape[axis]
            else:
                where[axis] = where[axis] * 0
    return np.ravel_multi_index(where, shape), tuple(shape)


def levels(fmt: Format) -> np.ndarray:
    """All values at scale 1, in float64."""
    if isinstance(fmt, NormalFloat4):
        return np.array(NF4)
    if isinstance(fmt, Binary):
        return np.array([-1.0, 1.0])
    if isinstance(fmt, Ternary):
        return np.array([-1.0, 0.0, 1.0])
    name = fmt.dtype if isinstance(fmt, Float8) else fmt.element
    codes = np.arange(16 if "4_" in name else 256, dtype=np.uint8)
    values = codes.view(getattr(ml_dtypes, name)).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


def reference_scale(x: np.ndarray, fmt: Format) -> float:
    """The scale of one group, float64."""
    largest = np.abs(x).max()
    if isinstance(fmt, MX):
        return 2.0 ** (math.floor(math.log2(largest)) - math.floor(math.log2(levels(fmt).max())))
    if isinstance(fmt, Binary):
        return np.abs(x).mean()
    if isinstance(fmt, Ternary):
        return np.abs(x)[np.abs(x) > 0.7 * np.abs(x).mean()].mean()
    if isinstance(fmt, Uniform):
        return float(scale_of(x.min(), x.max(), fmt))
    return largest / levels(fmt).max()


def nearest(x: np.ndarray, scale: float, fmt: Format) -> np.ndarray:
    """The values of one group, float64, under a scale."""
    if isinstance(fmt, Uniform):
        zero = 0.0 if fmt.symmetric else np.round(-min(x.min(), 0) / scale) + ends(fmt)[0]
        return (codes_of(x, scale, zero, fmt) - zero) * scale
    table = levels(fmt) * scale
    return table[np.abs(x[:, None] - table).argmin(1)]


@pytest.mark.parametrize("name", NAMES)
def test_against_float64(name: str) -> None:
    fmt, x = FORMATS[name], drawn((21, 7))
    q = PACK(x, fmt)
    index, shape = grouped(np.asarray(x), fmt)
    assert q.scale.shape == fmt.scale_shape(x.shape) == shape
    assert q.scale.dtype == fmt.scale_dtype
    values, seen = np.asarray(x, np.float64), np.asarray(UNPACK(q))
    found = np.asarray(q.scale).astype(np.float64).reshape(-1)
    for group in range(math.prod(shape)):
        inside = values[index == group]
        expected = reference_scale(inside, fmt)
        # Half a unit of the scale's own dtype; means are of 15 bits.
        tolerance = {"float32": 2e-5, "float16": 2**-10, "bfloat16": 2**-8, "float8_e8m0fnu": 0}[fmt.scale_dtype]
        np.testing.assert_allclose(found[group], expected, rtol=tolerance)
        np.testing.assert_allclose(seen[index == group], nearest(inside, found[group], fmt), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "dtype"), [((21, 7), "float32"), ((2, 3, 10, 4), "bfloat16")], ids=["float32", "bfloat16"])
def test_what_is_unpacked_is_what_was_seen(name: str, shape: tuple[int, ...], dtype: str) -> None:
    fmt, x = FORMATS[name], drawn(shape, dtype)
    q, seen = PACK(x, fmt), VIEW(x, fmt)
    assert seen.dtype == x.dtype
    assert_same(UNPACK(q), seen)
    assert (q.words.dtype, q.words.nbytes) == (jnp.uint8, math.ceil(x.size * fmt.bits / 8))
    assert 0 < float(jnp.mean(jnp.abs(seen - x).astype(jnp.float32))) < 1


@pytest.mark.parametrize("name", ["int4 groups", "uint4 groups", "binary groups", "ternary groups", "e5m2", "nf4", "mxfp4"])
def test_without_jit_under_vmap_and_in_a_scan(name: str) -> None:
    fmt, x = FORMATS[name], drawn((2, 10, 3))
    seen = VIEW(x[0], fmt)
    assert_same(quantize(x[0], fmt).unpack(), seen)
    both = jax.vmap(lambda w: fake(w, fmt, *calibrated(w, fmt)))(x)
    assert_same(both[0], seen)
    packed = jax.vmap(lambda w: quantize(w, fmt))(x)
    assert_same(jax.vmap(dequantize)(packed), both)
    assert_same(jax.lax.scan(lambda carry, q: (carry, dequantize(q)), 0, packed)[1], both)
    slope = jnp.arange(30.0).reshape(10, 3)
    grad = jax.grad(lambda w: jnp.sum(slope * fake(w, fmt, *calibrated(w, fmt))))(x[0])
    np.testing.assert_array_equal(grad, slope)


def test_half_way_between_two_levels_no_program_differs_from_another() -> None:
    """A compiler that sees a scale to be shared multiplies by its reciprocal; one that does not would divide."""
    fmt, draw = Uniform(8, group_size=16), np.random.default_rng(5)
    scale = jnp.asarray(draw.uniform(0.1, 1, size=(2, 40)), jnp.float32)
    wide = np.repeat(np.asarray(scale), 16, axis=0)
    x = jnp.asarray((draw.integers(-100, 100, size=wide.shape) + 0.5) * wide, jnp.float32)
    zero = jnp.zeros((1, 1), jnp.int32)
    inside = jax.jit(lambda x, scale: fake(x, fmt, scale, zero))(x, scale)
    outside = fmt.from_codes(fmt.to_codes(x, jnp.asarray(wide), zero), jnp.asarray(wide), zero)
    assert_same(inside, outside)
    assert_same(QArray.from_qvalue(fmt.to_codes(x, jnp.asarray(wide), zero), scale, zero, fmt, "float32").unpack(), inside)


# --------------------------------------------------------------------------------------------------------- special arrays


@pytest.mark.parametrize("name", NAMES)
def test_special_arrays(name: str) -> None:
    """Zeros, a column of zeros, a constant, NaN and infinities, all in arrays of one shape (and one compilation)."""
    fmt, x = FORMATS[name], np.asarray(drawn((21, 7), seed=3)).copy()
    zeros = np.asarray(UNPACK(PACK(jnp.zeros((21, 7)), fmt)))
    assert zeros.tobytes() == bytes(zeros.nbytes)  # and none is -0
    constant = np.asarray(UNPACK(PACK(jnp.full((21, 7), 0.7), fmt)))
    # The end of a full range is half a step off: at two bits a third. Of mxfp4 it is 0.75.
    np.testing.assert_allclose(constant, 0.7, rtol=1.0001 / 3 if name == "int2" else 0.17)
    assert len(np.unique(constant)) == 1
    x[:, 2] = 0
    seen = np.asarray(UNPACK(PACK(jnp.asarray(x), fmt)))
    if fmt.has_zero or fmt.group_size:
        np.testing.assert_array_equal(seen[:, 2] if fmt.group_axis is None else 0, 0)
    clean, x[4, 5] = x.copy(), np.nan
    clean[4, 5] = 0
    np.testing.assert_array_equal(UNPACK(PACK(jnp.asarray(x), fmt)), UNPACK(PACK(jnp.asarray(clean), fmt)))
    for infinite in (np.inf, -np.inf):
        x[4, 5] = infinite
        seen = np.asarray(UNPACK(PACK(jnp.asarray(x), fmt)))
        assert np.isfinite(seen).all()
        unsigned = isinstance(fmt, Uniform) and fmt.symmetric and not fmt.signed
        assert np.sign(seen[4, 5]) == (0 if unsigned and infinite < 0 else np.sign(infinite))


@pytest.mark.parametrize("name", ["int4 groups", "uint16", "binary", "ternary groups", "e4m3", "nf4", "mxfp4"])
def test_empty_arrays_and_single_elements(name: str) -> None:
    fmt = FORMATS[name]
    if fmt.group_size is None or fmt.short_groups:
        one = quantize(jnp.array([[-2.5]]), fmt)
        np.testing.assert_allclose(one.unpack(), [[-2.5]], rtol=0.21)
    empty = quantize(jnp.zeros((0, 4)), fmt)
    assert (empty.shape, empty.words.size, empty.unpack().shape) == ((0, 4), 0, (0, 4))


@pytest.mark.parametrize("name", [n for n in NAMES if FORMATS[n].has_zero])
def test_zero_is_exact_and_masks_are_kept(name: str) -> None:
    fmt, keep = FORMATS[name], np.random.default_rng(1).random((21, 7)) < 0.5
    x = np.where(keep, np.asarray(drawn((21, 7))) + 0.5, 0).astype(np.float32)
    q = PACK(jnp.asarray(x), fmt)
    assert not np.asarray(UNPACK(q))[~keep].any()
    again = np.random.default_rng(2).random((21, 7)) < 0.5
    masked = jax.jit(lambda q, mask: q.masked(mask))(q, jnp.asarray(again))
    np.testing.assert_array_equal(UNPACK(masked), np.where(again, UNPACK(q), 0))


# ----------------------------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("name", ["int4 groups", "uint4 groups", "ternary", "e4m3", "nf4", "mxfp4"])
def test_after_pruning_zeros_stay(name: str) -> None:
    transform = chain(prune(0.5), fake_quant(FORMATS[name]))
    params, state = transform.init({"w": drawn((21, 7))})
    seen = jax.jit(transform.view)(params, state)["w"]
    leaf = pack(transform, params, state)["w"]
    assert isinstance(leaf, QArray)
    assert leaf.format == FORMATS[name]
    assert_same(leaf.unpack(), seen)
    assert float(jnp.mean(seen == 0)) >= 0.5


def test_binary_refuses_pruned_leaves() -> None:
    with pytest.raises(ValueError, match=r"w: 74 of 147 weights are zero, and binary has no zero; take Ternary or Codebook"):
        chain(prune(0.5), fake_quant(Binary())).init({"w": drawn((21, 7))})
    later = chain(prune(polynomial(0.5, begin=0, end=2)), fake_quant(Binary()))
    params, state = later.init({"w": drawn((21, 7))})
    params, state = later.update(params, state, params, 2)
    with pytest.raises(ValueError, match=r"w: 7\d of 147 weights are zero"):
        pack(later, params, state)
    first = chain(fake_quant(Binary()), prune(0.5))
    with pytest.raises(ValueError, match="Binary: has no zero, so its arrays cannot be masked"):
        pack(first, *first.init({"w": drawn((21, 7))}))


def test_a_range_may_be_given() -> None:
    x = jnp.array([0.1, -0.2, 1.0])
    np.testing.assert_array_equal(quantize(x, Binary(), MinMax()).unpack(), [1.0, -1.0, 1.0])
    one = chain(fake_quant(Ternary(), calibration=MinMax()))
    seen = one.view(*one.init({"w": x[None]}))["w"]
    np.testing.assert_array_equal(seen, [[0.0, 0.0, 1.0]])


def test_a_codebook_is_a_format_too() -> None:
    x = drawn((21, 7))
    leaf = quantize(x, Codebook(bits=2))
    assert isinstance(leaf, CodebookArray)
    transform = fake_quant(Codebook(bits=2))
    assert_same(dequantize(leaf), unpack(pack(transform, *transform.init({"w": x}))["w"]))


def test_numbers_in_files_are_for_good() -> None:
    own = {cls.__name__: cls.number for cls in Format.__subclasses__() if cls.__module__.startswith("lepton_jax.")}
    assert own.items() >= {"Uniform": 0, "Binary": 1, "Ternary": 2, "Float8": 3, "NormalFloat4": 4, "MX": 5}.items()
    assert len(set(own.values())) == len(own)
