"""Adafactor's factored moments after channels are cut: the estimates stay, a step works, masked and shrunk training agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import Net, X

from lepton_jax.core.paths import flatten
from lepton_jax.pruning.channels import Random, plan

RNG = np.random.default_rng(9)


def mlp(v, x):
    h = jax.nn.relu(x @ v["params"]["up"] + v["params"]["bias"][None])
    return jax.nn.relu(h @ v["params"]["mid"]) @ v["params"]["down"]


V = {
    "params": {
        name: jnp.asarray(RNG.standard_normal(shape) / 4, jnp.float32)
        for name, shape in {"up": (12, 20), "bias": (20,), "mid": (20, 30), "down": (30, 16)}.items()
    }
}
IN = jnp.asarray(RNG.standard_normal((7, 12)), jnp.float32)


def gradients(apply, variables):
    return jax.grad(lambda v: jnp.sum(jnp.sin(apply(v, IN))))(variables)


def estimates(state, shapes, smallest):
    """float64: the second moment of every weight, as `optax.scale_by_factored_rms` has it, by hand."""
    found = {}
    for path, shape in shapes.items():
        row, col, whole = (np.asarray(flatten(tree)[path], np.float64) for tree in (state.v_row, state.v_col, state.v))
        order = np.argsort(shape)
        if len(shape) > 1 and shape[order[-2]] >= smallest:
            d1, d0 = order[-2:]
            row, col = np.expand_dims(row, d0), np.expand_dims(col, d1)
            whole = row * col / row.mean(d1, keepdims=True)
        found[path] = whole
    return found


def plain(smallest):
    return optax.adafactor(
        0.01, min_dim_size_to_factor=smallest, clipping_threshold=None, multiply_by_parameter_scale=False, momentum=0.9
    )


@pytest.mark.parametrize("smallest", [4, 13, 128])
@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_estimates_stay_and_shapes_are_those_of_the_smaller_optimiser(smallest, fraction):
    tx = optax.adafactor(0.01, min_dim_size_to_factor=smallest, momentum=0.9)
    state, variables = tx.init(V), V
    for _ in range(3):
        updates, state = tx.update(gradients(mlp, variables), state, variables)
        variables = optax.apply_updates(variables, updates)
    made = plan(mlp, V, IN, fraction=fraction, criterion=Random(key=jax.random.key(1)))
    small, small_state = made.shrink(variables), made.shrink(state, min_dim_size_to_factor=smallest)
    wanted = tx.init(small)
    assert jax.tree.structure(small_state) == jax.tree.structure(wanted)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), small_state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), wanted
    )
    before = estimates(state[0], {p: leaf.shape for p, leaf in flatten(V).items()}, smallest)
    after = estimates(small_state[0], {p: leaf.shape for p, leaf in flatten(small).items()}, smallest)
    for path, moment in before.items():
        for (planned, axis), indices in made.removed.items():
            moment = np.delete(moment, indices, axis) if planned == path else moment
        np.testing.assert_allclose(after[path], moment, rtol=1e-5)
    updates, _ = jax.jit(tx.update)(gradients(made.rewrite(mlp), small), small_state, small)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("smallest", [4, 128])  # factored before and after, or whole before and after
def test_masked_training_then_cut_equals_training_the_cut_model(smallest):
    made = plan(mlp, V, IN, fraction=0.5, criterion=Random(key=jax.random.key(2)))
    tx, small_apply = plain(smallest), made.rewrite(mlp)

    def train(apply, variables, state, steps):
        for _ in range(steps):
            updates, state = tx.update(gradients(apply, variables), state, variables)
            variables = optax.apply_updates(variables, updates)
        return variables, state

    masked = made.mask(V)
    whole, state = train(lambda v, x: mlp(made.mask(v), x), masked, tx.init(masked), 4)
    cut = made.shrink(whole), made.shrink(state, min_dim_size_to_factor=smallest)
    small = made.shrink(V)
    direct = train(small_apply, small, tx.init(small), 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), cut, direct)
    one, other = (train(small_apply, *pair, 2) for pair in (cut, direct))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), one, other)


def test_a_fresh_state_shapes_alone_and_what_loses_nothing(net):
    apply, variables = net
    made = plan(apply, variables, X, fraction=0.5)
    tx = optax.adafactor(0.01, min_dim_size_to_factor=4)
    fresh = tx.init(variables["params"])
    small = made.shrink(variables)["params"]
    cut = made.shrink(fresh, min_dim_size_to_factor=4)
    jax.tree.map(np.testing.assert_array_equal, cut, tx.init(small))
    structs = made.shrink(jax.eval_shape(lambda: fresh), min_dim_size_to_factor=4)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), structs) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(lambda: cut)
    )
    nothing = plan(Net().apply, variables, X, fraction=0)
    assert all(a is b for a, b in zip(jax.tree.leaves(nothing.shrink(fresh, min_dim_size_to_factor=4)), jax.tree.leaves(fresh)))
    jax.tree.map(np.testing.assert_array_equal, made.mask(fresh), fresh)


def test_another_threshold_than_the_optimisers_is_refused():
    made = plan(mlp, V, IN, fraction=0.5)
    state = optax.adafactor(0.01, min_dim_size_to_factor=4).init(V)
    with pytest.raises(ValueError, match=r"0/params/mid: .*min_dim_size_to_factor=128; got .*Pass the one"):
        made.shrink(state)
