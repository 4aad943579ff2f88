"""Ranks that fall in training, penalties on factors, and factors under any optimiser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import chain, fake_quant, low_rank, pack, unpack
from lepton_jax.core import paths, schedules
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank import SpatialSvd, Svd, merge, nuclear_norm, orthogonality, penalized, reduce_rank
from lepton_jax.training import Checkpoints, create, make_train_step

RNG = np.random.default_rng(0)
PARAMS = {"a": jnp.asarray(RNG.normal(size=(12, 8)), jnp.float32), "b": jnp.asarray(RNG.normal(size=(3, 3, 2, 6)), jnp.float32)}
TARGET = {path: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32) for path, leaf in PARAMS.items()}


def loss_fn(seen: dict, model_state: dict, batch: jax.Array, key: jax.Array) -> tuple:
    return sum(jnp.mean((seen[path] - TARGET[path]) ** 2) for path in seen), (model_state, {})


def bits(tree: object) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# ------------------------------------------------------------------------------------------------------------ falling ranks


@pytest.mark.parametrize("tx", [optax.adamw(0.05, weight_decay=0.1), optax.sgd(0.5, momentum=0.9)], ids=["adamw", "momentum"])
def test_ranks_follow_the_schedule_in_one_compilation(tx: optax.GradientTransformation, tmp_path) -> None:
    transform = reduce_rank(6, schedules.polynomial(0.5, begin=2, end=7, power=1))
    traces = []

    def counted(*arguments: object) -> tuple:
        traces.append(1)
        return loss_fn(*arguments)

    step = make_train_step(counted, tx, transform)
    state = create(PARAMS, {}, tx, transform, jax.random.key(0))
    left = []
    for number in range(12):
        if number == 6:
            with Checkpoints(tmp_path / "run") as kept:
                kept.save(6, state)
                state, _ = kept.restore(create(PARAMS, {}, tx, transform, jax.random.key(1)))
        state, _ = step(state, jnp.zeros(1))
        left.append(int(state.tstate.columns["a"].sum()))
        for path, columns in state.tstate.columns.items():
            gone = ~np.asarray(columns)
            leaf = state.params[path]
            assert not np.asarray(leaf.u)[..., gone].any()  # momentum and decay do not bring them back
            assert not np.asarray(leaf.v)[gone].any()
    assert left == [6, 6, 6, 5, 5, 4, 4, 3, 3, 3, 3, 3]  # 6 - round(6 s), 6 s = 0, 0, 0, 0.6, 1.2, 1.8, 2.4, 3, 3, ...
    assert len(traces) == 1
    small = pack(transform, state.params, state.tstate)
    assert {path: leaf.rank for path, leaf in small.items()} == {"a": 3, "b": 3}
    seen = transform.view(state.params, state.tstate)
    for path, leaf in unpack(small).items():
        np.testing.assert_allclose(leaf, seen[path], rtol=1e-6, atol=1e-6)
    assert bits(merge(transform, state.params, state.tstate)) == bits(seen)


def test_the_least_columns_go_first() -> None:
    transform = reduce_rank(4, schedules.one_shot(0.5, begin=1))
    values = np.array([1.0, 8.0, 2.0, 4.0])
    params, state = transform.init({"w": jnp.eye(4)})
    leaf = LowRank(jnp.eye(4), jnp.diag(jnp.asarray(values, jnp.float32)), (4, 4))
    params, state = transform.update({"w": leaf}, state, {"w": leaf}, 1)
    assert state.columns["w"].tolist() == [False, True, False, True]
    np.testing.assert_array_equal(transform.view(params, state)["w"], np.diag(values * [0, 1, 0, 1]))
    # They get no gradient, and what is in them does not leak.
    grads = jax.grad(lambda p: jnp.sum(transform.view(p, state)["w"] ** 3))({"w": leaf})["w"]
    assert not np.asarray(grads.u)[:, [0, 2]].any()
    poisoned = {"w": LowRank(leaf.u.at[:, 0].set(jnp.nan), leaf.v, (4, 4))}
    np.testing.assert_array_equal(transform.view(poisoned, state)["w"], transform.view({"w": leaf}, state)["w"])


def test_one_column_is_always_left_and_stacked_layers_keep_the_same() -> None:
    transform = reduce_rank(2, 0.9, method=Svd(stacked=1))
    params, state = transform.init({"w": jnp.stack([jnp.diag(jnp.array([3.0, 1.0])), jnp.diag(jnp.array([1.0, 1.5]))])})
    assert state.columns["w"].tolist() == [True, False]
    assert pack(transform, params, state)["w"].u.shape == (2, 2, 1)
    np.testing.assert_allclose(transform.view(params, state)["w"][0], np.diag([3.0, 0.0]), atol=1e-6)


def test_a_later_transform_sees_the_factors() -> None:
    transform = chain(reduce_rank(4, 0.5), fake_quant(bits=4))
    params, state = transform.init(PARAMS)
    leaf = pack(transform, params, state)["a"]
    assert (leaf.rank, leaf.u.format.bits) == (2, 4)
    np.testing.assert_allclose(unpack(leaf), transform.view(params, state)["a"], rtol=1e-6, atol=1e-6)


def test_other_factors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"needs a method that gives two factors(.|\n)*b: a "):
        reduce_rank(1, 0.5, method=SpatialSvd(), select="b").init(PARAMS)
    with pytest.raises(ValueError, match="rank must be a whole number"):
        reduce_rank(0, 0.5)


# ---------------------------------------------------------------------------------------------- factors under an optimiser


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_optimisers_state_is_that_of_the_factors(dtype: jnp.dtype) -> None:
    transform, tx = low_rank({"a": 3}, select="a"), optax.adam(0.01)
    state = create(jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS), {}, tx, transform, jax.random.key(0))
    moments = paths.flatten(state.opt_state[0].mu)
    assert {path: leaf.shape for path, leaf in moments.items()} == {"a/u": (12, 3), "a/v": (3, 8), "b": (3, 3, 2, 6)}
    before = bits(state.params)
    state, _ = make_train_step(loss_fn, tx, transform)(state, jnp.zeros(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}
    assert all(a != b for a, b in zip(bits(state.params), before))


# ---------------------------------------------------------------------------------------------------------------- penalties


def test_nuclear_norm_and_its_gradient() -> None:
    for path, weight in PARAMS.items():
        matrix = np.asarray(weight, np.float64).reshape(-1, weight.shape[-1])
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        found, slope = jax.value_and_grad(nuclear_norm)({path: weight})
        np.testing.assert_allclose(found, values.sum(), rtol=1e-5)
        np.testing.assert_allclose(slope[path], (left @ right).reshape(weight.shape), atol=1e-4)
        factors = Svd().factorize(weight, min(matrix.shape))  # balanced: the bound is tight
        np.testing.assert_allclose(nuclear_norm({path: factors}), values.sum(), rtol=1e-5)
        uneven = LowRank(factors.u * 3, factors.v / 3, factors.shape)
        assert nuclear_norm({path: uneven}) > values.sum() * 1.1
    with pytest.raises(ValueError, match="matches no floating leaf"):
        nuclear_norm(PARAMS, "missing")


def test_orthogonality_against_numpy() -> None:
    u, v = RNG.normal(size=(7, 3)), RNG.normal(size=(3, 5))
    unit_u, unit_v = u / np.linalg.norm(u, axis=0), v / np.linalg.norm(v, axis=1, keepdims=True)
    expected = (np.sum((unit_u.T @ unit_u - np.eye(3)) ** 2) + np.sum((unit_v @ unit_v.T - np.eye(3)) ** 2)) / 9
    leaf = LowRank(jnp.asarray(u, jnp.float32), jnp.asarray(v, jnp.float32), (7, 5))
    np.testing.assert_allclose(orthogonality({"w": leaf, "dense": jnp.ones((2, 2))}), expected, rtol=1e-5)
    np.testing.assert_allclose(orthogonality({"w": Svd().factorize(PARAMS["a"], 4)}), 0, atol=1e-9)
    dead = LowRank(leaf.u.at[:, 0].set(0), leaf.v, (7, 5))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(jax.grad(orthogonality)({"w": dead})))


def test_penalties_act_through_the_optimiser() -> None:
    crossed = {
        "w": LowRank(
            jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32), jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32), (8, 6)
        )
    }
    tx = optax.chain(penalized(partial(orthogonality, select="w"), 5.0), optax.sgd(0.05))
    params, state = crossed, tx.init(crossed)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for _ in range(40):
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    assert orthogonality(params) < 0.5 * orthogonality(crossed)
    updates, _ = penalized(nuclear_norm, 0.5).update(zeros, optax.EmptyState(), crossed)
    np.testing.assert_allclose(updates["w"].u, 0.5 * crossed["w"].u, rtol=1e-6)
    with pytest.raises(ValueError, match="weight must be 0 or more"):
        penalized(nuclear_norm, -1.0)
