"""decode(encode(x)) is x, bit for bit, for every format that a file holds."""

import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from lepton_jax.artifact import arrays, leaves
from lepton_jax.artifact.bit_packing import pack_codes
from lepton_jax.artifact.sparse_index import Hints
from lepton_jax.artifact.streams import Reader
from lepton_jax.packed import CodebookArray, Sparse
from lepton_jax.quantization.numerics import QArray, Uniform

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
    return jnp.asarray(pack_codes(codes.reshape(-1), bits))


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
