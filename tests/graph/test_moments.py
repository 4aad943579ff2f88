"""Second moments of layer inputs, and inverse Cholesky factors, against float64."""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.core import paths
from lepton_jax.graph.capture import capture
from lepton_jax.graph.layers import layers
from lepton_jax.graph.moments import damped, inverse_cholesky, oracle_damping, second_moments
from lepton_jax.graph.trace import trace
from lepton_jax.graph.weights import weight_uses

sys.path.insert(0, str(Path(__file__).parent))
from models_for_graph import MODELS

KEY = jax.random.key(0)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def gram(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows.T @ rows


# -------------------------------------------------------------------------------------------------------------------- dense

X, OTHER = normal(0, 4, 5, 6), normal(1, 2, 5, 6)


LAYERS = {
    "plain": ((6, 3), lambda v, x: x @ v["w"], lambda w: w),
    "transposed": ((3, 6), lambda v, x: x @ v["w"].T, lambda w: w.T),
    "on the left": ((3, 6), lambda v, x: jnp.einsum("of,bpf->obp", v["w"], x), lambda w: w.T),
    "three axes": ((6, 2, 3), lambda v, x: jnp.einsum("bpf,fhd->bphd", x, v["w"]), lambda w: w.reshape(6, 6)),
    "vector and casts": ((18,), lambda v, x: x @ v["w"].astype("float16").reshape(3, 6).T, lambda w: w.reshape(3, 6).T),
    "in a call": ((1, 6, 3), lambda v, x: jax.jit(lambda w, x: x @ w)(v["w"].reshape(6, 3), x), lambda w: w[0]),
    "reversed": ((6, 3), lambda v, x: jax.checkpoint(lambda w, x: jnp.sin(x @ lax.rev(w, [0])))(v["w"], x), lambda w: w[::-1]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_as_a_matrix(name):
    """The layout's matrix is what the rows are multiplied by; the moments are those of the rows."""
    shape, apply, matrix = LAYERS[name]
    variables = {"w": normal(2, *shape)}
    [(path, found)] = second_moments(apply, variables, [X, OTHER], paths.floating)
    rows = np.concatenate([X.reshape(-1, 6), OTHER.reshape(-1, 6)])
    np.testing.assert_allclose(found.second, gram(rows), rtol=1e-5, atol=1e-5)
    assert (path, found.second.dtype, int(found.rows)) == ("w", jnp.float32, 30)
    np.testing.assert_array_equal(found.layout.matrix(variables["w"]), matrix(np.asarray(variables["w"])))
    np.testing.assert_array_equal(found.layout.leaf(found.layout.matrix(variables["w"])), variables["w"])


@pytest.mark.parametrize("equation", ["bhd,hdo->bo", "bdh,hdo->ob"])
def test_several_contracted_axes(equation):
    variables, x = {"w": normal(3, 2, 3, 4)}, normal(4, 5, 2, 3)
    if equation.startswith("bdh"):
        x = jnp.swapaxes(x, 1, 2)
    [(_, found)] = second_moments(lambda v, x: jnp.einsum(equation, x, v["w"]), variables, [x])
    order = found.layout.index[:, 0] // 4  # in which the inputs (h, d) come is the operation's business
    rows = np.asarray(x if equation.startswith("bhd") else jnp.swapaxes(x, 1, 2)).reshape(5, 6)[:, order]
    np.testing.assert_allclose(found.second, gram(rows), rtol=1e-5, atol=1e-6)
    expected = np.einsum(equation.split("->")[0] + "->bo", x, variables["w"])
    np.testing.assert_allclose(rows @ found.layout.matrix(variables["w"]), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_used_twice_counts_twice():
    variables = {"w": normal(5, 6, 6)}
    [(_, found)] = second_moments(lambda v, x: jnp.tanh(x @ v["w"]) @ v["w"], variables, [X])
    first = np.asarray(X, np.float64).reshape(-1, 6)
    second = np.tanh(first @ np.asarray(variables["w"], np.float64))
    np.testing.assert_allclose(found.second, gram(first) + gram(second), rtol=1e-5, atol=1e-5)
    assert int(found.rows) == 40


def test_a_layer_in_a_scan_counts_every_step():
    variables, x = {"w": normal(6, 3, 3)}, normal(7, 4, 3)
    apply = lambda v, x: lax.scan(lambda c, _: (jnp.tanh(c @ v["w"]), None), x, None, length=3)[0]  # noqa: E731
    [(_, found)] = second_moments(apply, variables, [x])
    [(_, diagonal)] = second_moments(apply, variables, [x], diagonal=True)
    expected, state = np.zeros((3, 3)), np.asarray(x, np.float64)
    for _ in range(3):
        expected += gram(state)
        state = np.tanh(state @ np.asarray(variables["w"], np.float64))
    np.testing.assert_allclose(found.second, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(diagonal.second, np.diag(expected), rtol=1e-5)
    assert int(found.rows) == 12


@pytest.mark.parametrize("reverse", [False, True])
def test_layers_stacked_in_one_leaf_have_moments_each(reverse):
    """A scan over layers, each of which is used at two steps of a scan within."""
    variables, x = {"w": normal(6, 3, 2, 5, 5)[:, 0], "pairs": normal(7, 3, 2, 5, 5)}, normal(8, 4, 5)

    def apply(v, x):
        def layer(x, w):
            one, two = w
            x, _ = lax.scan(lambda c, _: (jnp.tanh(c @ one.T), None), x, None, length=2)
            return lax.scan(lambda c, part: (jnp.tanh(c @ part), None), x, two)

        return lax.scan(lambda x, w: (layer(x, w)[0], None), x, (v["w"], v["pairs"]), reverse=reverse)[0]

    found = dict(second_moments(apply, variables, [x, x]))
    diagonals = dict(second_moments(apply, variables, [x, x], diagonal=True))
    expected, pairs, state = np.zeros((3, 5, 5)), np.zeros((3, 2, 5, 5)), np.asarray(x, np.float64)
    for number in reversed(range(3)) if reverse else range(3):
        for _ in range(2):
            expected[number] += 2 * gram(state)
            state = np.tanh(state @ np.asarray(variables["w"][number], np.float64).T)
        for part in range(2):
            pairs[number, part] = 2 * gram(state)
            state = np.tanh(state @ np.asarray(variables["pairs"][number, part], np.float64))
    np.testing.assert_allclose(found["w"].second, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["pairs"].second, pairs, rtol=1e-4, atol=1e-4)
    assert (found["w"].rows.tolist(), found["pairs"].rows.tolist()) == ([16] * 3, [[8, 8]] * 3)
    np.testing.assert_allclose(diagonals["pairs"].second, np.diagonal(pairs, axis1=2, axis2=3), rtol=1e-4)
    for path, turned in (("w", lambda w: jnp.swapaxes(w, 1, 2)), ("pairs", lambda w: w)):
        matrix = found[path].layout.matrix(variables[path])
        np.testing.assert_array_equal(matrix, turned(variables[path]))
        np.testing.assert_array_equal(found[path].layout.leaf(matrix), variables[path])


# ------------------------------------------------------------------------------------------------------------- convolutions

CONVS = {
    "same": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 1), "padding": "VALID"},
    "padded": {"window_strides": (1, 2), "padding": [(2, 0), (1, 3)]},
    "dilated": {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 1)},
    "transposed": {"window_strides": (1, 1), "padding": [(2, 2), (1, 1)], "lhs_dilation": (2, 2)},
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("numbers", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NHWC")], ids=["NHWC", "NCHW"])
def test_convolutions_are_dots_with_patches(name, numbers):
    """H of the patches, by the definition of H alone: |conv(x, w)|^2 = tr(W' H W), for any w."""
    x = normal(8, *((3, 7, 6, 2) if numbers[0] == "NHWC" else (3, 2, 7, 6)))
    shape = (3, 2, 2, 4) if numbers[1] == "HWIO" else (4, 2, 3, 2)

    def apply(v, x):
        return lax.conv_general_dilated(x, v["w"], dimension_numbers=numbers, **CONVS[name])

    variables = {"w": normal(9, *shape)}
    [(_, found)] = second_moments(apply, variables, [x])
    [(_, diagonal)] = second_moments(apply, variables, [x], diagonal=True)
    hessian = np.asarray(found.second, np.float64)
    assert hessian.shape == (12, 12)
    for seed in range(3):
        w = normal(seed, *shape)
        matrix = np.asarray(found.layout.matrix(w), np.float64)
        out = np.asarray(apply({"w": w}, x), np.float64)
        np.testing.assert_allclose(matrix.T @ hessian @ matrix, gram(out.reshape(-1, 4)), rtol=1e-4, atol=1e-3)
        assert int(found.rows) == out.size // 4
    np.testing.assert_allclose(diagonal.second, np.diag(hessian), rtol=1e-5)
    if numbers[1] == "HWIO":
        assert found.layout.in_order


# ------------------------------------------------------------------------------------------------------- models and errors


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2))
        return nn.Dense(3)(nn.MultiHeadDotProductAttention(num_heads=2)(x[:, None], x[:, None])[:, 0])


def test_layers_come_in_the_order_in_which_they_run_within_any_memory():
    model, x = Net(), normal(10, 2, 5, 5, 2)
    variables = model.init(KEY, x)
    found = dict(second_moments(model.apply, variables, [x], "*/kernel"))
    small = dict(second_moments(model.apply, variables, iter([x]), "*/kernel", memory=0))
    names = [path.removeprefix("params/").removeprefix("MultiHeadDotProductAttention_0/") for path in found]
    assert names[0] == "Conv_0/kernel"
    assert set(names[1:4]) == {f"{name}/kernel" for name in ("query", "key", "value")}
    assert names[4:] == ["out/kernel", "Dense_0/kernel"]
    assert list(small) == list(found)
    for path in found:
        np.testing.assert_allclose(small[path].second, found[path].second, rtol=1e-5, atol=1e-6)
    assert found["params/MultiHeadDotProductAttention_0/out/kernel"].second.shape == (4, 4)


def test_tied_embedding_is_the_weight_of_its_dot():
    def apply(v, tokens):
        return jnp.tanh(v["table"][tokens]) @ v["table"].T

    variables, tokens = {"table": normal(11, 7, 3)}, jnp.array([[1, 2], [6, 0]])
    [(_, found)] = second_moments(apply, variables, [tokens])
    rows = np.tanh(np.asarray(variables["table"], np.float64)[np.asarray(tokens).reshape(-1)])
    np.testing.assert_allclose(found.second, gram(rows), rtol=1e-5)
    assert found.layout.index.shape == (3, 7)


def test_every_leaf_that_is_no_weight_is_named_with_what_stands_in_its_way():
    def apply(v, x):
        x = x @ (v["scaled"] * 2.0)
        x = lax.conv_general_dilated(v["image"], x[None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0]
        return x @ v["fine"] + lax.scan(lambda w, _: (w @ w, None), v["carried"], None, length=2)[0].sum()

    variables = {
        "scaled": jnp.ones((6, 6)),
        "image": jnp.ones((1, 5, 5)),
        "carried": jnp.ones((6, 6)),
        "fine": jnp.ones((6, 6)),
        "unused": jnp.ones((2, 2)),
    }
    names = list(variables)
    with pytest.raises(ValueError, match="exclude the others by `select`") as error:
        list(second_moments(apply, variables, [X[0]], names))
    text = str(error.value)
    assert "scaled: reaches none that could be followed; it goes into mul" in text
    assert "image: reaches none that could be followed; it goes into conv_general_dilated of two leaves, or as what" in text
    assert "carried: reaches none that could be followed; it goes into scan" in text
    assert "unused: reaches none that could be followed; it goes into nothing" in text
    assert "fine" not in text
    assert [path for path, _ in second_moments(apply, variables, [X[0]], "fine")] == ["fine"]
    assert [path for path, _ in second_moments(apply, variables, [X[0]])] == ["fine"]
    left = layers(apply, variables, X[0]).left
    assert set(left) == {"scaled", "image", "carried"}  # those that look like weights


# ------------------------------------------------------------------------------------------------------- stacks of matrices


def grouped(numbers, groups):
    return lambda v, x: lax.conv_general_dilated(
        x, v["w"], (1, 2), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


STACKS = {
    "depthwise": ((3, 2, 1, 12), (2, 5, 6, 6), grouped(("NHWC", "HWIO", "NHWC"), 6), (6,)),
    "groups of PyTorch": ((8, 3, 3, 2), (2, 6, 5, 6), grouped(("NCHW", "OIHW", "NCHW"), 2), (2,)),
    "experts": ((3, 6, 4), (3, 5, 6), lambda v, x: jnp.einsum("eni,eio->eno", x, v["w"]), (3,)),
    "experts last": ((4, 6, 3), (5, 3, 6), lambda v, x: jnp.einsum("nei,oie->neo", x, v["w"]), (3,)),
    "vmap": ((6, 4, 3), (5, 3, 6), lambda v, x: jax.vmap(lambda w, x: x @ w, (2, 1))(v["w"], x), (3,)),
    "vmap of a convolution": (
        (3, 3, 2, 2, 4),
        (3, 2, 5, 6, 2),
        lambda v, x: jax.vmap(
            lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )(v["w"], x),
        (3,),
    ),
    "scan of depthwise": (
        (2, 3, 3, 1, 6),
        (2, 5, 5, 6),
        lambda v, x: lax.scan(lambda x, w: (jnp.tanh(depthwise(w, x)), None), x, v["w"])[0],
        (2, 6),
    ),
    "scan over an axis within": (
        (6, 3, 6),
        (5, 6),
        lambda v, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.moveaxis(v["w"], 1, 0))[0],
        (3,),
    ),
    "scan, turned round": (
        (3, 6, 6),
        (5, 6),
        lambda v, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, v["w"][::-1])[0],
        (3,),
    ),
}


def depthwise(w, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=w.shape[-1])


@pytest.mark.parametrize("name", STACKS)
def test_each_of_stacked_matrices_has_moments_of_its_own(name):
    """By their definition: a product of these inputs with any other weights has the squared size tr(W' H W)."""
    shape, given, apply, stack = STACKS[name]
    variables, x = {"w": normal(12, *shape)}, normal(13, *given)
    [(_, found)] = second_moments(apply, variables, [x])
    [(_, diagonal)] = second_moments(apply, variables, [x], diagonal=True)
    layout, hessian = found.layout, np.asarray(found.second, np.float64)
    assert layout.stacked == found.rows.shape == stack == hessian.shape[:-2]
    np.testing.assert_array_equal(layout.leaf(layout.matrix(variables["w"])), variables["w"])
    np.testing.assert_allclose(diagonal.second, np.diagonal(hessian, axis1=-2, axis2=-1), rtol=1e-5)
    if name.startswith("scan"):
        _, values = (
            capture(apply, "*_general*")(variables, x) if "depth" in name else capture(apply, "dot_general")(variables, x)
        )
        [out] = values.values()
        out, w = np.asarray(out, np.float64), np.asarray(layout.matrix(variables["w"]), np.float64)
        exact = np.sum(out.reshape(out.shape[0], -1) ** 2, 1)
        size = np.einsum("...io,...ij,...jo->...", w, hessian, w)
        np.testing.assert_allclose(size.reshape(size.shape[0], -1).sum(1), exact, rtol=1e-4)
        return
    for seed in range(2):
        other = normal(seed, *shape)
        w = np.asarray(layout.matrix(other), np.float64)
        size = np.einsum("...io,...ij,...jo->...", w, hessian, w)
        np.testing.assert_allclose(size.sum(), np.sum(np.asarray(apply({"w": other}, x), np.float64) ** 2), rtol=1e-5)
        for one in np.ndindex(*stack):  # and each alone
            alone = np.zeros(w.shape)
            alone[one] = w[one]
            out = np.asarray(apply({"w": layout.leaf(jnp.asarray(alone, jnp.float32))}, x), np.float64)
            np.testing.assert_allclose(np.einsum("io,ij,jo->", w[one], hessian[one], w[one]), np.sum(out**2), rtol=1e-4)


def test_different_layouts_of_one_leaf_are_refused():
    with pytest.raises(ValueError, match=r"w: is used in different layouts, by dot_general, dot_general_1"):
        list(second_moments(lambda v, x: x @ v["w"] @ v["w"].T, {"w": jnp.ones((6, 6))}, [X]))


def test_no_batches():
    with pytest.raises(ValueError, match="at least one calibration batch; got none"):
        list(second_moments(lambda v, x: x @ v["w"], {"w": jnp.ones((6, 6))}, []))


@pytest.mark.parametrize("name", ["convnet eval", "nnx train", "lstm", "transformer eval"])
def test_all_kernels_of_real_models_are_found(name):
    apply, variables, inputs, _ = MODELS[name]
    wanted = list(paths.select(variables, lambda path, leaf: path.endswith("kernel")))
    uses = weight_uses(trace(apply, variables, *inputs), wanted)
    assert set(uses) == set(wanted)


# --------------------------------------------------------------------------------------------------------- inverse Cholesky


@pytest.mark.parametrize("seed", range(3))
def test_inverse_cholesky(seed):
    x = np.random.default_rng(seed).normal(size=(40, 7))
    h = x.T @ x
    found = inverse_cholesky(jnp.asarray(h, jnp.float32), 0.05)
    expected = np.linalg.inv(h + 0.05 * np.diag(h).mean() * np.eye(7))
    factor = np.asarray(found.factor, np.float64)
    np.testing.assert_allclose(factor.T @ factor, expected, rtol=1e-4, atol=1e-6)
    assert np.array_equal(factor, np.triu(factor))
    assert (np.diag(factor) > 0).all()
    np.testing.assert_allclose(factor, np.linalg.cholesky(expected).T, rtol=1e-3, atol=1e-5)
    assert float(found.damping) == pytest.approx(0.05)
    assert not found.dead.any()


def test_inverse_cholesky_of_what_follows():
    """Row i, from i on: the first row of the inverse of the rest, over the root of its first entry."""
    x = np.random.default_rng(5).normal(size=(40, 5))
    h = x.T @ x
    factor = np.asarray(inverse_cholesky(jnp.asarray(h, jnp.float32), 0.0).factor)
    for i in range(5):
        rest = np.linalg.inv(h[i:, i:])
        np.testing.assert_allclose(factor[i, i:], rest[0] / np.sqrt(rest[0, 0]), rtol=1e-3, atol=1e-6)


def shrunk(x):
    """The oracle approximating shrinkage, written out in float64: what it adds over what it keeps."""
    rows, inputs = x.shape
    second = x.T @ x / rows
    square, trace = np.trace(second @ second), np.trace(second) ** 2
    share = min(1.0, ((1 - 2 / inputs) * square + trace) / ((rows + 1 - 2 / inputs) * (square - trace / inputs)))
    return second, share


@pytest.mark.parametrize("rows", [3, 20, 2000])
def test_damping_by_the_number_of_rows(rows):
    rng = np.random.default_rng(rows)
    mix = rng.normal(size=(9, 9))
    x = rng.normal(size=(rows, 9)) @ mix
    second, share = shrunk(x)
    damping = oracle_damping(jnp.asarray(7 * second, jnp.float32), rows)
    assert float(damping) == pytest.approx(share / (1 - share), rel=1e-4)
    nearer = np.asarray(damped(jnp.asarray(second, jnp.float32), damping)) / (1 + float(damping))
    far = [np.linalg.norm(one - mix.T @ mix) for one in (nearer, second)]
    assert far[0] < far[1] or rows == 2000  # where it is 0.2 % of nothing that matters
    dead = np.insert(x, 4, 0, axis=1)
    assert float(oracle_damping(jnp.asarray(dead.T @ dead, jnp.float32), rows)) == pytest.approx(float(damping), rel=1e-3)


def test_damping_where_there_is_nothing_to_tell():
    """Of one input, of none that varies, of inputs that are alike: finite, and at most 1000."""
    assert float(oracle_damping(jnp.ones((1, 1)), 5)) == 1000
    assert float(oracle_damping(jnp.zeros((4, 4)), 5)) == 1000
    assert float(oracle_damping(jnp.eye(4), 5)) == 1000
    assert float(oracle_damping(jnp.eye(4), 10**9)) == 1000


def test_more_damping_where_the_factorisation_fails():
    ones = jnp.ones((6, 6)) - 1e-3 * jnp.eye(6)  # five eigenvalues below zero
    found = inverse_cholesky(ones, 1e-5)
    assert bool(jnp.isfinite(found.factor).all())
    assert float(found.damping) == pytest.approx(1e-2, rel=1e-3)  # 1e-5, 1e-4 and 1e-3 are not enough
    assert float(inverse_cholesky(ones, 0.0).damping) > 1e-3
    assert bool(jnp.isnan(inverse_cholesky(jnp.full((2, 2), jnp.nan)).factor).all())
    assert bool(jnp.isnan(inverse_cholesky(ones, 1e-5, attempts=2).factor).any())


def test_dead_inputs_are_apart():
    h = np.diag([4.0, 0.0, 2.0])
    h[0, 2] = h[2, 0] = 1.0
    found = inverse_cholesky(jnp.asarray(h, jnp.float32), 0.0)
    assert found.dead.tolist() == [False, True, False]
    inverse = np.asarray(found.factor).T @ np.asarray(found.factor)
    np.testing.assert_allclose(inverse[1], [0, 1 / 3, 0], rtol=1e-5)
    np.testing.assert_allclose(inverse[np.ix_([0, 2], [0, 2])], np.linalg.inv([[4, 1], [1, 2]]), rtol=1e-5)
    assert bool(jnp.isfinite(inverse_cholesky(jnp.zeros((3, 3))).factor).all())
