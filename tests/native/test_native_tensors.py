"""Networks of tensors run part by part: equal to the dense tensor, which is never formed."""

import math
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core import paths
from lepton_jax.core.packed import unpack
from lepton_jax.graph.trace import trace
from lepton_jax.leaves.cp import CP
from lepton_jax.leaves.factors import Factors, dense_shape, sizes
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.separable import Separable
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.leaves.tensor_train import TensorTrain
from lepton_jax.leaves.tensor_train_matrix import TensorTrainMatrix
from lepton_jax.leaves.tucker import Tucker
from lepton_jax.native.interpreter import UnpackedWarning, packed, unpacked


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def kernels(h, w, c, n, stack=()):
    """One leaf of each kind, for kernels (h, w, c, n)."""

    def part(*shape):
        return draw(*stack, *shape)

    shape = (*stack, h, w, c, n)
    return {
        "separable": Separable(part(h, c, 3), part(w, 3, n), shape),
        "tucker": Tucker(part(c, 2), part(h, w, 2, 3), part(3, n), shape),
        "cp": CP((part(h, 4), part(w, 4), part(c, 4), part(n, 4)), shape),
        "train": TensorTrain((part(c, 2), part(2, h, 3), part(3, w, 4), part(4, n)), shape),
        "low rank": LowRank(part(h * w * c, 3), part(3, n), shape),
    }


def matrices(stack=()):
    """One leaf of each kind, for matrices (12, 10)."""

    def part(*shape):
        return draw(*stack, *shape)

    shape = (*stack, 12, 10)
    return {
        "tucker": Tucker(part(12, 2), part(2, 3), part(3, 10), shape),
        "cp": CP((part(12, 3), part(10, 3)), shape),
        "train": TensorTrain((part(12, 3), part(3, 10)), shape),
        "matrix train": TensorTrainMatrix((part(2, 5, 2), part(2, 3, 1, 3), part(3, 2, 2)), shape),
    }


SUMS = {  # written again, by hand, in float64
    Separable: "xcr,yrn->xycn",
    Tucker: "ca,xyab,bn->xycn",
    CP: "xr,yr,cr,nr->xycn",
    TensorTrain: "ci,ixj,jyk,kn->xycn",
    TensorTrainMatrix: "iuk,kjvl,lmw->ijmuvw",
    LowRank: "mr,rn->mn",
}


def reference(leaf):
    parts = [np.asarray(part, np.float64) for part in jax.tree.leaves(leaf)]
    return np.einsum(SUMS[type(leaf)], *parts).reshape(leaf.shape)


@pytest.mark.parametrize(
    "leaf", [*kernels(3, 2, 4, 5).values(), matrices()["matrix train"]], ids=lambda leaf: type(leaf).__name__
)
def test_the_dense_tensor(leaf) -> None:
    dense = leaf.unpack()
    assert (dense.shape, dense.dtype, leaf.dtype) == (leaf.shape, jnp.float32, jnp.float32)
    np.testing.assert_allclose(dense, reference(leaf), rtol=1e-5, atol=1e-5)
    if isinstance(leaf, Factors):
        assert dense_shape(leaf) == leaf.shape
        stacked = jax.tree.map(lambda part: jnp.stack([part, 2 * part]), leaf)
        object.__setattr__(stacked, "shape", (2, *leaf.shape))
        assert dense_shape(stacked) == stacked.shape
        count = len(jax.tree.leaves(leaf))
        np.testing.assert_allclose(stacked.unpack(), [reference(leaf), 2**count * reference(leaf)], rtol=1e-5, atol=1e-4)


def largest(apply, variables, *inputs):
    """Elements of the largest value in the graph that runs."""
    graph = trace(lambda leaves, *xs: packed(apply)(jax.tree.unflatten(jax.tree.structure(variables), leaves), *xs),
                  jax.tree.leaves(variables), *inputs)  # fmt: skip
    return max(math.prod(aval.shape) for eqn in graph.equations() for aval in eqn.out_avals)


def check(apply, variables, *inputs, rtol=1e-5):
    assert unpacked(apply, variables, *inputs) == ()
    expected = np.asarray(jax.jit(apply)(unpack(variables), *inputs))
    out = jax.jit(packed(apply))(variables, *inputs)
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(out, expected, rtol=rtol, atol=rtol * max(1, np.abs(expected).max()))


def convolve(layout=("NHWC", "HWIO", "NHWC"), **settings):
    settings = {"window_strides": (1, 1), "padding": "SAME"} | settings
    return lambda v, x: jax.lax.conv_general_dilated(x, v["w"], dimension_numbers=layout, **settings)


@pytest.mark.parametrize("kind", kernels(1, 1, 1, 1))
@pytest.mark.parametrize(
    "settings",
    [
        {"window_strides": (2, 3), "padding": ((2, 0), (1, 3)), "rhs_dilation": (2, 1)},
        {"padding": "VALID", "feature_group_count": 2, "rhs_dilation": (1, 2)},
        {"lhs_dilation": (2, 1), "window_strides": (1, 2), "padding": ((1, 1), (2, 0)), "feature_group_count": 4},
    ],
    ids=["strides", "groups", "transposed"],
)
def test_convolutions(kind: str, settings: dict) -> None:
    groups = settings.get("feature_group_count", 1)
    x = draw(2, 9, 8, 4)
    if kind == "low rank" and groups == 1 and "lhs_dilation" in settings:
        return
    check(convolve(**settings), {"w": kernels(3, 2, 4 // groups, 8)[kind]}, x, rtol=2e-5)


@pytest.mark.parametrize("kind", ["separable", "tucker", "cp", "train"])
def test_any_layout_of_images_and_kernels(kind: str) -> None:
    leaf, x = kernels(3, 2, 4, 8)[kind], draw(2, 4, 7, 6)

    def apply(v, x):
        kernel = jnp.transpose(v["w"], (3, 2, 0, 1))
        return jax.lax.conv_general_dilated(x, kernel, (1, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "CNHW"))

    check(apply, {"w": leaf}, x, rtol=2e-5)


def test_one_and_three_spatial_axes() -> None:
    one = Tucker(draw(4, 2), draw(3, 2, 3), draw(3, 5), (3, 4, 5))
    apply = lambda v, x: jax.lax.conv_general_dilated(x, v, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))  # noqa: E731
    check(apply, one, draw(2, 9, 4))
    three = CP(tuple(draw(n, 3) for n in (2, 3, 2, 4, 5)), (2, 3, 2, 4, 5))
    apply = lambda v, x: jax.lax.conv_general_dilated(  # noqa: E731
        x, v, (1, 2, 1), "SAME", dimension_numbers=("NHWDC", "HWDIO", "NHWDC")
    )
    check(apply, three, draw(1, 4, 5, 3, 4))


@pytest.mark.parametrize("kind", matrices())
@pytest.mark.parametrize(
    "apply",
    [
        lambda v, x: x @ v["w"],
        lambda v, x: (v["w"].T @ x.T).T,
        lambda v, x: jnp.einsum("mn,abm->anb", v["w"], x.reshape(3, 1, 12)),
        lambda v, x: x[:, :10] @ v["w"].T,
    ],
    ids=["right", "transposed", "left", "onto rows"],
)
def test_dots(kind: str, apply) -> None:
    check(apply, {"w": matrices()[kind]}, draw(3, 12))


@pytest.mark.parametrize("kind", matrices())
def test_look_ups(kind: str) -> None:
    variables, index = {"w": matrices()[kind]}, jnp.array([[0, 11], [5, 5]])
    check(lambda v, i: jnp.take(v["w"], i, axis=0), variables, index)
    check(lambda v, i: v["w"][i], variables, index)
    out = jax.jit(packed(lambda v, i: jnp.take(v["w"], i, axis=0)))(variables, jnp.array([1, 12]))
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


def test_attention_kernels_with_columns_of_two_axes() -> None:
    leaf = LowRank(draw(6, 3), draw(3, 8), (6, 2, 4))
    check(lambda v, x: jnp.einsum("bd,dhk->bhk", x, v["w"]), {"w": leaf}, draw(5, 6))
    check(lambda v, x: (x @ v["w"].reshape(6, 8)).sum(1), {"w": leaf}, draw(5, 6))
    stacked = LowRank(draw(3, 6, 2), draw(3, 2, 8), (3, 6, 2, 4))

    def apply(v, x):
        def layer(c, w):
            return jnp.tanh(jnp.einsum("bd,dhk->bhk", c, w).reshape(5, 8)[:, :6]), None

        return jax.lax.scan(layer, x, v["w"])[0]

    check(apply, {"w": stacked}, draw(5, 6))


@pytest.mark.parametrize("kind", ["tucker", "cp", "train", "matrix train"])
def test_scans_take_a_stack_apart(kind: str) -> None:
    variables = {"w": matrices(stack=(4,))[kind]}

    def apply(v, x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w) @ jnp.eye(10, 12), c.sum()), x, v["w"])[0]

    check(apply, variables, draw(1, 12))
    assert largest(apply, variables, draw(1, 12)) <= 4 * 12 * 3  # no more than the parts


@pytest.mark.parametrize("kind", ["separable", "tucker", "cp", "train", "low rank"])
def test_convolutions_inside_a_scan(kind: str) -> None:
    variables = {"w": kernels(3, 3, 5, 5, stack=(2,))[kind]}
    apply = lambda v, x: jax.lax.scan(lambda c, w: (jnp.tanh(convolve()({"w": w}, c)), None), x, v["w"])[0]  # noqa: E731
    check(apply, variables, draw(1, 4, 4, 5), rtol=1e-4)


def test_a_leading_axis_of_one_part_is_scanned_too() -> None:
    """All layers in one tensor, as in a tensor train over them."""
    leaf = CP((draw(4, 3), draw(6, 3), draw(6, 3)), (4, 6, 6))
    check(lambda v, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v["w"])[0], {"w": leaf}, draw(2, 6))


@pytest.mark.parametrize("kind", ["separable", "tucker", "cp", "train"])
def test_no_kernel_is_formed(kind: str) -> None:
    leaf = kernels(3, 3, 40, 40)[kind]
    assert largest(convolve(), {"w": leaf}, draw(1, 2, 2, 40)) <= max(480, *(part.size for part in jax.tree.leaves(leaf)))
    memory = jax.jit(packed(convolve())).lower({"w": leaf}, draw(1, 2, 2, 40)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * leaf.size / 2


@pytest.mark.parametrize("kind", ["tucker", "cp", "train", "low rank", "low rank of columns"])
def test_no_layer_is_formed_inside_a_scan(kind: str) -> None:
    """Neither in the graph nor in what the compiled program takes room for: less than one dense layer beside the parts."""
    n, shape = 96, (3, 96, 96)
    leaf = {
        "tucker": Tucker(draw(3, n, 2), draw(3, 2, 2), draw(3, 2, n), shape),
        "cp": CP((draw(3, n, 2), draw(3, n, 2)), shape),
        "train": TensorTrainMatrix((draw(3, 12, 8, 2), draw(3, 2, 8, 12)), shape),
        "low rank": LowRank(draw(3, n, 2), draw(3, 2, n), shape),
        "low rank of columns": LowRank(draw(3, n, 2), draw(3, 2, n), (3, n, 8, 12)),
    }[kind]
    apply = lambda v, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w.reshape(n, n)), None), x, v["w"])[0]  # noqa: E731
    variables, x = {"w": leaf}, draw(1, n)
    assert unpacked(apply, variables, x) == ()
    parts = sum(part.size for part in jax.tree.leaves(leaf))
    assert largest(apply, variables, x) <= parts < n * n
    assert jax.jit(packed(apply)).lower(variables, x).compile().memory_analysis().temp_size_in_bytes < 4 * n * n / 2
    dense = jax.jit(apply).lower(unpack(variables), x).compile().memory_analysis()
    assert dense.argument_size_in_bytes > 4 * 3 * n * n


@pytest.mark.parametrize("kind", matrices())
def test_no_matrix_is_formed(kind: str) -> None:
    leaf = matrices()[kind]
    assert largest(lambda v, x: x @ v["w"], {"w": leaf}, draw(1, 12)) < leaf.size


@pytest.mark.parametrize("kind", ["separable", "tucker", "cp", "train"])
def test_gradients_are_those_through_the_dense_tensor(kind: str) -> None:
    leaf, x = kernels(2, 3, 3, 4)[kind], draw(2, 5, 5, 3)

    def loss(apply):
        return jax.jit(jax.grad(lambda w: jnp.mean(apply({"w": w}, x) ** 2)))

    native, through = loss(packed(convolve()))(leaf), loss(lambda v, x: convolve()(unpack(v), x))(leaf)
    assert jax.tree.structure(native) == jax.tree.structure(leaf)
    for one, other in zip(jax.tree.leaves(native), jax.tree.leaves(through)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(jnp.abs(other).max()))


def test_parts_are_leaves_and_may_be_packed() -> None:
    leaf = kernels(3, 2, 4, 5)["tucker"]
    assert list(paths.flatten({"Conv_0": {"kernel": leaf}})) == [f"Conv_0/kernel/{name}" for name in ("first", "core", "last")]
    assert list(paths.flatten(kernels(3, 2, 4, 5)["cp"])) == [f"factors/{i}" for i in range(4)]
    mixed = Tucker(
        Sparse.from_dense(leaf.first), leaf.core.astype(jnp.bfloat16), LowRank(draw(3, 1), draw(1, 5), (3, 5)), leaf.shape
    )
    assert mixed.dtype == jnp.float32
    check(convolve(), {"w": mixed}, draw(1, 4, 4, 4))


def test_half_precision() -> None:
    leaf = jax.tree.map(lambda part: part.astype(jnp.bfloat16), kernels(3, 3, 4, 5)["separable"])
    check(convolve(), {"w": leaf}, draw(1, 4, 4, 4).astype(jnp.bfloat16), rtol=0.02)
    # The dense kernel is rounded before it is cast; the parts are not.
    check(lambda v, x: convolve()({"w": v["w"].astype(jnp.float32)}, x), {"w": leaf}, draw(1, 4, 4, 4), rtol=0.02)


def test_what_cannot_run_is_reported() -> None:
    variables = {"w": kernels(3, 3, 4, 4)["tucker"]}
    with pytest.warns(UnpackedWarning, match=r"w \(Tucker\) at sin"):
        packed(lambda v, x: convolve()({"w": jnp.sin(v["w"])}, x))(variables, draw(1, 4, 4, 4))
    by_batch = convolve(batch_group_count=2)
    assert [str(one) for one in unpacked(by_batch, variables, draw(2, 4, 4, 4))] == ["w (Tucker) at conv_general_dilated"]


def test_parts_that_do_not_fit_are_refused() -> None:
    for bad in (Separable(draw(3, 2, 1), draw(3, 2, 4), ()), Separable(draw(2, 3, 2, 1), draw(3, 1, 4), ())):
        with pytest.raises(ValueError, match=r"parts of shapes .* do not fit together as xcr, yrn"):
            sizes(bad)
    assert set("".join(matrices()["matrix train"].labels)) <= set(string.ascii_letters)
