"""Codes run as such: integers with integers in int32, codes with floats cast or decoded where they are used."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.coding.bit_packing import pack_bits
from lepton_jax.core.packed import unpack
from lepton_jax.formats import MX, Binary, Float8, NormalFloat4, Ternary, mxfp4, mxfp8
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.leaves.ready import ready
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.native.interpreter import packed, unpacked
from lepton_jax.quantization import Uniform, quantize


def values(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def exact(leaf):
    """What a quantized array stands for, in float64: ``(q - z) * s`` without a rounding."""
    zero = np.asarray(leaf.zero_point, np.int64)
    scale = np.asarray(leaf.scale, np.float64)
    for axis, (size, length) in enumerate(zip(scale.shape, leaf.shape)):
        if size not in (1, length):
            index = np.arange(length) // leaf.format.group_size
            scale, zero = (part if part.shape[axis] == 1 else np.take(part, index, axis) for part in (scale, zero))
    return (np.asarray(leaf.qvalue, np.int64) - zero) * scale


SYMMETRIC, AFFINE, UNSIGNED = Uniform(8), Uniform(8, symmetric=False), Uniform(8, signed=False)
DOTS = {
    # name: (einsum, shape and format of the left side, shape and format of the right side)
    "a scale each": ("ab,bc->ac", (3, 70), SYMMETRIC, (70, 5), SYMMETRIC),
    "by column": ("ab,bc->ac", (3, 70), SYMMETRIC, (70, 5), Uniform(4, channel_axis=1)),
    "by row and column": ("ab,bc->ac", (3, 70), Uniform(channel_axis=0), (70, 5), Uniform(channel_axis=-1)),
    "affine": ("ab,bc->ac", (3, 70), AFFINE, (70, 5), SYMMETRIC),
    "both affine": ("ab,bc->ac", (3, 70), Uniform(8, False, 0), (70, 5), Uniform(8, False, 1)),
    "signed affine": ("ab,bc->ac", (3, 70), Uniform(8, False, signed=True), (70, 5), Uniform(4, False, 1, signed=True)),
    "unsigned": ("ab,bc->ac", (3, 70), UNSIGNED, (70, 5), Uniform(5, channel_axis=1)),
    "transposed weight": ("ab,cb->ac", (3, 70), AFFINE, (5, 70), Uniform(channel_axis=0)),
    "weight first": ("cb,ab->ca", (5, 70), Uniform(channel_axis=0), (3, 70), AFFINE),
    "heads": ("abhd,hdo->abo", (2, 3, 4, 5), AFFINE, (4, 5, 6), Uniform(channel_axis=2)),
    "free heads": ("abi,ihd->abhd", (2, 3, 7), SYMMETRIC, (7, 4, 5), Uniform(4, channel_axis=2)),
    "batches": ("bij,bjk->bik", (2, 3, 7), AFFINE, (2, 7, 4), Uniform(8, False, 0)),
    "batches of one scale": ("bhij,bhkj->bhik", (2, 2, 3, 7), Uniform(channel_axis=1), (2, 2, 4, 7), Uniform(channel_axis=0)),
    "groups": ("ab,bc->ac", (3, 192), SYMMETRIC, (192, 5), Uniform(4, group_size=64)),
    "short groups on both": ("ab,bc->ac", (3, 150), Uniform(group_size=64, group_axis=1), (150, 5), Uniform(4, group_size=64)),
    "affine groups": ("ab,bc->ac", (3, 128), AFFINE, (128, 5), Uniform(4, False, group_size=64)),
    "groups of columns": ("ab,bc->ac", (3, 70), SYMMETRIC, (70, 128), Uniform(4, group_size=64, group_axis=1)),
}


def int_dot_types(text):
    """(operand, operand, result) types of every dot and convolution in a lowered module."""
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    return [re.findall(r"tensor<(?:\d+x)*(\w+)>", line.rsplit(" : ", 1)[1]) for line in lines]


def quantized_pairs(cases):
    rng = np.random.default_rng(0)
    floats = {
        n: (rng.normal(0.5, 1, a).astype(np.float32), rng.normal(-0.2, 1, b).astype(np.float32))
        for n, (a, _, b, _) in cases.items()
    }
    return jax.jit(lambda v: {n: (quantize(v[n][0], f), quantize(v[n][1], g)) for n, (_, f, _, g) in cases.items()})(floats)


@functools.cache
def results_of_dots():
    """All of them in one program: compiling is what costs."""
    sides = quantized_pairs({n: rest for n, (_, *rest) in DOTS.items()})
    run = jax.jit(packed(lambda v: {n: jnp.einsum(DOTS[n][0], *pair) for n, pair in v.items()}))
    return sides, run(sides), run.lower(sides).as_text()


@pytest.mark.parametrize("name", DOTS)
def test_integers_with_integers_equal_the_exact_dot(name):
    sides, out, _ = results_of_dots()
    expected = np.einsum(DOTS[name][0], *map(exact, sides[name]))
    np.testing.assert_allclose(out[name], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    assert out[name].dtype == jnp.float32


def test_dots_are_of_int8_and_sum_in_int32():
    _, _, text = results_of_dots()
    found = int_dot_types(text)
    assert len(found) == len(DOTS)
    # Groups of columns have a scale for each index of the summed axis.
    assert sorted(found) == [["f32"] * 3, *[["i8", "i8", "i32"]] * (len(DOTS) - 1)]


def test_smaller_groups_are_decoded():
    """A dot of 16 codes costs more than it saves; values as exact as floats are."""
    x, w = quantize(values(1, 3, 48), SYMMETRIC), quantize(values(2, 48, 5), Uniform(4, group_size=16))
    run = jax.jit(packed(lambda v, x: x @ v))
    assert int_dot_types(run.lower(w, x).as_text()) == [["f32"] * 3]
    expected = exact(x) @ exact(w)
    np.testing.assert_allclose(run(w, x), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_bit_for_bit_where_the_accumulator_fits_float32():
    """Scales that are powers of two, sums below 2**24: simulated and integer execution are the same numbers."""
    rng = np.random.default_rng(3)
    fmt, kernel = Uniform(8, False), Uniform(8, channel_axis=1)
    x = QArray.from_qvalue(
        jnp.asarray(rng.integers(0, 256, (4, 500)), jnp.uint8),
        jnp.full((1, 1), 0.25),
        jnp.full((1, 1), 100, jnp.int32),
        fmt,
        "float32",
    )
    scale = jnp.asarray(2.0 ** rng.integers(-6, 3, (1, 6)), jnp.float32)
    w = QArray.from_qvalue(
        jnp.asarray(rng.integers(-127, 128, (500, 6)), jnp.int8), scale, jnp.zeros((1, 1), jnp.int32), kernel, "float32"
    )
    out = jax.jit(packed(lambda v, x: x @ v))(w, x)
    np.testing.assert_array_equal(out, jax.jit(jnp.matmul)(x.unpack(), w.unpack()))


NHWC = ("NHWC", "HWIO", "NHWC")
CONVS = {
    # name: (settings, shape and format of the images, shape and format of the kernel)
    "symmetric": ({}, (2, 6, 5, 4), SYMMETRIC, (3, 3, 4, 6), Uniform(channel_axis=3)),
    "affine images": ({}, (2, 6, 5, 4), AFFINE, (3, 2, 4, 6), Uniform(4, channel_axis=3)),
    "unsigned images": ({}, (2, 6, 5, 4), UNSIGNED, (3, 3, 4, 6), Uniform(channel_axis=3)),
    "an example's own scale": ({}, (2, 6, 5, 4), Uniform(channel_axis=0), (3, 3, 4, 6), SYMMETRIC),
    "an example's own zero": ({}, (2, 6, 5, 4), Uniform(8, False, 0), (3, 3, 4, 6), SYMMETRIC),
    "affine kernel": ({}, (2, 6, 5, 4), AFFINE, (3, 3, 4, 6), Uniform(8, False, 3)),
    "strides and dilation": (
        {"window_strides": (2, 1), "rhs_dilation": (1, 2), "padding": ((2, 1), (0, 3))},
        *((2, 9, 8, 4), AFFINE, (3, 2, 4, 6), Uniform(channel_axis=3)),
    ),
    "transposed": (
        {"lhs_dilation": (2, 2), "padding": ((2, 2), (1, 2))},
        (2, 4, 5, 4),
        AFFINE,
        (3, 3, 4, 6),
        Uniform(channel_axis=3),
    ),
    "cropped": ({"padding": ((-1, 1), (1, -1))}, (2, 6, 5, 4), AFFINE, (3, 3, 4, 6), Uniform(channel_axis=3)),
    "depthwise": ({"feature_group_count": 4}, (2, 6, 5, 4), AFFINE, (3, 3, 1, 8), Uniform(channel_axis=3)),
    "channels first": (
        {"dimension_numbers": ("NCHW", "OIHW", "NHWC")},
        (2, 4, 6, 5),
        AFFINE,
        (6, 4, 3, 3),
        Uniform(channel_axis=0),
    ),
}


@functools.cache
def results_of_convs():
    sides = quantized_pairs({n: rest for n, (_, *rest) in CONVS.items()})

    def apply(given):
        base = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC}
        return {n: jax.lax.conv_general_dilated(*pair, **{**base, **CONVS[n][0]}) for n, pair in given.items()}

    run = jax.jit(packed(apply))
    with jax.enable_x64(True):
        doubles = {n: tuple(jnp.asarray(exact(side)) for side in pair) for n, pair in sides.items()}
        expected = jax.tree.map(np.asarray, jax.jit(apply)(doubles))
    return run(sides), expected, run.lower(sides).as_text()


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_of_integers_equal_the_exact_ones(name):
    out, expected, _ = results_of_convs()
    assert expected[name].dtype == np.float64
    np.testing.assert_allclose(out[name], expected[name], rtol=1e-6, atol=1e-6 * np.abs(expected[name]).max())


def test_convolutions_are_of_int8_unless_the_kernel_or_each_example_has_zero_points():
    found = int_dot_types(results_of_convs()[2])
    narrow = [types == ["i8", "i8", "i32"] for types in found]
    assert all(types[2] == "i32" for types in found)
    assert len(found) - sum(narrow) == 2


def test_compiled_programs_multiply_int8_into_int32():
    """What XLA made of it: s8 operands, s32 results; nothing was widened first."""
    x, w = quantize(values(1, 4, 32), SYMMETRIC), quantize(values(2, 32, 8), Uniform(channel_axis=1))
    images, kernel = quantize(values(3, 2, 6, 6, 8), SYMMETRIC), quantize(values(4, 3, 3, 8, 8), Uniform(channel_axis=3))

    def apply(v):
        y = jax.lax.conv_general_dilated(v["images"], v["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)
        return v["x"] @ v["w"], y

    variables = {"x": x, "w": w, "images": images, "kernel": kernel}
    traced = jax.jit(packed(apply)).trace(variables)
    found = compiled_products(traced.lower().compile().as_text())
    # On CPU the convolution is one dot of patches, or one for each row of the kernel, by its shape.
    assert len(found) in (2, 1 + kernel.shape[0])
    assert found == [("s32", ["s8", "s8"])] * len(found)
    assert int_dot_types(traced.lower(lowering_platforms=("tpu",)).as_text()) == [["i8", "i8", "i32"]] * 2
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()


def compiled_products(text):
    """(type, types of the operands) of every dot and convolution in a compiled program."""
    found, types = [], {}
    for line in text.splitlines():
        if line.endswith("{"):
            types = {}
        if match := re.match(r"\s*(?:ROOT )?(%\S+) = (\w+)\[", line):
            types[match[1]] = match[2]
            if product := re.search(r" (?:dot|convolution)\(([^)]*)\)", line):
                operands = [name.split()[-1] for name in product[1].split(", ")]
                found.append((match[2], [types[name] for name in operands]))
    return found


def codebook(w):
    codes = jnp.asarray(np.random.default_rng(5).integers(0, 8, w.shape), jnp.uint8)
    return CodebookArray(pack_bits(codes, 3), jnp.linspace(-1.0, 1.0, 7), 3, w.shape, "float32")


def by_format(fmt):
    return lambda w: quantize(w, fmt)


STORED = {
    "int8": by_format(Uniform(channel_axis=-1)),
    "int4 groups": by_format(Uniform(4, group_size=3)),
    "int3 affine groups": by_format(Uniform(3, False, group_size=4, scale_dtype="float16")),
    "int16": by_format(Uniform(16, channel_axis=-1)),
    "groups of the last axis": by_format(Uniform(4, group_size=2, group_axis=-1)),
    "binary": by_format(Binary(channel_axis=-1)),
    "ternary": by_format(Ternary(group_size=2)),
    "fp8": by_format(Float8(channel_axis=-1)),
    "nf4": by_format(NormalFloat4(group_size=4)),
    "mxfp4": by_format(mxfp4()),
    "mxfp8": by_format(MX("float8_e5m2", group_size=2)),
    "codebook": codebook,
    "sparse": lambda w: Sparse.from_dense(jnp.where(w > 0.3, w, 0)),
}
USES = {
    "dot": lambda w, x: x @ w[0],
    "transposed": lambda w, x: (w[1].T @ x.T).T,
    "reshaped": lambda w, x: jnp.einsum("bhi,hio->bo", x.reshape(3, 3, 2), w[2].reshape(3, 2, 5)),
    "merged": lambda w, x: (x[:, :1] @ w.reshape(1, -1), x @ w.transpose(1, 0, 2).reshape(6, 15)),
    "cast": lambda w, x: (x.astype(jnp.bfloat16) @ w[0].astype(jnp.bfloat16)).astype(jnp.float32),
    "convolved": lambda w, x: jax.lax.conv(x.reshape(1, 3, 6)[:, :, :, None], w.reshape(5, 3, 6, 1), (1, 1), "SAME"),
    "scanned": lambda w, x: jax.lax.scan(lambda c, layer: (jnp.tanh(c @ layer @ layer.T), c.sum()), x, w),
    "a constant of a scan": lambda w, x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w[1] @ w[0].T), None), x, None, length=2)[0],
}


@pytest.mark.parametrize("kind", STORED)
def test_every_format_is_carried_to_its_operations(kind):
    """No warning (an error here) is given, and the values are those of the unpacked weights."""
    leaf, x = STORED[kind](values(6, 3, 6, 5)), values(7, 3, 6)

    def apply(w, x):
        return {name: use(w, x) for name, use in USES.items()}

    expected = jax.jit(apply)(unpack(leaf), x)
    for name, out in jax.jit(packed(apply))(leaf, x).items():
        tolerance = 0.03 if name == "cast" else 2e-5
        jax.tree.map(lambda a, b, t=tolerance: np.testing.assert_allclose(a, b, rtol=t, atol=t * 3), out, expected[name])


@pytest.mark.parametrize("kind", [name for name in STORED if name != "sparse"])
def test_rows_are_looked_up_and_then_decoded(kind):
    leaf, index = STORED[kind](values(8, 7, 4)), jnp.array([[0, 6], [3, 3]])
    out = jax.jit(packed(lambda w, i: (jnp.take(w, i, axis=0), w[i])))(leaf, index)
    for part in out:
        np.testing.assert_array_equal(part, unpack(leaf)[index])
    table = jax.make_jaxpr(packed(lambda w, i: jnp.take(w, i, axis=0)))(leaf, index)
    assert not any(v.aval.shape == (7, 4) and v.aval.dtype == jnp.float32 for eqn in table.eqns for v in eqn.outvars)


@pytest.mark.parametrize("kind", STORED)
def test_layers_of_a_scan_are_decoded_one_by_one(kind):
    """The program never holds all layers as floats, nor, where layers are whole bytes, as unpacked codes."""
    leaf, x = STORED[kind](values(9, 4, 8, 8)), values(10, 2, 8)
    apply = lambda w, x: jax.lax.scan(lambda c, layer: (jnp.tanh(c @ layer), None), x, w)[0]  # noqa: E731
    text = jax.jit(packed(apply)).lower(leaf, x).as_text()
    assert "4x8x8xf32" not in text
    if isinstance(leaf, QArray):
        assert "4x8x8xi8" not in text
        assert "4x8x8xui8" not in text
    assert unpacked(apply, leaf, x) == ()


def test_float8_with_float8_is_a_dot_of_float8():
    x, w = quantize(values(1, 3, 40), Float8()), quantize(values(2, 40, 5), Float8(channel_axis=1))
    run = jax.jit(packed(lambda v, x: x @ v))
    assert int_dot_types(run.lower(w, x).as_text()) == [["f8E4M3FN", "f8E4M3FN", "f32"]]
    expected = np.float64(x.unpack()) @ np.float64(w.unpack())
    np.testing.assert_allclose(run(w, x), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_codes_without_a_sign_fill_whole_bytes():
    """255 and 0, the ends of the range, on both sides."""
    codes = jnp.array([[0, 255, 255], [255, 0, 1]], jnp.uint8)
    one = jnp.ones((1, 1))
    x = QArray.from_qvalue(codes, one, jnp.zeros((1, 1), jnp.int32), UNSIGNED, "float32")
    w = QArray.from_qvalue(codes.T, one, jnp.full((1, 1), 255, jnp.int32), AFFINE, "float32")
    assert packed(lambda v, x: x @ v)(w, x).tolist() == (np.int64(codes) @ (np.int64(codes).T - 255)).tolist()


def test_a_simulated_operand_gives_the_derivative():
    """The value is that of integers, the derivatives those of a dot of what was simulated."""
    x, w = values(1, 4, 6), values(2, 6, 3)

    def coded(array, fmt):
        leaf = quantize(jax.lax.stop_gradient(array), fmt)
        return leaf, array + jax.lax.stop_gradient(leaf.unpack() - array)

    def loss(x, w):
        from lepton_jax.leaves.dots import dot

        sides = []
        for array, fmt in ((x, SYMMETRIC), (w, Uniform(channel_axis=1))):
            leaf, seen = coded(array, fmt)
            sides.append(Quantized(leaf.qvalue, leaf.scale, (), fmt, "float32", seen))
        params = {"dimension_numbers": (((1,), (0,)), ((), ())), "precision": None, "preferred_element_type": None}
        return jnp.sum(jnp.sin(dot(*sides, params)))

    def simulated(x, w):
        return jnp.sum(jnp.sin(coded(x, SYMMETRIC)[1] @ coded(w, Uniform(channel_axis=1))[1]))

    (value, grads), (other, expected) = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, w) for f in (loss, simulated))
    # A sum of twelve sines: it is rounded in proportion to them, however small it is itself.
    np.testing.assert_allclose(value, other, rtol=1e-6, atol=12 * np.finfo(np.float32).eps)
    for a, b in zip(grads, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fmt", [Uniform(8, channel_axis=1), Uniform(4, False, group_size=3), NormalFloat4(group_size=4)])
def test_codes_unpacked_once_run_as_packed_ones_do(fmt):
    w, x = quantize(values(1, 8, 5), fmt), values(2, 3, 8)
    once = ready({"w": w, "b": x})
    np.testing.assert_array_equal(unpack(once)["w"], w.unpack())
    assert once["b"] is x
    assert (once["w"].shape, once["w"].dtype) == (w.shape, w.dtype)
    run = jax.jit(packed(lambda v, x: x @ v["w"]))
    np.testing.assert_array_equal(run(once, x), run({"w": w}, x))


def test_stored_and_running_forms_agree():
    leaf = quantize(values(1, 3, 5), Uniform(3, channel_axis=1))
    stored = leaf.native("w")
    assert stored.shape == stored.opened().shape == (3, 5)
    np.testing.assert_array_equal(stored.dense(), leaf.unpack())
    np.testing.assert_array_equal(stored.opened().dense(), leaf.unpack())
    assert stored.layers(3) is not None
    assert mxfp8().is_integer is False
