"""Checkpoints: everything comes back bit for bit, and what belongs to another run is refused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax import chain, fake_quant, low_rank, pack, prune
from lepton_jax.training import Checkpoints, create, data_mesh, fingerprint, from_arrays, not_finite, to_arrays


class Odd(NamedTuple):
    masks: dict
    count: jax.Array


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def blank(tree):
    """The same tree with other values."""
    return jax.tree.map(
        lambda leaf: (
            jnp.broadcast_to(jax.random.key(99, impl=jax.random.key_impl(leaf)), leaf.shape)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros_like(leaf)
        ),
        tree,
    )


def odd_tree(key):
    return {
        "odd": Odd({"Dense_0/kernel": jnp.array([[True, False]]), "b": jnp.ones(0, jnp.uint8)}, jnp.int32(-7)),
        "types": [jnp.arange(3, dtype=dtype) for dtype in ("bfloat16", "float16", "int8", "uint8", "uint32", "int4")],
        "f8": jnp.array([0.5, 2.0], jnp.float8_e4m3fn),
        "nan": jnp.array([np.nan, np.inf, -0.0], jnp.float32),
        "key": key,
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "empty": (),
    }


def test_odd_leaves_come_back(tmp_path, key):
    tree = odd_tree(key)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, tree, {"window": [{"loss": 0.1}]})
        found, extra = checkpoints.restore(blank(tree))
    assert_same(found, tree)
    assert np.signbit(np.asarray(found["nan"])[2])
    assert extra == {"window": [{"loss": 0.1}]}


def test_train_state_of_a_chain_comes_back_in_another_object(tmp_path, key):
    params = {"Dense_0": {"kernel": jax.random.normal(key, (6, 5)), "bias": jnp.ones(5)}}
    transform, tx = chain(low_rank(3), prune(0.5), fake_quant(bits=4)), optax.adamw(1e-2)
    state = create(params, {"batch_stats": {"n": {"mean": jnp.ones(5)}}}, tx, transform, key)
    expected = jax.tree.map(lambda leaf: leaf.copy(), state)
    with Checkpoints(tmp_path, run="r") as checkpoints:
        checkpoints.save(4, state)
        jax.tree.map(lambda leaf: leaf.delete(), state)  # what donation does, while the writing goes on
    with Checkpoints(tmp_path, run="r") as checkpoints:
        assert checkpoints.latest_step == 4
        found, _ = checkpoints.restore(state)
    assert_same(found, expected)


def test_packed_leaves_come_back(tmp_path, key):
    transform = chain(prune(0.5), fake_quant(bits=3))
    params, tstate = transform.init({"kernel": jax.random.normal(key, (6, 5))})
    packed = pack(transform, params, tstate)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, packed)
        found, _ = checkpoints.restore(blank(packed))
    assert_same(found, packed)


def test_shardings_come_back(tmp_path):
    mesh = data_mesh()
    assert mesh.size == 4  # see tests/conftest.py
    spread, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    tree = {"a": jax.device_put(np.arange(8.0, dtype=np.float32), spread), "key": jax.device_put(jax.random.key(5), whole)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree)
        found, _ = checkpoints.restore(tree)
    assert_same(found, tree)
    assert found["a"].sharding == spread
    assert found["key"].sharding == whole


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": jnp.full(2, step, jnp.float32)})
        checkpoints.save(3, {"w": jnp.zeros(2)})  # already there: stays as it is
        assert checkpoints.restore({"w": jnp.zeros(2)})[0]["w"].tolist() == [3, 3]
        assert checkpoints.restore({"w": jnp.zeros(2)}, step=2)[0]["w"].tolist() == [2, 2]
        with pytest.raises(FileNotFoundError, match="1"):
            checkpoints.restore({"w": jnp.zeros(2)}, step=1)


def test_another_state_is_refused_with_all_paths(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match="holds no checkpoint; start without resuming"):
            checkpoints.restore({"w": jnp.zeros(2)})
        checkpoints.save(1, {"params": {"w": jnp.zeros(2), "old": jnp.zeros(1)}, "same": jnp.int32(1)})
        with pytest.raises(ValueError, match="another run") as error:
            checkpoints.restore({"params": {"w": jnp.zeros((2, 3)), "new": jnp.zeros(1)}, "same": jnp.int32(1)})
    assert str(error.value).splitlines()[1:] == [
        "  params/new: needed as float32[1], not in the saved state",
        "  params/w: needed as float32[2,3], saved as float32[2]",
        "  params/old: saved as float32[1], not in this run's state",
    ]


def test_another_config_is_refused_and_nothing_overwritten(tmp_path):
    with Checkpoints(tmp_path, run=fingerprint({"rate": 0.1})) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"another configuration.*Choose another folder"):
        Checkpoints(tmp_path, run=fingerprint({"rate": 0.2}))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_fingerprint():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(config) for config in ({"a": 1}, {"a": 2}, {"a": "1"}, ["a", 1], Odd({}, 1))}) == 5


def test_arrays_are_copies_and_need_paths_of_their_own(key):
    leaf = np.ones(2, np.float32)
    arrays = to_arrays({"w": leaf, "key": key})
    leaf[:] = 5
    assert arrays["w"].tolist() == [1, 1]
    restored = from_arrays(arrays, {"w": jnp.zeros(2), "key": jax.random.key(8)})
    arrays["w"][:] = 7
    assert restored["w"].tolist() == [1, 1]
    assert_same(restored["key"], key)
    with pytest.raises(ValueError, match="same path"):
        to_arrays({"a/b": leaf, "a": {"b": leaf}})


def test_not_finite():
    tree = {"a": jnp.array([1.0, np.inf]), "b": {"c": jnp.array([np.nan], jnp.bfloat16), "d": jnp.ones(3, jnp.int32)}}
    assert not_finite({**tree, "fine": jnp.zeros(2)}) == ["a", "b/c"]


def test_facts_are_those_of_the_moment_of_saving(tmp_path, monkeypatch):
    """They are written in the background, while the loop goes on to fill and empty its window of losses."""
    window, asked = [{"loss": 0.1}], []
    with Checkpoints(tmp_path, run="a") as checkpoints:
        save = checkpoints._manager.save

        def late(step, *, args, **options):
            asked.append(step)
            window.append({"loss": 0.2})  # as the loop does before the writer comes to it
            return save(step, args=args, **options)

        monkeypatch.setattr(checkpoints._manager, "save", late)
        checkpoints.save(1, {"w": jnp.ones(2)}, {"window": window})
        window.clear()
        checkpoints.wait()
        _, extra = checkpoints.restore({"w": jnp.zeros(2)})
    assert asked == [1]
    assert extra == {"window": [{"loss": 0.1}]}
