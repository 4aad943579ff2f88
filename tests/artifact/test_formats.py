"""decode(encode(x)) is x, bit for bit, for every format that a file holds."""

import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings

from lepton_jax.artifact import ArtifactError, leaves
from lepton_jax.coding import arrays
from lepton_jax.coding.bit_packing import pack_bits
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader
from lepton_jax.formats import layout
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.figures import figures
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.quantization import Binary, Float8, NormalFloat4, Ternary, Uniform, mxfp4, mxfp8, quantize

DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "int32", "uint8", "bool", "complex64")
SHAPES = numpy_strategies.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)
# Few distinct values or many, mostly one or none.
SEEDS = st.integers(0, 2**32 - 1)
SPREADS = st.sampled_from(["constant", "mostly_one", "few", "any"])
quick = settings(max_examples=60, deadline=None, derandomize=True)


def spread(rng, kind, high, shape):
    """Integers in [0, high) of a shape, distributed as `kind` says."""
    values = rng.integers(0, high, shape)
    if kind == "constant":
        return np.full(shape, rng.integers(0, high))
    if kind == "mostly_one":
        return np.where(rng.random(shape) < 0.85, rng.integers(0, high), values)
    return values % max(min(high, 3), 1) if kind == "few" else values


def packed(codes, bits):
    return jnp.asarray(pack_bits(codes.reshape(-1), bits))


def check_leaf(leaf):
    """Encode and decode a leaf; every array in it must come back with the same bits, dtype and shape, every byte used."""
    spec, data = leaves.encode(leaf, Hints())
    assert leaves.parse_spec(spec.text) == spec
    reader = Reader(data)
    back = leaves.decode(reader, spec, 1 << 20, Hints())
    assert reader.left == 0
    assert sum(reader.bytes.values()) == len(data)
    assert jax.tree.structure(back) == jax.tree.structure(leaf)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(leaf), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


@quick
@given(shape=SHAPES, dtype=st.sampled_from(DTYPES), kind=SPREADS, seed=SEEDS)
def test_arrays_of_any_bits(shape, dtype, kind, seed):
    dtype, rng = arrays.dtype_of(dtype), np.random.default_rng(seed)
    if dtype.name == "bool":
        check_leaf(spread(rng, kind, 2, shape).astype(bool))
        return
    bits = spread(rng, kind, 256, (*shape, dtype.itemsize)).astype(np.uint8)
    check_leaf(jnp.asarray(np.ascontiguousarray(bits).reshape(-1).view(dtype).reshape(shape)))


@quick
@given(shape=SHAPES, bits=st.integers(1, 8), kind=SPREADS, seed=SEEDS, dtype=st.sampled_from(DTYPES[:3]))
def test_codebooks(shape, bits, kind, seed, dtype):
    rng = np.random.default_rng(seed)
    entries = rng.integers(1, 2**bits) if bits > 1 else 1
    codes = spread(rng, kind, entries + 1, shape).astype(np.uint8)
    # NaN payloads too: a table of any bits.
    table = rng.integers(0, 2**32, entries, dtype=np.uint32).view(np.float32)
    check_leaf(CodebookArray(packed(codes, bits), jnp.asarray(table), bits, shape, dtype))


@quick
@given(shape=SHAPES, bits=st.integers(2, 8), kind=SPREADS, seed=SEEDS, symmetric=st.booleans(), data=st.data())
def test_quantized(shape, bits, kind, seed, symmetric, data):
    rng = np.random.default_rng(seed)
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1)) if shape else None
    fmt = Uniform(bits=bits, symmetric=symmetric, channel_axis=axis)
    scales = [1] * len(shape)
    if axis is not None:
        scales[axis] = shape[axis]
    low, high = fmt.q_range
    codes = spread(rng, kind, high - low + 1, shape)
    scale = jnp.asarray(rng.normal(size=scales).astype(np.float32))
    zero = jnp.asarray(np.zeros(scales, np.int32) if symmetric else rng.integers(low, high + 1, scales).astype(np.int32))
    check_leaf(QArray(packed(codes, bits), scale, zero, fmt, shape, "float32"))


GRANULAR = st.sampled_from([None, 1, 3, 32])
LARGE = {
    "uniform": lambda size, axis: Uniform(4, True, None, size, group_axis=axis, scale_dtype="float16"),
    "affine": lambda size, axis: Uniform(3, False, None, size, group_axis=axis, scale_dtype="bfloat16"),
    "unsigned": lambda size, axis: Uniform(8, True, None, size, group_axis=axis, signed=False),
    "signed": lambda size, axis: Uniform(5, False, None, size, group_axis=axis, signed=True),
    "int16": lambda size, axis: Uniform(16, True, None, size, group_axis=axis),
    "uint16": lambda size, axis: Uniform(16, False, None, size, group_axis=axis),
    "binary": lambda size, axis: Binary(group_size=size, group_axis=axis, scale_dtype="float16"),
    "ternary": lambda size, axis: Ternary(group_size=size, group_axis=axis),
    "e4m3": lambda size, axis: Float8("float8_e4m3fn", None, size, group_axis=axis),
    "e5m2": lambda size, axis: Float8("float8_e5m2", None, size, group_axis=axis, scale_dtype="bfloat16"),
    "nf4": lambda size, axis: NormalFloat4(group_size=size or 64, group_axis=axis, scale_dtype="float16"),
    "mxfp4": lambda size, axis: mxfp4(group_axis=axis),
    "mxfp8": lambda size, axis: mxfp8("float8_e5m2", group_axis=axis),
}


@quick
@given(shape=SHAPES, size=GRANULAR, name=st.sampled_from(sorted(LARGE)), kind=SPREADS, seed=SEEDS, data=st.data())
def test_every_number_format(shape, size, name, kind, seed, data):
    size = size if shape else None
    axis = data.draw(st.integers(-len(shape), len(shape) - 1)) if size else None
    fmt, rng = LARGE[name](size, axis), np.random.default_rng(seed)
    assume(layout.problem(shape, fmt) is None)
    scales = fmt.scale_shape(shape)
    codes = spread(rng, kind, 2**fmt.bits - 1, shape)
    scale = jnp.asarray(np.exp2(rng.integers(-20, 16, scales)).astype(arrays.dtype_of(fmt.scale_dtype)))
    zero = np.zeros((1,) * len(shape), np.int32)
    if not fmt.symmetric or rng.random() < 0.2:  # zero points where none are needed come back, too
        zero = np.asarray(rng.integers(*fmt.q_range, scales) if not fmt.symmetric else np.zeros(scales), np.int16)
    check_leaf(QArray(packed(codes, fmt.bits), scale, jnp.asarray(zero), fmt, shape, "bfloat16"))


@pytest.mark.parametrize("name", sorted(LARGE))
def test_what_is_quantized_is_loaded_bit_for_bit_and_counted(name):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
    leaf = jax.jit(quantize, static_argnums=1)(x, LARGE[name](3, 0))
    check_leaf(leaf)
    spec, data = leaves.encode(leaf, Hints())
    reader = Reader(data)
    back = leaves.decode(reader, spec, 1 << 20, Hints())
    dense = np.asarray(leaf.unpack())
    np.testing.assert_array_equal(back.dense(), dense)
    assert reader.bytes["scales"] > 0
    found = figures(leaf)
    extra = leaf.scale.nbytes + (0 if leaf.format.symmetric else leaf.zero_point.nbytes)
    assert found.packed_bytes <= 35 * leaf.format.bits / 8 + extra
    assert found.nonzeros == np.count_nonzero(dense)


@pytest.mark.parametrize(
    "text",
    [
        "g 3,4",  # no numbers
        "g9,99,0,99,0 3,4",  # no such format
        "g-1,99,0,99,0 3,4",
        "g0,99,0,99,0,9,1,1 3,4",  # 9 bits
        "g0,99,0,99,0,1,1,1 3,4",
        "g0,99,0,99,9,4,1,1 3,4",  # no such scales
        "g0,99,0,99,3,4,1,1 3,4",  # scales of another format
        "g0,99,-2,99,0,4,1,1 3,4",  # groups of -2
        "g0,99,0,1,0,4,1,1 3,4",  # an axis of groups without groups
        "g0,99,0,99,0,4,1 3,4",  # a number too few
        "g3,99,0,99,0,6 3,4",  # fp8 of 4 bits
        "g5,99,0,99,3,6 3,4",  # no block
    ],
)
def test_texts_of_formats_that_there_are_not(text):
    with pytest.raises(ArtifactError, match=r"describe no number format|does not describe a leaf"):
        leaves.parse_spec(text)


@pytest.mark.parametrize(
    "change",
    [
        {"numbers": (0, 99, 5, 99, 1, 4, 1, 1)},  # a group longer than its axis
        {"numbers": (0, 99, 2, 1, 1, 4, 1, 1)},  # along the other axis
        {"numbers": (0, 99, 2, 7, 1, 4, 1, 1)},  # along an axis that is not there
        {"numbers": (0, 99, 2, 0, 0, 4, 1, 1)},  # of another dtype
        {"shape": (5, 6)},
        {"shape": ()},
    ],
)
def test_scales_that_do_not_fit(change):
    scale = jnp.ones((2, 6), jnp.float16)
    fmt = Uniform(4, group_size=2, group_axis=0, scale_dtype="float16")
    leaf = QArray(jnp.zeros(12, jnp.uint8), scale, jnp.zeros((1, 1), jnp.int32), fmt, (4, 6), "float32")
    spec, data = leaves.encode(leaf, Hints())
    with pytest.raises(ArtifactError, match="scales of shapes"):
        leaves.decode(Reader(data), spec._replace(**change), 1 << 20, Hints())


def test_a_format_of_another_package_is_refused():
    class Mine(Ternary):
        pass

    with pytest.raises(ArtifactError, match=r"Mine.*cannot be stored by this version; unpack them first"):
        leaves.encode(QArray(jnp.zeros(1, jnp.uint8), jnp.ones(1), jnp.zeros(1, jnp.int32), Mine(), (4,), "float32"), Hints())


@quick
@given(shape=SHAPES, kind=SPREADS, seed=SEEDS, dtype=st.sampled_from(DTYPES[:3]))
def test_sparse(shape, kind, seed, dtype):
    rng = np.random.default_rng(seed)
    array = np.where(rng.random(shape) < 0.3, spread(rng, kind, 5, shape) - 2.0, rng.choice([0.0, -0.0, np.nan]))
    array = array.astype(arrays.dtype_of(dtype))
    kept = (arrays.patterns(array) != 0).reshape(-1)
    check_leaf(Sparse(jnp.asarray(array.reshape(-1)[kept]), packed(kept, 1), shape, dtype))


def test_random_keys_and_a_large_tensor_with_structure():
    check_leaf(jax.random.key_data(jax.random.key(3)))
    spec, data = leaves.encode(jax.random.split(jax.random.key(3), 4), Hints())
    back = leaves.decode(Reader(data), spec, 1 << 20, Hints())
    assert (jax.random.key_data(back) == jax.random.key_data(jax.random.split(jax.random.key(3), 4))).all()
    rng = np.random.default_rng(0)
    codes = np.where(rng.random((300, 200)) < rng.random((300, 1)) * 0.3, rng.integers(1, 16, (300, 200)), 0)
    check_leaf(CodebookArray(packed(codes, 4), jnp.arange(15.0), 4, (300, 200), "float32"))


@pytest.mark.parametrize("entries", [np.linspace(-1, 1, 15), np.arange(15) * 0.25, np.full(15, 0.1)])
def test_tables_of_values_are_narrowed_only_where_that_is_exact(entries):
    check_leaf(jnp.asarray(entries, jnp.float32))
