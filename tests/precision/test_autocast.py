"""Autocast: dtypes of every dot and output, values and gradients against float32, residuals, rules, the table."""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.graph.trace import walk
from lepton_jax.precision import Policy, autocast, check_backend, explain

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from models_for_graph import MODELS

BF16, FP16 = Policy(compute_dtype="bfloat16"), Policy(compute_dtype="float16")
DOTS = ("dot_general", "conv_general_dilated")


def dot_dtypes(jaxpr: object) -> list[tuple[str, ...]]:
    return [tuple(aval.dtype.name for aval in (*eqn.in_avals, *eqn.out_avals)) for eqn in walk(jaxpr) if eqn.primitive in DOTS]


def floating(tree: object) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def split(variables: object) -> tuple[list[jax.Array], object]:
    """The floating leaves, and a function that puts them back."""
    leaves, tree = jax.tree.flatten(variables)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def merge(floats: list[jax.Array]) -> object:
        whole = list(leaves)
        for place, leaf in zip(places, floats):
            whole[place] = leaf
        return jax.tree.unflatten(tree, whole)

    return [leaves[i] for i in places], merge


@pytest.mark.parametrize("name", list(MODELS))
def test_every_kind_of_model(name: str) -> None:
    """Outputs keep structure, shapes and dtypes; every dot, forward and backward, is narrow; values agree with float32."""
    apply, variables, inputs, keywords = MODELS[name]
    half = autocast(apply, BF16)
    floats, merge = split(variables)

    def loss(floats: list[jax.Array], f: object) -> tuple[jax.Array, object]:
        outs = f(merge(floats), *inputs, **keywords)
        return sum(jnp.mean(jnp.square(leaf)) for leaf in floating(outs)), outs

    grad = jax.grad(loss, has_aux=True)
    jaxpr = jax.make_jaxpr(lambda floats: grad(floats, half))(floats)
    dots = dot_dtypes(jaxpr)
    assert dots
    assert set(dots) == {("bfloat16",) * 3}
    assert not any(aval.dtype == jnp.float64 for eqn in walk(jaxpr) for aval in eqn.out_avals if hasattr(aval, "dtype"))

    (slopes, outs), (expected_slopes, expected) = jax.jit(lambda floats: (grad(floats, half), grad(floats, apply)))(floats)
    assert jax.tree.structure(outs) == jax.tree.structure(expected)
    for ours, theirs in ((outs, expected), (slopes, expected_slopes)):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
        distance = sum(float(jnp.sum(jnp.square(a - b))) for a, b in zip(floating(ours), floating(theirs)))
        size = sum(float(jnp.sum(jnp.square(b))) for b in floating(theirs))
        assert 0 < distance < 4e-4 * size  # two percent; bfloat16 has eight bits


def test_in_float32_it_changes_nothing() -> None:
    apply, variables, inputs, keywords = MODELS["convnet train"]
    same = autocast(apply, Policy(compute_dtype="float32"))
    ours, theirs = jax.jit(lambda v: (same(v, *inputs, **keywords), apply(v, *inputs, **keywords)))(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_a_hand_computed_dot_is_rounded_as_said() -> None:
    """1.001 is 1 in bfloat16; 257 needs nine bits, and is 256. Not under jit, where XLA may keep more digits than asked."""
    half = autocast(lambda w, x: x @ w, BF16)
    assert half(jnp.array([[1.001], [256.0]]), jnp.ones((1, 2))).tolist() == [[256.0]]
    assert half(jnp.array([[1.001], [1.001]]), jnp.ones((1, 2))).tolist() == [[2.0]]


@pytest.mark.parametrize("seed", range(2))
def test_softmax_norms_and_losses_are_float32_inside(seed: int) -> None:
    """Against the same in float64 from the narrow dot's result: float32's error, not bfloat16's."""
    rng = np.random.default_rng(seed)
    w, x = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((16, 12), (5, 16)))

    def apply(w: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
        h = 0.5 * (x @ w)
        centred = h - h.mean(-1, keepdims=True)
        norm = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)
        return jax.nn.softmax(h), jax.nn.logsumexp(h, axis=-1), norm, jnp.mean(-jax.nn.log_softmax(h)[:, 0])

    # Else XLA leaves out the rounding of a dot's result that is cast back.
    exact = {"xla_allow_excess_precision": False}
    softmax, total, norm, loss = jax.jit(autocast(apply, BF16), compiler_options=exact)(w, x)
    narrow = (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.bfloat16)
    h = 0.5 * np.asarray(narrow, np.float64)
    exp = np.exp(h - h.max(-1, keepdims=True))
    np.testing.assert_allclose(softmax, exp / exp.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(total, h.max(-1) + np.log(exp.sum(-1)), rtol=1e-5)
    centred = h - h.mean(-1, keepdims=True)
    np.testing.assert_allclose(norm, centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, np.mean(-(h - h.max(-1, keepdims=True) - np.log(exp.sum(-1))[:, None])[:, 0]), rtol=1e-5)


def test_integers_booleans_and_constants_out_of_range() -> None:
    """A mask of -1e30 and an offset of 1e-12 neither overflow nor vanish in float16; comparisons are exact."""

    def apply(w: jax.Array, x: jax.Array, keep: jax.Array) -> tuple[jax.Array, ...]:
        h = x @ w
        weights = jax.nn.softmax(jnp.where(keep, h, -1e30), axis=-1)
        return weights, h / (jnp.abs(h) + 1e-12), jnp.argmax(h, -1), keep & (h > 0.5), x.astype(jnp.int32) + 100_000

    w, x = jnp.eye(3), jnp.array([[0.0, 1.0, 2.0]])
    weights, signs, best, above, whole = jax.jit(autocast(apply, FP16))(w, x, jnp.array([[True, True, False]]))
    np.testing.assert_allclose(weights, [[1 / (1 + np.e), np.e / (1 + np.e), 0]], rtol=1e-6)
    assert signs.tolist() == [[0.0, 1.0, 1.0]]
    assert (best.tolist(), above.tolist(), whole.tolist()) == ([2], [[False, True, False]], [[100000, 100001, 100002]])
    assert [v.dtype.name for v in (best, above, whole)] == ["int32", "bool", "int32"]
    masked = jax.jit(autocast(lambda w, x: jax.nn.relu(jnp.where(x > 0, x @ w, -1e30)) @ w, FP16))(w, x)
    assert masked.tolist() == [[0.0, 1.0, 2.0]]


def test_vmap_equals_a_loop_and_hessians_exist() -> None:
    half = autocast(lambda w, x: jnp.sum(jax.nn.silu(x @ w) ** 2), BF16)
    ws, x = jax.random.normal(jax.random.key(1), (3, 4, 2)), jnp.ones((5, 4))
    batched = jax.jit(jax.vmap(jax.grad(half), (0, None)))(ws, x)
    one = jax.jit(jax.grad(half))
    np.testing.assert_allclose(batched, jnp.stack([one(w, x) for w in ws]), rtol=2e-2, atol=1e-2)
    tangent = jax.jit(lambda w: jax.jvp(jax.grad(half), (w, x), (w, jnp.zeros_like(x))))(ws[0])[1]
    assert bool(jnp.isfinite(tangent).all())


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.exp(nn.Dense(4)(x))
        return nn.Dense(2)(x)


def net() -> tuple[object, dict, jax.Array]:
    x = jnp.ones((3, 4))
    return Net().apply, Net().init(jax.random.key(0), x), x


def test_rules_by_module_operation_and_primitive() -> None:
    apply, variables, x = net()

    def dots(**rules: object) -> list[tuple[str, ...]]:
        return dot_dtypes(jax.make_jaxpr(autocast(apply, BF16, **rules))(variables, x))

    narrow, wide = ("bfloat16",) * 3, ("float32",) * 3
    assert dots() == [narrow, narrow]
    assert dots(float32="Dense_0") == [wide, narrow]
    assert dots(float32="*/Dense_1/dot_general") == [narrow, wide]
    assert dots(float32=("dot_general",), compute="Dense_0") == [wide, wide], "float32 goes first"
    [exp] = [d for d in explain(apply, BF16, variables, x, compute="exp") if d.name.endswith("/exp")]
    assert (exp.mode, exp.operands, exp.results, exp.reason) == ("compute", ("bfloat16",), ("bfloat16",), "compute='exp'")


def test_the_table() -> None:
    apply, variables, x = net()
    found = explain(apply, BF16, variables, x)
    rows = {d.name: (d.mode, d.operands, d.results) for d in found}
    assert rows["Net/Dense_0/dot_general"] == ("compute", ("bfloat16", "bfloat16"), ("bfloat16",))
    assert rows["Net/exp"] == ("wide", ("float32",), ("float32",))
    assert rows["Net/Dense_0/add"] == ("wide", ("float32", "float32"), ("float32",)), "only the exponential uses it"
    assert rows["Net/Dense_1/add"][2] == ("float32",), "the output"
    heads, *lines = str(found).splitlines()
    assert heads.split() == ["operation", "runs", "operands", "results", "rule"]
    assert len(lines) == len(found)


def test_output_dtype_leaves_state_alone() -> None:
    apply, variables, inputs, keywords = MODELS["convnet train"]
    half = autocast(apply, Policy(compute_dtype="bfloat16", output_dtype="bfloat16"))
    logits, state = jax.eval_shape(lambda v: half(v, *inputs, **keywords), variables)
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32"}


def test_bfloat16_parameters() -> None:
    """A model whose masters are narrow computes in the policy's dtype as well."""
    apply, variables, x = net()
    narrow = BF16.masters(variables)
    assert set(dot_dtypes(jax.make_jaxpr(autocast(apply, BF16))(narrow, x))) <= {("bfloat16",) * 3}
    y = jax.jit(autocast(apply, BF16))(narrow, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, apply(variables, x), rtol=5e-2, atol=5e-2)


def test_misuse() -> None:
    apply, variables, x = net()
    with pytest.raises(ValueError, match=r"autocast: float32='Dense_7' matches no operation(.|\n)*Net/Dense_0"):
        autocast(apply, BF16, float32="Dense_7")(variables, x)
    with pytest.raises(ValueError, match=r"compute='lstm' matches no operation"):
        explain(apply, BF16, variables, x, compute="lstm")
    with pytest.raises(TypeError, match="compute must be glob patterns"):
        autocast(apply, BF16, compute=(3,))
    with pytest.raises(TypeError, match=r"Policy: compute_dtype must be floating, e.g. 'bfloat16'; got int8"):
        Policy(compute_dtype="int8")
    with pytest.raises(TypeError, match=r"Policy: output_dtype must be a floating dtype, .*got 'half8'"):
        Policy(output_dtype="half8")
    with pytest.raises(TypeError, match=r"compute_dtype must be bfloat16, float16 or float32; got float8_e4m3fn"):
        Policy(compute_dtype="float8_e4m3fn")
    with pytest.raises(TypeError, match=r"float64, which jax has only with"):
        Policy(param_dtype="float64")
    with pytest.raises(TypeError, match=r"the backend 'cpu' cannot compute in float4_e2m1fn: .*Choose another dtype"):
        check_backend("Fp8: forward", "float4_e2m1fn")


def test_what_is_written_by_index_is_narrow_and_what_is_added_up_is_not() -> None:
    """`.at[].set` chooses, a segment sum adds many terms, a transform has no narrow form; a ragged dot is a dot."""
    rng = np.random.default_rng(6)
    w = jnp.asarray(rng.standard_normal((2, 6, 6)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)
    ends = jnp.array([0, 2, 2, 1])

    def apply(v: jax.Array, x: jax.Array) -> jax.Array:
        h = jax.lax.ragged_dot(x, v, jnp.array([3, 1]))
        h = jnp.zeros((5, 6)).at[ends].set(h, unique_indices=False)
        h = jax.ops.segment_sum(h @ v[0], jnp.array([0, 1, 1, 3, 3]), num_segments=4)
        return jnp.real(jnp.fft.ifft(jnp.fft.fft(h @ v[1], axis=0), axis=0))

    made = {one.name: one for one in explain(apply, BF16, w, x)}
    modes = {name: (one.mode, one.results[0]) for name, one in made.items() if not name.startswith(("dot", "broadcast"))}
    assert modes["ragged_dot_general"] == ("compute", "bfloat16")
    assert made["scatter"].operands[2] == "bfloat16"
    assert modes["scatter-add"] == ("wide", "float32")
    assert [name for name in made if name.startswith("fft") and made[name].mode == "compute"] == []
    np.testing.assert_allclose(jax.jit(autocast(apply, BF16))(w, x), apply(w, x), rtol=0.05, atol=0.3)
    gradient, plain = (jax.jit(jax.grad(lambda v, f=f: jnp.sum(jnp.tanh(f(v, x)))))(w) for f in (autocast(apply, BF16), apply))
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, plain, rtol=0.1, atol=0.2)
