"""Packed leaves run natively: equal to the unpacked model, nothing unpacked unless said."""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.coding.bit_packing import pack_bits
from lepton_jax.core.packed import is_packed, unpack
from lepton_jax.core.paths import flatten, replace
from lepton_jax.formats import Uniform
from lepton_jax.leaves.block_sparse import BlockSparse
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.quantize import quantize
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.native.interpreter import UnpackedWarning, packed, unpacked

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from models_for_graph import MODELS


def low_rank(w, rank=2):
    u, s, vt = np.linalg.svd(np.asarray(w, np.float64).reshape(-1, w.shape[-1]), full_matrices=False)
    return LowRank(jnp.float32(u[:, :rank] * s[:rank]), jnp.float32(vt[:rank]), w.shape)


def block_sparse(w, block=(2, 2)):
    rng = np.random.default_rng(0)
    flat = np.array(w).reshape(-1, w.shape[-1])
    for i in range(0, flat.shape[0], block[0]):
        for j in range(0, flat.shape[1], block[1]):
            flat[i : i + block[0], j : j + block[1]] *= rng.random() < 0.5
    return BlockSparse.from_dense(jnp.asarray(flat.reshape(w.shape)), block)


KINDS = {
    "low rank": low_rank,
    "int8": lambda w: quantize(w, Uniform(bits=8)),
    "int4 channels": lambda w: quantize(w, Uniform(bits=4, channel_axis=-1)),
    "affine": lambda w: quantize(w, Uniform(bits=8, symmetric=False, channel_axis=-1)),
    "block sparse": block_sparse,
    "low rank of int8": lambda w: LowRank(
        quantize(low_rank(w).u, Uniform(channel_axis=1)), quantize(low_rank(w).v, Uniform(channel_axis=1)), w.shape
    ),
}


def pack_all(variables, kind, choose=lambda path, leaf: leaf.ndim >= 2):
    new = {path: KINDS[kind](leaf) for path, leaf in flatten(variables).items() if choose(path, leaf)}
    return replace(variables, new)


def check(apply, variables, *inputs, rtol=1e-5):
    """Native equals unpacked, compiled; return what was unpacked (an unexpected unpacking is a warning, so an error)."""
    expected = np.asarray(jax.jit(apply)(unpack(variables), *inputs))
    out = jax.jit(packed(apply))(variables, *inputs)
    assert out.dtype == expected.dtype
    np.testing.assert_allclose(out, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


W = jax.random.normal(jax.random.key(0), (6, 5))
X = jax.random.normal(jax.random.key(1), (3, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "apply",
    [
        lambda v, x: x @ v["w"],
        lambda v, x: (v["w"].T @ x.T).T,
        lambda v, x: jnp.einsum("mn,bm->bn", v["w"], x),
    ],
    ids=["right", "transposed", "left"],
)
def test_dots(kind, apply):
    if kind == "block sparse" and "T" in apply.__code__.co_names:
        # It has no transpose: unpacked there, and it is said.
        with pytest.warns(UnpackedWarning, match="w .* at transpose"):
            check(apply, {"w": KINDS[kind](W)}, X)
    else:
        check(apply, {"w": KINDS[kind](W)}, X)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_more_axes(kind):
    """A kernel (heads, dim, out) summed over both of its first axes."""
    w = jax.random.normal(jax.random.key(2), (2, 3, 4))
    check(lambda v, x: jnp.einsum("bhd,hdo->bo", x, v["w"]), {"w": KINDS[kind](w)}, X.reshape(3, 2, 3))


@pytest.mark.parametrize("kind", ["low rank", "int8", "int4 channels", "affine", "block sparse"])
def test_convolutions(kind):
    model = nn.Sequential([nn.Conv(4, (3, 3), strides=2), nn.relu, nn.Conv(6, (2, 3), padding="VALID", kernel_dilation=2)])
    x = jax.random.normal(jax.random.key(3), (2, 13, 13, 3))
    variables = jax.jit(model.init)(jax.random.key(4), x)
    check(model.apply, pack_all(variables, kind, lambda path, leaf: leaf.ndim == 4), x)


@pytest.mark.parametrize("kind", ["int8", "int4 channels"])
def test_grouped_convolution(kind):
    model = nn.Conv(4, (3,), feature_group_count=2)
    x = jax.random.normal(jax.random.key(3), (2, 7, 4))
    check(model.apply, pack_all(jax.jit(model.init)(jax.random.key(4), x), kind, lambda path, leaf: leaf.ndim == 3), x)


@pytest.mark.parametrize("kind", ["low rank", "int8", "int4 channels", "affine", "block sparse"])
def test_gathers(kind):
    check(lambda v, i: jnp.take(v["w"], i, axis=0), {"w": KINDS[kind](W)}, jnp.array([[0, 5], [2, 2]]))
    out = jax.jit(packed(lambda v, i: jnp.take(v["w"], i, axis=0)))({"w": KINDS[kind](W)}, jnp.array([1, 6]))
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


def test_rows_with_scales_of_their_own():
    check(lambda v, i: v["w"][i], {"w": quantize(W, Uniform(channel_axis=0))}, jnp.array([4, 0]))


@pytest.mark.parametrize("kind", ["int4 channels", "affine"])
def test_whole_transformer_inside_scan_and_remat(kind):
    apply, variables, inputs, _ = MODELS["transformer eval"]
    kernels = lambda path, leaf: path.endswith(("kernel", "embedding"))  # noqa: E731
    check(apply, pack_all(variables, kind, kernels), *inputs, rtol=1e-4)


def test_stacked_factors_and_blocks_inside_scan():
    """Layers scanned over: every layer has factors, or blocks, of its own."""
    keys = jax.random.split(jax.random.key(5), 3)
    u, v = jax.random.normal(keys[0], (4, 6, 2)), jax.random.normal(keys[1], (4, 2, 6))
    dense = jnp.where(jax.random.bernoulli(keys[2], 0.5, (4, 3, 1, 3, 1)), jnp.ones((4, 3, 2, 3, 2)), 0).reshape(4, 6, 6)
    apply = lambda v, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), c.sum()), x, v["w"])[0]  # noqa: E731
    check(apply, {"w": LowRank(u, v, (4, 6, 6))}, X)
    check(apply, {"w": LowRank(u.reshape(24, 2), v[0], (4, 6, 6))}, X)
    check(apply, {"w": BlockSparse.from_dense(dense * (u @ v), (2, 2), stacked=1)}, X)


def test_a_constant_of_a_scan_and_of_a_cond():
    apply = lambda v, x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ v["w"]), None), x, None, length=3)[0]  # noqa: E731
    square = jax.random.normal(jax.random.key(6), (6, 6))
    for kind in ("low rank", "int8", "block sparse"):
        check(apply, {"w": KINDS[kind](square)}, X)
    check(lambda v, x: jax.lax.cond(x[0, 0] > 0, lambda a: a @ v["w"], lambda a: -a @ v["w"], x), {"w": low_rank(W)}, X)


@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_on_both_sides_accumulate_in_int32(symmetric):
    fmt = Uniform(symmetric=symmetric)
    x, w = quantize(X, fmt), quantize(W, Uniform(symmetric=symmetric, channel_axis=1))
    run = jax.jit(packed(lambda v, x: x @ v["w"]))
    text = run.lower({"w": w}, x).as_text()
    assert "xi32>" in text.split("dot_general")[1].split("\n")[0]
    exact = (np.int64(x.qvalue) - np.int64(x.zero_point)) @ (np.int64(w.qvalue) - np.int64(w.zero_point))
    np.testing.assert_allclose(run({"w": w}, x), exact * np.float64(x.scale) * np.float64(w.scale), rtol=1e-6)


def test_integer_convolution():
    image = quantize(jax.random.normal(jax.random.key(7), (1, 5, 5, 2)), Uniform(symmetric=False))
    kernel = quantize(jax.random.normal(jax.random.key(8), (3, 3, 2, 4)), Uniform(channel_axis=3))
    apply = lambda v, x: jax.lax.conv_general_dilated(x, v["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))  # noqa: E731
    run = jax.jit(packed(apply))
    # On CPU it is a dot of patches.
    text = run.trace({"w": kernel}, image).lower(lowering_platforms=("tpu",)).as_text()
    assert "xi32>" in text.split("stablehlo.convolution")[1].split("\n")[0]
    np.testing.assert_allclose(run({"w": kernel}, image), apply({"w": kernel.unpack()}, image.unpack()), rtol=1e-4, atol=1e-4)


def test_low_rank_never_forms_the_product():
    big = LowRank(jnp.ones((64, 2)), jnp.ones((2, 48)), (64, 48))
    text = jax.jit(packed(lambda v, x: x @ v["w"])).lower({"w": big}, jnp.ones((1, 64))).as_text()
    assert "64x48" not in text


def test_what_cannot_run_is_reported():
    codes = CodebookArray(pack_bits(jnp.arange(6, dtype=jnp.uint8), 3), jnp.arange(1.0, 7.0), 3, (6, 1), "float32")
    variables = {"a": low_rank(W), "b": quantize(W, Uniform()), "c": Sparse.from_dense(W * (W > 0)), "d": codes}
    apply = lambda v, x: x @ (jnp.sin(v["a"]) + v["b"] * v["d"] - v["c"])  # noqa: E731
    names = [str(one) for one in unpacked(apply, variables, X)]
    assert names == ["a (LowRank) at sin", "b (QArray) at mul", "d (CodebookArray) at mul", "c (Sparse) at sub"]
    with pytest.warns(UnpackedWarning, match=r"4 packed leaves were unpacked .* a \(LowRank\) at sin; b \(QArray\) at mul"):
        out = packed(apply)(variables, X)
    np.testing.assert_allclose(out, apply(unpack(variables), X), rtol=1e-5, atol=1e-5)
    assert unpacked(lambda v, x: x @ v["a"], variables, X) == ()


def test_gradients_reach_the_factors():
    leaf = low_rank(W)
    loss = lambda leaf: packed(lambda v, x: x @ v)(leaf, X).sum()  # noqa: E731
    grads = jax.jit(jax.grad(loss))(leaf)
    np.testing.assert_allclose(grads.u, np.outer(X.sum(0), leaf.v.sum(1)), rtol=1e-4, atol=1e-5)
    assert jax.tree.leaves(grads.v)[0].shape == leaf.v.shape


def test_dense_variables_pass_unchanged():
    apply, variables, inputs, _ = MODELS["convnet eval"]
    assert not any(map(is_packed, jax.tree.leaves(variables)))
    np.testing.assert_array_equal(jax.jit(packed(apply))(variables, *inputs), jax.jit(apply)(variables, *inputs))


@pytest.mark.parametrize(
    ("shape", "block", "stacked"), [((5, 7), (2, 3), 0), ((3, 3, 2, 5), (4, 2), 0), ((2, 4, 6), (2, 2), 1)]
)
def test_block_sparse_holds_every_value(shape, block, stacked):
    rng = np.random.default_rng(1)
    w = np.where(rng.random(shape) < 0.2, rng.standard_normal(shape), 0).astype(np.float32)
    leaf = BlockSparse.from_dense(jnp.asarray(w), block, stacked)
    assert leaf.shape == shape
    np.testing.assert_array_equal(leaf.unpack(), w)
    empty = BlockSparse.from_dense(jnp.zeros(shape), block, stacked)
    np.testing.assert_array_equal(empty.unpack(), np.zeros(shape))


def test_a_free_slot_reads_no_infinity():
    leaf = BlockSparse.from_dense(jnp.array([[1.0, 1.0], [1.0, 0.0]]), (1, 1))
    out = packed(lambda v, x: x @ v)(leaf, jnp.array([[1.0, jnp.inf]]))
    assert out.tolist() == [[np.inf, 1.0]]


def test_block_sparse_refuses_a_vector():
    with pytest.raises(ValueError, match=r"at least 2 axes; got block=\(2, 2\) and shape \(4,\)"):
        BlockSparse.from_dense(jnp.ones(4), (2, 2))
