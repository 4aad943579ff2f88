"""A function rewritten by a plan, under the transformations of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import MLP, POINT, mlp

from lepton_jax.pruning.channels import plan


def test_a_function_that_needs_a_removed_channel_is_refused():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    with pytest.raises(ValueError, match=r"a axis 1, indices \[0, 3\]: an output"):
        jax.eval_shape(made.rewrite(lambda v, x: x @ v["a"]), made.shrink(MLP), POINT)


def test_renormalised_statistics_stay_those_of_the_masked_model():
    def apply(v, x):
        h = x @ v["a"]
        return (h / jnp.sqrt(jnp.mean(h**2, axis=1, keepdims=True) + 1e-3)) @ v["b"]

    made = plan(apply, MLP, POINT, fraction=0.5)
    h = np.asarray(POINT @ MLP["a"])[:, [1, 2]]
    expected = h / np.sqrt((h**2).sum() / 4 + 1e-3) @ np.asarray(MLP["b"])[[1, 2]]
    np.testing.assert_allclose(made.rewrite(apply)(made.shrink(MLP), POINT), expected, rtol=1e-6)


def test_derivative_of_relu_at_zero_survives():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    gradient = jax.grad(lambda v: made.rewrite(mlp)(v, jnp.zeros((1, 2))).sum())(made.shrink(MLP))
    np.testing.assert_array_equal(gradient["a"], np.zeros((2, 2)))
    weights = {"a": jnp.zeros((2, 2)), "b": jnp.ones((2, 1))}
    gradient = jax.grad(lambda v: made.rewrite(mlp)(v, POINT).sum())(weights)
    np.testing.assert_array_equal(gradient["a"], np.zeros((2, 2)))


def test_transformations_of_the_rewritten_function():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    small, shrunk = made.rewrite(mlp), made.shrink(MLP)
    batch = jnp.asarray(np.random.default_rng(3).standard_normal((5, 2)), jnp.float32)
    expected = mlp(made.mask(MLP), batch)
    each = jax.jit(jax.vmap(lambda x: small(shrunk, x[None])[0]))(batch)
    np.testing.assert_allclose(each, expected, rtol=1e-6)
    per_example = jax.jit(jax.vmap(jax.grad(lambda v, x: small(v, x[None]).sum()), (None, 0)))(shrunk, batch)
    whole = jax.vmap(jax.grad(lambda v, x: mlp(v, x[None]).sum()), (None, 0))(made.mask(MLP), batch)
    np.testing.assert_allclose(per_example["a"], whole["a"][..., [1, 2]], rtol=1e-6)
    np.testing.assert_allclose(jax.checkpoint(small)(shrunk, batch), expected, rtol=1e-6)


def test_export_with_a_symbolic_batch():
    def apply(v, x):
        h = jax.nn.relu(x @ v["a"]).reshape(x.shape[0], 4, -1).reshape(4 * x.shape[0], -1)
        return h.reshape(x.shape[0], -1) @ v["b"]

    made = plan(apply, MLP, POINT, fraction=0.5)
    batch = jax.export.symbolic_shape("batch")[0]
    exported = jax.export.export(jax.jit(made.rewrite(apply)))(made.shrink(MLP), jax.ShapeDtypeStruct((batch, 2), jnp.float32))
    x = jnp.asarray(np.random.default_rng(3).standard_normal((5, 2)), jnp.float32)
    np.testing.assert_allclose(exported.call(made.shrink(MLP), x), apply(made.mask(MLP), x), rtol=1e-6)


def test_sharded_inputs_and_donated_variables():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    mesh = jax.make_mesh((len(jax.devices()),), ("batch",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    x = jnp.asarray(np.random.default_rng(3).standard_normal((8, 2)), jnp.float32)
    expected = mlp(made.mask(MLP), x)

    def step(v, x):
        return jax.tree.map(lambda leaf: 2 * leaf, v), made.rewrite(mlp)(v, x)

    doubled, out = jax.jit(step, donate_argnums=0)(made.shrink(MLP), jax.device_put(x, spread))
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert doubled["a"].shape == (2, 2)
