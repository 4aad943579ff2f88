"""Gradients added up over four devices in float32 and in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import identity
from lepton_jax.graph.trace import walk
from lepton_jax.precision import AllReduce, DynamicScale
from lepton_jax.training import create, data_mesh, make_train_step, parallel_step, replicate

RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(24, 6)).astype(np.float32), "y": RNG.normal(size=(24, 3)).astype(np.float32)}


def loss_fn(params: dict, model_state: dict, batch: dict, key: jax.Array) -> tuple:
    error = batch["x"] @ params["w"] - batch["y"]
    return jnp.mean(error**2), ({"mean": jnp.mean(batch["x"])}, {"noise": jax.random.normal(key)})


def begin(loss_scale: DynamicScale | None = None) -> object:
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)}
    return create(params, {"mean": jnp.float32(0)}, optax.sgd(1.0), identity(), jax.random.key(0), loss_scale=loss_scale)


def psums(step: object, state: object) -> set[str]:
    """The dtypes of the matrices that are added up over devices."""
    jaxpr = jax.make_jaxpr(lambda s, b: step(s, b))(state, BATCH)
    inner = [eqn.params["jaxpr"] for eqn in walk(jaxpr) if eqn.primitive == "shard_map"]
    found = [eqn for one in inner for eqn in walk(one) if eqn.primitive.startswith("psum")]
    return {aval.dtype.name for eqn in found for aval in eqn.in_avals if aval.shape == (6, 3)}


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("bfloat16", 8)])
def test_four_devices_equal_one_to_the_bits_of_the_sum(dtype: str, bits: int) -> None:
    mesh = data_mesh()
    assert mesh.size == 4
    tx = optax.sgd(1.0)
    step = parallel_step(loss_fn, tx, identity(), mesh, reduce=AllReduce(dtype=dtype))
    assert psums(step, begin()) == {dtype}
    four, metrics = step(replicate(begin(), mesh), BATCH)
    one, expected = make_train_step(loss_fn, tx, identity())(begin(), BATCH)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(four.model_state["mean"], one.model_state["mean"], rtol=1e-5)
    shares = [
        np.asarray(
            jax.grad(lambda p, i=i: loss_fn(p, {}, jax.tree.map(lambda v: v[6 * i : 6 * i + 6], BATCH), one.key)[0])(
                begin().params
            )["w"]
        )
        for i in range(4)
    ]
    bound = 4 * 2.0**-bits * sum(np.abs(share) / 4 for share in shares) + 1e-6
    error = np.abs(np.asarray(four.params["w"], np.float64) - np.asarray(one.params["w"]))
    assert (error <= bound).all()
    if dtype == "bfloat16":
        assert error.max() > 1e-5, "rounded sums differ"
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(four))


def test_one_device_that_overflows_skips_the_step_on_all() -> None:
    mesh, settings = data_mesh(), DynamicScale(initial=16.0)
    reduce = AllReduce(dtype="bfloat16")
    step = parallel_step(loss_fn, optax.sgd(1.0), identity(), mesh, reduce=reduce, loss_scale=settings)
    bad = {**BATCH, "x": BATCH["x"].copy()}
    bad["x"][20, 0] = np.inf  # the last device's
    before = np.asarray(begin().params["w"])
    state, metrics = step(replicate(begin(settings), mesh), bad)
    np.testing.assert_array_equal(state.params["w"], before)
    assert (metrics["skipped"].item(), state.loss_scale.scale.item()) == (1.0, 8.0)


def test_misuse() -> None:
    with pytest.raises(ValueError, match=r"reduce.axis must be an axis of the mesh, \('data',\); got 'model'"):
        parallel_step(loss_fn, optax.sgd(1.0), identity(), data_mesh(), reduce=AllReduce(axis="model"))
    with pytest.raises(TypeError, match="AllReduce: dtype must be floating"):
        AllReduce(dtype="int32")
