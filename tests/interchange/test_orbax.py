"""Orbax checkpoints in, `.lepton` out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from lepton_jax import identity, load, save
from lepton_jax.interchange import load_orbax, load_variables
from lepton_jax.training import Checkpoints, create


def variables(seed=0):
    return nn.Dense(3).init(jax.random.key(seed), jnp.ones((1, 2)))


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert isinstance(a, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_becomes_a_file_that_answers_alike(tmp_path):
    tree = {**variables(), "more": [jnp.bfloat16(2), {"n": jnp.arange(3)}]}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", tree)
    found = load_orbax(tmp_path / "saved")
    assert_equal(found, tree)
    assert_equal(load_orbax(tmp_path / "saved", tree), tree)
    x = jnp.ones((2, 2))
    save(tmp_path / "m.lepton", lambda v, x: nn.Dense(3).apply({"params": v["params"]}, x), found, x)
    np.testing.assert_array_equal(load(tmp_path / "m.lepton")(x), jax.jit(nn.Dense(3).apply)(variables(), x))
    with pytest.raises(ValueError, match=r"extra: needs float32\[1\], not in the file"):
        load_orbax(tmp_path / "saved", {**tree, "extra": jnp.ones(1)})


def test_the_newest_step_of_a_manager(tmp_path):
    with ocp.CheckpointManager(tmp_path / "m") as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.StandardSave(variables(step)))
    assert_equal(load_orbax(tmp_path / "m"), variables(10))
    assert_equal(load_variables(tmp_path / "m" / "9"), variables(9))


def test_the_variables_of_a_training_state(tmp_path):
    tx = optax.adam(1e-3)
    state = create(variables()["params"], {"batch_stats": {"mean": jnp.ones(3)}}, tx, identity(), jax.random.key(0))
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(5, state)
    assert load_orbax(tmp_path / "run")["step"] == 0
    assert_equal(load_variables(tmp_path / "run"), {"params": state.params, **state.model_state})


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no orbax checkpoint"):
        load_orbax(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        load_orbax(tmp_path / "absent")
