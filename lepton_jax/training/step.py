"""The training step: value_and_grad through the transform's view, the optimiser, the transform's update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core.arguments import checked
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.graph.lowering import fast_lowering
from lepton_jax.precision.all_reduce import AllReduce
from lepton_jax.precision.loss_scale import LossScale, all_finite, keep_unless, scaled, unscaled
from lepton_jax.training.state import TrainState

Metrics = dict[str, Array]
LossFn = Callable[[PyTree, PyTree, Any, Array], tuple[Array, tuple[PyTree, Metrics]]]
"""``(params as seen, model_state, batch, key) -> (loss, (new model_state, metrics))``."""
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


@checked
def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    transform: Transform,
    *,
    loss_scale: LossScale | None = None,
    lowering: bool = True,
) -> TrainStep:
    """Make the jitted training step.

    ``grads = d loss_fn(view(params)) / d params``; then `tx`, then ``transform.update(params, tstate, grads, step)``.
    Traced once over a run; the state that is passed in is donated, so use the one that comes out. Whether a loss is finite
    is looked at by the loop (`fit`), not in the step: there it would cost a tenth of a small model's step.

    With loss scaling the scaled loss is differentiated and the gradients are unscaled before `tx` has them, so that clipping
    and accumulation (`optax.MultiSteps`) see true sizes. A step whose loss or gradients are not finite changes nothing but the
    scale and the step's number: parameters, optimiser, model state and transform stay as they were.

    Args:
      loss_fn: ``(params as seen, model_state, batch, key) -> (loss, (model_state, metrics))``; metrics are scalars by name.
      tx: the optimiser, for the masters. It is given ``value=loss`` and ``tstate=``, the transform's state, if it takes such
        things (`lepton_jax.pruning.sparse_training.masked_moments` takes the latter).
      transform: the view to train under.
      loss_scale: a `lepton_jax.precision.DynamicScale`, `StaticScale` or `NoScale`, which `create` must have been given too;
        None neither scales nor skips, and costs nothing.
      lowering: compute what XLA on CPU is slow at in other forms, by `lepton_jax.graph.fast_lowering`; a step without such
        operations is what it is without. False leaves all as it was written.

    Returns:
      ``step(state, batch) -> (state, metrics)``; metrics has the loss (unscaled) under "loss" and, with loss scaling, the
      scale that the step used under "loss_scale", whether it was skipped under "skipped" (0 or 1), and how many were so far
      under "skipped_steps".

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
    step = step_function(loss_fn, tx, transform, loss_scale)
    return jax.jit(fast_lowering(step) if lowering else step, donate_argnums=0)


@checked
def step_function(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    transform: Transform,
    loss_scale: LossScale | None = None,
    reduce: AllReduce | None = None,
) -> TrainStep:
    """Return what `make_train_step` compiles, for wrapping it otherwise (`parallel_step`).

    Args:
      loss_fn: as there.
      tx: as there.
      transform: as there.
      loss_scale: as there.
      reduce: how the devices' gradients become one, where the step runs on each device by itself.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import identity
      >>> from lepton_jax.training import create
      >>> loss_fn = lambda params, model_state, batch, key: (jnp.sum((params["w"] - batch) ** 2), (model_state, {}))
      >>> state = create({"w": jnp.zeros(2)}, {}, optax.sgd(0.25), identity(), jax.random.key(0))
      >>> state, _ = step_function(loss_fn, optax.sgd(0.25), identity())(state, jnp.array([2.0, 4.0]))
      >>> state.params["w"].tolist()
      [1.0, 2.0]
    """
    tx = optax.with_extra_args_support(tx)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if reduce is not None:
            key = reduce.own(key)

        def seen(params: PyTree) -> tuple[Array, tuple[Array, PyTree, Metrics]]:
            loss, (model_state, metrics) = loss_fn(transform.view(params, state.tstate), state.model_state, batch, key)
            return scaled(loss, state.loss_scale) if loss_scale is not None else loss, (loss, model_state, metrics)

        (_, (loss, model_state, metrics)), grads = jax.value_and_grad(seen, has_aux=True)(state.params)
        # What a sum keeps from step to step is kept unscaled, since scales change.
        early = reduce is not None and reduce.remembers
        reduction = state.reduction
        if loss_scale is not None and early:
            grads = unscaled(grads, state.loss_scale)
        if reduce is not None:
            grads, reduction = reduce.reduce(grads, reduction)
            loss, model_state, metrics = reduce.values((loss, model_state, metrics))
        if loss_scale is not None and not early:
            grads = unscaled(grads, state.loss_scale)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss, tstate=state.tstate)
        params = optax.apply_updates(state.params, updates)
        params, tstate = transform.update(params, state.tstate, grads, state.step)
        new = TrainState(state.step + 1, params, model_state, opt_state, tstate, state.key, state.loss_scale, reduction)
        metrics = {"loss": loss, **metrics}
        return (new, metrics) if loss_scale is None else _settled(loss_scale, state, new, metrics, all_finite((loss, grads)))

    return step


def _settled(
    loss_scale: LossScale, old: TrainState, new: TrainState, metrics: Metrics, finite: Array
) -> tuple[TrainState, Metrics]:
    """Take the step if it was finite, else skip it whole; move the scale on."""
    scaling = loss_scale.update(old.loss_scale, finite)
    kept = keep_unless(finite, new._replace(loss_scale=()), old._replace(step=new.step, loss_scale=()))
    metrics = {
        **metrics,
        "loss_scale": old.loss_scale.scale,
        "skipped": 1.0 - finite.astype(jnp.float32),
        "skipped_steps": scaling.skipped,
    }
    return kept._replace(loss_scale=scaling), metrics


@checked
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
