"""The compiler finds a way from layout to layout: it says so where it must make a whole array and cut it up again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import prune
from lepton_jax.core import schedules
from lepton_jax.pruning.sparse_training import rigl
from lepton_jax.training import Checkpoints, FitSettings, create, data_mesh, fit, fsdp, make_train_step, tensor_parallel


def apply(params, x):
    def layer(h, w):
        return h + jnp.tanh(h @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x, params["layers"])[0] @ params["head"]


def loss_fn(params, model_state, batch, key):
    return jnp.mean(apply(params, batch) ** 2), (model_state, {})


def weights():
    draw = np.random.default_rng(0).normal
    layers = {"up": draw(size=(2, 32, 16)), "down": draw(size=(2, 16, 32))}
    return jax.tree.map(jnp.float32, {"layers": layers, "head": draw(size=(32, 8))})


@pytest.fixture
def compiled_anew():
    """What was compiled in another run says nothing."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("kind", ["prune", "rigl"])
@pytest.mark.parametrize("layout", ["fsdp", "tensor_parallel"])
def test_masks_are_made_where_weights_are_spread(kind, layout, tmp_path, capfd):
    """From two devices to four, with new masks on both."""
    params, late = weights(), schedules.polynomial(0.7, begin=0, end=3)
    transform = prune(late, scope="global") if kind == "prune" else rigl(0.7, jax.random.key(3), end=9, interval=1)
    square = jax.make_mesh((2, 2), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4])
    wide = fsdp(data_mesh(jax.devices()[:4])) if layout == "fsdp" else tensor_parallel(square, apply, params, jnp.ones((8, 32)))
    tx = optax.adam(1e-2)
    step = make_train_step(loss_fn, tx, transform, lowering=False)
    for steps, placement in ((1, fsdp(data_mesh(jax.devices()[:2]))), (2, wide)):
        state = create(params, {}, tx, transform, jax.random.key(0), placement=placement)
        settings = FitSettings(steps=steps, checkpoint_every=1, progress=False)
        with Checkpoints(tmp_path, run="a") as checkpoints:
            batch = np.ones((8, 32), np.float32)
            state = fit(state, step, lambda _: batch, settings, checkpoints=checkpoints, resume=True, placement=placement)  # noqa: B023
    assert int(state.step) == 2
    said = capfd.readouterr().err
    assert "nvoluntary full rematerialization" not in said, said
