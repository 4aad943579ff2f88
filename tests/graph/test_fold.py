"""Folded models give the same outputs, from fewer operations."""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lepton_jax.graph.fold import fold_batch_norm
from lepton_jax.graph.trace import trace

sys.path.insert(0, str(Path(__file__).parent))
from models_for_graph import MODELS, Nnx


def shaken(variables, seed=0):
    """Variables whose norms have statistics, scales and biases of their own."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(tree, [jnp.abs(x + 0.3 * jax.random.normal(k, x.shape)) + 0.1 for k, x in zip(keys, leaves)])


def check(apply, variables, *inputs, rtol=1e-5):
    """Outputs agree; return the folded function, its variables and the primitives it runs."""
    folded, new = fold_batch_norm(apply, variables, *inputs)
    expected, out = jax.jit(apply)(variables, *inputs), jax.jit(folded)(new, *inputs)
    assert jax.tree.structure(out) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())
    return folded, new, [eqn.primitive for eqn in trace(folded, new, *inputs).equations()]


def test_convnet_at_any_batch_size_and_exported():
    apply, variables, inputs, _ = MODELS["convnet eval"]
    variables = shaken(variables)
    folded, new, primitives = check(apply, variables, *inputs)
    assert not {"rsqrt", "sub", "mul"} & set(primitives)
    assert {path for path in new if path.startswith("ConvNet/Conv_0")} == {
        "ConvNet/Conv_0/conv_general_dilated/kernel",
        "ConvNet/Conv_0/conv_general_dilated/bias",
    }
    # A kernel that nothing scales is kept under its own path; its bias is the shift.
    assert new["params/Dense_0/kernel"].shape == (4, 3)
    more = jax.random.normal(jax.random.key(1), (5, *inputs[0].shape[1:]))
    np.testing.assert_allclose(jax.jit(folded)(new, more), apply(variables, more), rtol=1e-5, atol=1e-5)
    batch = jax.export.symbolic_shape("b, 6, 6, 2")
    exported = jax.export.export(jax.jit(folded))(
        jax.eval_shape(lambda tree: tree, new), jax.ShapeDtypeStruct(batch, jnp.float32)
    )
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(new, more), folded(new, more), rtol=1e-5, atol=1e-5)


def test_nnx():
    model = Nnx(nnx.Rngs(0))
    model.eval()
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda x: x + 0.2 if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    apply = lambda s, x: nnx.merge(graphdef, s)(x)  # noqa: E731
    _, _, primitives = check(apply, state, jax.random.normal(jax.random.key(1), (2, 6, 6, 2)))
    assert "rsqrt" not in primitives
    assert "mul" not in primitives


class Twice(nn.Module):
    """A convolution's output used by a norm and by a skip."""

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(3, (3, 3))(x)
        return nn.relu(nn.BatchNorm(use_running_average=True)(y)) + y


def test_an_output_used_twice_is_not_scaled_for_one_use():
    x = jax.random.normal(jax.random.key(2), (2, 5, 5, 2))
    variables = shaken(jax.jit(Twice().init)(jax.random.key(0), x))
    _, new, primitives = check(Twice().apply, variables, x)
    assert primitives.count("conv_general_dilated") == 1
    np.testing.assert_array_equal(new["params/Conv_0/kernel"], variables["params"]["Conv_0"]["kernel"])
    assert "rsqrt" not in primitives


def test_used_twice_across_a_jit():
    """The inner function sees one use of its argument; the outer value has two."""
    norm = jax.jit(lambda y, s: y * s[None])
    apply = lambda v, x: (lambda y: norm(y, v["s"]) + jnp.sin(y))(x @ v["w"])  # noqa: E731
    variables = {"w": jnp.arange(6.0).reshape(2, 3), "s": jnp.array([1.0, 2.0, 3.0])}
    _, _, primitives = check(apply, variables, jnp.ones((4, 2)))
    assert primitives.count("dot_general") == 1


@pytest.mark.parametrize(
    "apply",
    [
        lambda v, x: (x @ v["w"] - v["a"][None]) * v["b"][None] + v["c"][None],
        lambda v, x: v["a"][None] - (x @ v["w"]) / v["b"][None],
        lambda v, x: -(2 * (x @ v["w"] + v["a"][None])) * 0.5,
        lambda v, x: (v["w"].T @ x.T) * v["b"][:, None],
        lambda v, x: jnp.broadcast_to(v["a"], (4, 3)) * (x @ v["w"]),
        lambda v, x: jnp.einsum("bi,ho->bho", x, v["w"]) * jnp.outer(v["w"][:, 0], v["b"])[None],
    ],
)
def test_affine_forms(apply):
    keys = jax.random.split(jax.random.key(3), 4)
    variables = {
        "w": jax.random.normal(keys[0], (2, 3)),
        **{n: jax.random.normal(k, (3,)) + 2 for n, k in zip("abc", keys[1:])},
    }
    folded, new, primitives = check(apply, variables, jax.random.normal(keys[0], (4, 2)))
    assert not {"mul", "div", "neg"} & set(primitives)
    # Nothing kept is as large as the batch.
    more = jnp.ones((4, 2))
    np.testing.assert_allclose(jax.jit(folded)(new, more), apply(variables, more), rtol=1e-5, atol=1e-5)
    assert all(4 not in value.shape for value in new.values())


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_and_depthwise(groups):
    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3), feature_group_count=groups)(x))

    x = jax.random.normal(jax.random.key(2), (2, 5, 5, 4))
    _, new, primitives = check(Grouped().apply, shaken(jax.jit(Grouped().init)(jax.random.key(0), x)), x)
    assert sorted(value.shape for value in new.values()) == [(1, 1, 1, 8), (3, 3, 4 // groups, 8)]
    assert "mul" not in primitives


def test_a_scale_along_another_axis_stays():
    apply = lambda v, x: (x @ v["w"]) * v["rows"][:, None]  # noqa: E731
    _, new, primitives = check(apply, {"w": jnp.ones((2, 3)), "rows": jnp.arange(4.0)}, jnp.ones((4, 2)))
    assert "mul" in primitives
    assert set(new) == {"w", "rows"} or new["w"].shape == (2, 3)


@pytest.mark.parametrize("name", ["transformer eval", "lstm", "control flow", "convnet train"])
def test_models_without_a_foldable_norm_stay_the_same(name):
    apply, variables, inputs, _ = MODELS[name]
    check(apply, variables, *inputs, rtol=2e-5)


def test_another_program_is_refused():
    apply = lambda v, x, deep=False: x @ v["a"] @ v["b"] if deep else x @ v["a"]  # noqa: E731
    folded, new = fold_batch_norm(apply, {"a": jnp.eye(2), "b": jnp.eye(2)}, jnp.ones((1, 2)))
    assert list(new) == ["a"]
    with pytest.raises(ValueError, match=r"b is not among the folded variables \(a\)"):
        folded(new, jnp.ones((1, 2)), deep=True)


def test_weight_standardisation_folds_through_jnp_var():
    """`jnp.var` is an inlined jitted function with literal operands: they are constants in it too."""

    def apply(v, x):
        w = v["kernel"]
        w = (w - jnp.mean(w, axis=0, keepdims=True)) / jnp.sqrt(jnp.var(w, axis=0, keepdims=True) + 1e-5)
        y = (x @ (w * v["gain"][None]) - v["mean"][None]) * jax.lax.rsqrt(v["var"] + 1e-5)[None]
        return jnp.clip(y, -3.0, 3.0)

    draw = np.random.default_rng(5).normal
    v = {"kernel": draw(size=(6, 4)), "gain": draw(size=4) ** 2 + 0.1, "mean": draw(size=4), "var": draw(size=4) ** 2 + 0.1}
    v = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), v)
    x = jnp.asarray(draw(size=(3, 6)), jnp.float32)
    _, new, primitives = check(apply, v, x)
    assert sorted(name.split("/")[-1] for name in new) == ["bias", "kernel"]
    assert not {"sqrt", "rsqrt", "reduce_sum", "div", "sub", "mul"} & set(primitives)
    wide = {name: np.asarray(leaf, np.float64) for name, leaf in v.items()}
    w = (wide["kernel"] - wide["kernel"].mean(0)) / np.sqrt(wide["kernel"].var(0) + 1e-5)
    scale = 1 / np.sqrt(wide["var"] + 1e-5)
    [kernel] = [leaf for name, leaf in new.items() if name.endswith("kernel")]
    [bias] = [leaf for name, leaf in new.items() if name.endswith("bias")]
    np.testing.assert_allclose(kernel, w * wide["gain"] * scale, rtol=1e-4)
    np.testing.assert_allclose(np.ravel(bias), -wide["mean"] * scale, rtol=1e-4)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.jit(f))], ids=["jit", "remat", "nested"])
def test_closed_over_arrays_and_literals_in_calls_are_constants(wrap):
    held = np.arange(1.0, 5.0, dtype=np.float32)
    scaled = wrap(lambda w, c: jnp.where(c > 0, w * held[None] * c, w))
    x = jnp.asarray(np.random.default_rng(6).normal(size=(3, 4)), jnp.float32)
    _, new, primitives = check(lambda v, x: x @ scaled(v["w"], 2.0), {"w": jnp.eye(4) + 0.5}, x)
    assert set(primitives) <= {"dot_general", "convert_element_type"}
    [leaf] = new.values()
    np.testing.assert_allclose(leaf, (np.eye(4) + 0.5) * held * 2)
