"""Factors in training: resumed bit for bit, and distilled from the dense model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax import chain, low_rank, prune
from lepton_jax.distillation import soft_targets
from lepton_jax.lowrank import TrainSvd, Tucker2
from lepton_jax.training import Checkpoints, create


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)


def apply(params: dict, x: jax.Array) -> jax.Array:
    for name in ("a", "b"):
        x = jnp.tanh(jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return x.mean((1, 2)) @ params["c"]


PARAMS = {"a": draw(3, 3, 2, 5), "b": draw(3, 3, 5, 6), "c": draw(6, 3)}
TRANSFORM = chain(
    low_rank((2, 3), method=Tucker2(iterations=1), select="a"),
    low_rank(2, method=TrainSvd(), select="b"),
    low_rank(2, select="c"),
    prune(0.3),
)
X, TX = draw(4, 6, 6, 2), optax.adam(3e-2)


def soft_loss(params: dict, tstate: object) -> jax.Array:
    """Of the student against the dense model, which is its teacher."""
    return jnp.mean(soft_targets(apply(TRANSFORM.view(params, tstate), X), apply(PARAMS, X), 2.0))


@jax.jit
def train(state: object) -> tuple[object, jax.Array]:
    value, grads = jax.value_and_grad(soft_loss)(state.params, state.tstate)
    updates, opt_state = TX.update(grads, state.opt_state, state.params)
    params, tstate = TRANSFORM.update(optax.apply_updates(state.params, updates), state.tstate, grads, state.step)
    return state._replace(params=params, tstate=tstate, opt_state=opt_state, step=state.step + 1), value


def test_factors_learn_from_the_dense_model_and_resume_bit_for_bit(tmp_path) -> None:
    state = jax.jit(lambda params, key: create(params, {}, TX, TRANSFORM, key))(PARAMS, jax.random.key(0))
    moments, _ = jax.tree.flatten(state.opt_state[0].mu)
    assert [m.shape for m in moments] == [part.shape for part in jax.tree.leaves(state.params)]
    blank = jax.tree.map(lambda leaf: leaf, state)
    state, first = train(state)
    for _ in range(30):
        state, value = train(state)
    assert value < 0.5 * first
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(31, state)
    with Checkpoints(tmp_path) as checkpoints:
        found, _ = checkpoints.restore(blank)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for _ in range(3):
        state, found = train(state)[0], train(found)[0]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state)):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
