"""Moments in eight bits: the table, the rounding against float64, the bytes, and that a run learns the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import identity, prune
from lepton_jax.core import paths
from lepton_jax.pruning import bit_masks
from lepton_jax.pruning.sparse_training import masked_moments, masks_of, rigl
from lepton_jax.training import create, data_mesh, eight_bit, fsdp, make_train_step, shard_step
from lepton_jax.training.eight_bit import EightBits, _coded, _values, dynamic_table


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(5, 64), (3, 70), (130,)])
def test_the_nearest_of_the_table_by_hand(signed, shape):
    rng = np.random.default_rng([int(signed), *shape])
    x = (rng.normal(size=shape) * 10.0 ** rng.integers(-5, 2, size=shape)).astype(np.float32)
    x = x if signed else np.abs(x)
    moment = _coded(jnp.asarray(x), 32)
    assert (moment.codes.dtype, moment.codes.shape) == (jnp.uint8, shape)
    assert moment.scales.shape == (*shape[:-1], -(-shape[-1] // 32))
    found = np.asarray(_values(moment), np.float64)
    for start in range(0, shape[-1], 32):
        part = x[..., start : start + 32].astype(np.float64)
        largest = np.abs(part).max(-1, keepdims=True)
        error = np.abs(found[..., start : start + 32] - part)
        by_table = [np.abs(part[..., None] / largest[..., None] - dynamic_table(kind)).min(-1) for kind in (True, False)]
        best = np.where((part < 0).any(-1, keepdims=True), *by_table) * largest
        np.testing.assert_allclose(error, best, atol=1e-6 * largest.max())
    assert (np.asarray(_values(_coded(jnp.zeros((2, 8)), 8))) == 0).all()


def test_tables_have_256_rising_numbers():
    for signed in (True, False):
        table = dynamic_table(signed)
        assert (len(table), len(set(table.tolist())), table.max()) == (256, 256, 1)
        assert 0 in table
        assert (table.min() < 0) == signed


def loss_fn(params, model_state, batch, key):
    x = jnp.tanh(batch["x"] @ params["a"]) @ params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(x, batch["y"]).mean(), (model_state, {})


def params_of(seed):
    one, two = jax.random.split(jax.random.key(seed))
    return {"a": jax.random.normal(one, (32, 128)) / 6, "b": jax.random.normal(two, (128, 8)) / 12, "c": jnp.zeros(3)}


def run(tx, transform, placement=None, steps=30):
    state = create(params_of(1), {}, tx, transform, jax.random.key(0), placement=placement)
    step = make_train_step(loss_fn, tx, transform, lowering=False)
    step = step if placement is None else shard_step(step, placement.mesh)
    w = np.random.default_rng(0).normal(size=(32, 8))
    for number in range(steps):
        x = np.random.default_rng([1, number]).normal(size=(64, 32)).astype(np.float32)
        state, metrics = step(state, {"x": x, "y": (x @ w).argmax(1).astype(np.int32)})
    return state, float(metrics["loss"])


@pytest.mark.parametrize("make", [lambda: optax.adam(1e-2), lambda: optax.sgd(0.3, momentum=0.9), lambda: optax.lion(1e-3)])
def test_any_optimiser_learns_as_in_float32(make):
    plain, expected = run(make(), identity())
    state, loss = run(eight_bit(make(), smallest=512), identity())
    assert loss == pytest.approx(expected, abs=0.05)
    held = jax.tree.leaves(state.opt_state, is_leaf=lambda leaf: isinstance(leaf, EightBits))
    assert any(isinstance(leaf, EightBits) for leaf in held)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
    assert size < 0.3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plain.opt_state))


def test_codes_lie_as_their_weight_and_are_those_of_one_device():
    placement, tx = fsdp(data_mesh()), eight_bit(optax.adam(1e-2), smallest=512)
    four, loss = run(tx, prune(0.5), placement, steps=3)
    one, expected = run(tx, prune(0.5), steps=3)
    assert loss == pytest.approx(expected, abs=2e-5)
    assert four.opt_state[0].mu["a"].codes.sharding.spec == four.params["a"].sharding.spec
    jax.tree.map(np.testing.assert_array_equal, masks_of(four.tstate), masks_of(one.tstate))


def test_masks_as_bits_train_the_same_bits():
    transform = rigl(0.7, jax.random.key(3), end=20, interval=3)
    tx = masked_moments(optax.adam(1e-2))
    plain, expected = run(tx, transform, steps=8)
    state, loss = run(tx, bit_masks(transform), steps=8)
    assert loss == expected
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, plain.opt_state)
    jax.tree.map(np.testing.assert_array_equal, masks_of(state.tstate), masks_of(plain.tstate))
    sizes = [sum(x.nbytes for p, x in paths.flatten(s.tstate).items() if "masks" in p) for s in (state, plain)]
    assert sizes[0] * 8 == sizes[1]
    placed, _ = run(tx, bit_masks(transform), fsdp(data_mesh()), steps=8)
    jax.tree.map(np.testing.assert_array_equal, masks_of(placed.tstate), masks_of(plain.tstate))


def test_misuse():
    with pytest.raises(ValueError, match="eight_bit: block must be"):
        eight_bit(optax.adam(1e-3), block=0)
    with pytest.raises(ValueError, match="eight_bit: smallest must be"):
        eight_bit(optax.adam(1e-3), smallest=0)
