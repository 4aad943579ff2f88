"""The training step: value_and_grad through the transform's view, the optimiser, the transform's update."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from lepton_jax.training.state import TrainState
from lepton_jax.transform import Transform
from lepton_jax.typing import Array, PyTree

Metrics = dict[str, Array]
LossFn = Callable[[PyTree, PyTree, Any, Array], tuple[Array, tuple[PyTree, Metrics]]]
"""``(params as seen, model_state, batch, key) -> (loss, (new model_state, metrics))``."""
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_train_step(loss_fn: LossFn, tx: optax.GradientTransformation, transform: Transform) -> TrainStep:
    """Make the jitted training step.

    ``grads = d loss_fn(view(params)) / d params``; then `tx`, then ``transform.update(params, tstate, grads, step)``.
    Traced once over a run; the state that is passed in is donated, so use the one that comes out. Whether a loss is finite
    is looked at by the loop (`fit`), not in the step: there it would cost a tenth of a small model's step.

    Args:
      loss_fn: ``(params as seen, model_state, batch, key) -> (loss, (model_state, metrics))``; metrics are scalars by name.
      tx: the optimiser, for the masters. It is given ``value=loss`` and ``tstate=``, the transform's state, if it takes such
        things (`lepton_jax.pruning.sparse_training.masked_moments` takes the latter).
      transform: the view to train under.

    Returns:
      ``step(state, batch) -> (state, metrics)``; metrics has the loss under "loss".

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import identity
      >>> from lepton_jax.training import create
      >>> loss_fn = lambda params, model_state, batch, key: (jnp.sum((params["w"] - batch) ** 2), (model_state, {}))
      >>> step = make_train_step(loss_fn, optax.sgd(0.25), identity())
      >>> state = create({"w": jnp.zeros(2)}, {}, optax.sgd(0.25), identity(), jax.random.key(0))
      >>> state, metrics = step(state, jnp.array([2.0, 4.0]))
      >>> state.params["w"].tolist(), metrics["loss"].item(), int(state.step)
      ([1.0, 2.0], 20.0, 1)
    """
    tx = optax.with_extra_args_support(tx)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)

        def seen(params: PyTree) -> tuple[Array, tuple[PyTree, Metrics]]:
            return loss_fn(transform.view(params, state.tstate), state.model_state, batch, key)

        (loss, (model_state, metrics)), grads = jax.value_and_grad(seen, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss, tstate=state.tstate)
        params = optax.apply_updates(state.params, updates)
        params, tstate = transform.update(params, state.tstate, grads, state.step)
        return TrainState(state.step + 1, params, model_state, opt_state, tstate, state.key), {"loss": loss, **metrics}

    return jax.jit(step, donate_argnums=0)


def make_scan_steps(step: TrainStep, count: int) -> TrainStep:
    """Make a function that takes `count` steps in one dispatch, by `jax.lax.scan`.

    For small dense models, where the dispatch is a good part of a step. Not for convolutions: inside a scan XLA runs them
    about ten times slower on CPU.

    Args:
      step: from `make_train_step`.
      count: steps a call, at least 1.

    Returns:
      ``steps(state, batches) -> (state, metrics)``: the leaves of `batches` and `metrics` have a leading axis of `count`.

    Raises:
      ValueError: if count is not at least 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import identity
      >>> from lepton_jax.training import create
      >>> loss_fn = lambda params, model_state, batch, key: (jnp.sum((params["w"] - batch) ** 2), (model_state, {}))
      >>> steps = make_scan_steps(make_train_step(loss_fn, optax.sgd(0.25), identity()), 3)
      >>> state = create({"w": jnp.zeros(())}, {}, optax.sgd(0.25), identity(), jax.random.key(0))
      >>> state, metrics = steps(state, jnp.full(3, 4.0))
      >>> state.params["w"].item(), metrics["loss"].tolist()
      (3.5, [16.0, 4.0, 1.0])
    """
    if count < 1:
        raise ValueError(f"make_scan_steps: count must be at least 1; got {count}.")
    return jax.jit(lambda state, batches: jax.lax.scan(step, state, batches, length=count), donate_argnums=0)
