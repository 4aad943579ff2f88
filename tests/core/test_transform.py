"""Chains: associative, empty, frozen; masters kept through views that round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import Transform, cast, chain, fake_quant, freeze, identity, low_rank, pack, prune, unpack
from lepton_jax.core.packed import Packed
from lepton_jax.core.transform import hold
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.pruning.sparse_training import rigl
from lepton_jax.quantization import Codebook

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32), "bias": jnp.ones(5)}


def same(one: object, other: object) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize(
    "parts",
    [(prune(0.5), fake_quant(bits=4), cast("bfloat16")), (low_rank(3), prune(0.5), fake_quant(Codebook(bits=2)))],
    ids=["quantized", "factored"],
)
def test_chain_is_associative(parts: tuple[Transform, Transform, Transform]) -> None:
    a, b, c = parts
    results = []
    for transform in (chain(a, b, c), chain(chain(a, b), c), chain(a, chain(b, c)), chain(identity(), a, chain(), b, c)):
        params, state = transform.init(PARAMS)
        params, state = transform.update(params, state, params, 3)
        results.append((params, transform.view(params, state)))
        assert same(unpack(pack(transform, params, state)), results[-1][1])
    assert all(same(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("transform", [identity(), chain(), chain(identity(), chain())], ids=["identity", "chain", "nested"])
def test_identity(transform: Transform) -> None:
    params, state = transform.init(PARAMS)
    for tree in (params, transform.view(params, state), pack(transform, params, state)):
        assert tree["w"] is PARAMS["w"]
    assert transform.update(params, state, params, 0) == (params, state)
    assert not jax.tree.leaves(state)


@pytest.mark.parametrize("first", [cast("bfloat16"), fake_quant(bits=2)], ids=["cast", "fake_quant"])
def test_masters_are_not_rounded_by_an_earlier_view(first: Transform) -> None:
    for later in (prune(0.5), prune(0.5, gradient="straight_through"), fake_quant(bits=4), cast("float16")):
        params, _ = chain(first, later).init(PARAMS)
        assert same(params, PARAMS)


def test_factors_of_what_was_cast_are_trained_in_float32() -> None:
    transform = chain(cast("bfloat16"), low_rank(2))
    params, state = transform.init(PARAMS)
    assert (params["w"].u.dtype, params["w"].v.dtype) == (jnp.float32, jnp.float32)
    assert transform.view(params, state)["w"].dtype == jnp.bfloat16


def test_freeze() -> None:
    transform = prune(0.5, gradient="straight_through")
    _, state = transform.init(PARAMS)
    frozen = freeze(transform, state)
    other = jax.tree.map(lambda x: x[::-1] * 3, PARAMS)
    params, begun = frozen.init(other)
    assert jax.tree.structure(begun) == jax.tree.structure(state)
    assert same(begun, state)
    assert params is other
    params, kept = frozen.update(params, begun, params, 7)
    assert kept is begun
    np.testing.assert_array_equal(frozen.view(params, kept)["w"], jnp.where(state.masks["w"], other["w"], 0))


def test_a_frozen_transform_outlives_steps_that_donate_its_state() -> None:
    transform = rigl(0.5, jax.random.key(0), end=9)  # a random key is in its state too
    _, state = transform.init(PARAMS)
    frozen = freeze(transform, state)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf[...], state), donate_argnums=0)
    for _ in range(2):
        _, begun = frozen.init(PARAMS)
        after = step(begun)
        assert begun.masks["w"].is_deleted()
        np.testing.assert_array_equal(after.masks["w"], state.masks["w"])
        assert bool(after.key == state.key)


def test_states_and_transforms_must_be_as_many() -> None:
    transform = chain(prune(0.5), cast("bfloat16"))
    params, state = transform.init(PARAMS)
    with pytest.raises(ValueError, match="zip"):
        transform.update(params, state[:1], params, 0)


def test_hold() -> None:
    assert hold({"w": 1}, 2, {"w": 3}, 4) == ({"w": 1}, 2)


def test_sparse_is_exact_to_the_last_bit() -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        for array in ([[0.0, -0.0], [jnp.nan, 3.0]], [[0.0, 0.0]], [[-1.0, jnp.inf]]):
            dense = jnp.asarray(array, dtype)
            sparse = Sparse.from_dense(dense)
            assert same(sparse.unpack(), dense)
            assert sparse.mask.size == -(-dense.size // 8)
            mask = jnp.asarray(dense == 3.0)
            assert same(sparse.masked(mask).unpack(), jnp.where(mask, dense, 0))


def test_packed_leaves_nest() -> None:
    u, v = jnp.array([[1.0], [0.0]]), jnp.array([[0.0, 2.0]])
    leaf = LowRank(Sparse.from_dense(u), LowRank(jnp.array([[2.0]]), v / 2, (1, 2)), (2, 2))
    assert (leaf.rank, leaf.ndim, leaf.size, leaf.dtype) == (1, 2, 4, jnp.float32)
    assert unpack([leaf])[0].tolist() == [[0.0, 2.0], [0.0, 0.0]]


def test_an_unfinished_packed_leaf_says_so() -> None:
    with pytest.raises(TypeError, match="Packed does not say how it is unpacked"):
        Packed().unpack()


@pytest.mark.parametrize("wrong", [prune, [prune(0.5)], "prune", None], ids=["function", "list", "str", "None"])
def test_chain_takes_transforms_only(wrong: object) -> None:
    with pytest.raises(TypeError, match="chain: takes transforms"):
        chain(prune(0.5), wrong)


def test_a_view_with_too_few_states_is_refused() -> None:
    transform = chain(prune(0.5), cast("bfloat16"))
    params, state = transform.init(PARAMS)
    for states in ((), state[:1]):
        with pytest.raises(ValueError, match="zip"):
            transform.view(params, states)
