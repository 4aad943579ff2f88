"""Flax NNX modules: as pure functions for everything here, and trained in place by their own optimiser."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.kinds import described
from lepton_jax.core.paths import flatten
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, ModelApply, PyTree
from lepton_jax.training.step import Metrics

if TYPE_CHECKING:
    from flax import nnx

NnxLossFn = Callable[[Any, Any], tuple[Array, Metrics]]
"""``(module, batch) -> (loss, metrics)``; it may change the module's statistics and random streams."""


@checked
def nnx_apply(module: Any) -> ModelApply:
    """Return an NNX module as a `ModelApply`; as `linen_apply`, its parameters and state are given at every call.

    They are ``graph, params, model_state = nnx.split(module, nnx.Param, ...)``. In training the module is in train mode, and
    the state that it leaves (batch statistics) is returned. With a key its random streams begin from that, at every call,
    and are returned as they were; without one they go on. Otherwise it is in eval mode, and the state stays as it is.

    Args:
      module: a `flax.nnx.Module`; it is not changed.

    Raises:
      TypeError: for anything else.

    Example:
      >>> from flax import nnx
      >>> module = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> _, params, model_state = nnx.split(module, nnx.Param, ...)
      >>> x = jax.numpy.ones((4, 2))
      >>> _, model_state = nnx_apply(module)(params, model_state, x, train=True, key=None)
      >>> bool((model_state["mean"][...] > 0).all()), module.mean[...].tolist()
      (True, [0.0, 0.0])
    """
    from flax import nnx  # not needed for models of other kinds

    _check_module("nnx_apply", module)
    graph, _, _ = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    def apply(params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None) -> tuple[Array, PyTree]:
        # Copied, since a transformation around this call may not see its variables change.
        given = model_state if key is None or not train else _reseeded(model_state, key)
        copied = nnx.merge(graph, params, given, copy=True)
        if not train:
            copied.eval()
            return copied(inputs), model_state
        copied.train()
        outputs = copied(inputs)
        _, _, left = nnx.split(copied, nnx.Param, ...)  # type: ignore[misc]
        return outputs, left if key is None else _with_streams_of(left, model_state)

    return apply


@checked
def nnx_begin(module: Any, transform: Transform) -> Any:
    """Begin to train an NNX module under a transform; return the transform's state.

    Args:
      module: a `flax.nnx.Module`; its parameters become the masters.
      transform: one that leaves parameters their shapes.

    Raises:
      TypeError: for no NNX module.
      ValueError: for a transform that re-parametrises leaves (learned steps, factors), with each such leaf.

    Example:
      >>> from flax import nnx
      >>> import lepton_jax as lepton
      >>> tstate = nnx_begin(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), lepton.prune(0.5))
    """
    from flax import nnx

    _check_module("nnx_begin", module)
    params = nnx.state(module, nnx.Param)
    masters, tstate = transform.init(params)
    before, after = ({path: (leaf.shape, leaf.dtype) for path, leaf in flatten(tree).items()} for tree in (params, masters))
    with collect(
        "nnx_begin: the transform must leave the parameters of a module their shapes; train this one by `nnx_apply`, `create` "
        "and `make_train_step`, which hold the parameters themselves"
    ) as problems:
        problems += [f"{path}: would be another leaf" for path in {**before, **after} if before.get(path) != after.get(path)]
    nnx.update(module, masters)
    return tstate


@checked
def make_nnx_step(loss_fn: NnxLossFn, transform: Transform) -> Callable[[Any, "nnx.Optimizer", Any, Any], tuple[Any, Metrics]]:
    """Make a training step that changes an NNX module and its optimiser in place, as NNX users write it.

    ``grads = d loss_fn(module with view(params)) / d params``; then ``optimizer.update(module, grads)``; then
    ``transform.update``. Compiled once for all modules of one structure.

    Args:
      loss_fn: ``(module, batch) -> (loss, metrics)``; the module has the parameters as seen. What it changes in its other
        variables (batch statistics, counts of random streams) is kept.
      transform: the view to train under, begun by `nnx_begin`.

    Returns:
      ``step(module, optimizer, tstate, batch) -> (tstate, metrics)``, with the loss under "loss". The optimiser is an
      ``nnx.Optimizer(module, tx, wrt=nnx.Param)``; one that takes such things is given ``value=loss`` and ``tstate=``.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> import lepton_jax as lepton, optax
      >>> module = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> transform = lepton.prune(0.5)
      >>> tstate = nnx_begin(module, transform)
      >>> optimizer = nnx.Optimizer(module, optax.sgd(0.5), wrt=nnx.Param)
      >>> step = make_nnx_step(lambda m, x: (jnp.mean((m(x) - 1) ** 2), {}), transform)
      >>> for _ in range(20):
      ...     tstate, metrics = step(module, optimizer, tstate, jnp.ones((3, 2)))
      >>> float(metrics["loss"]) < 1e-6, int((transform.view(nnx.state(module, nnx.Param), tstate)["kernel"][...] == 0).sum())
      (True, 1)
    """
    from functools import partial

    import optax
    from flax import nnx

    @partial(jax.jit, static_argnums=(0, 1))
    def pure(graph: Any, opt_graph: Any, variables: Any, opt_state: Any, tstate: Any, batch: Any) -> Any:
        params, rest = variables
        optimizer = nnx.merge(opt_graph, opt_state, copy=True)
        number = optimizer.step[...]

        def seen(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
            module = nnx.merge(graph, transform.view(params, tstate), rest, copy=True)
            loss, metrics = loss_fn(module, batch)
            return loss, (metrics, nnx.split(module, optimizer.wrt, ...)[-1])

        (loss, (metrics, rest)), grads = jax.value_and_grad(seen, has_aux=True)(params)
        module = nnx.merge(graph, params, rest, copy=True)
        extra = {"value": loss, "tstate": tstate} if isinstance(optimizer.tx, optax.GradientTransformationExtraArgs) else {}
        optimizer.update(module, grads, **extra)
        params, tstate = transform.update(nnx.state(module, optimizer.wrt), tstate, grads, number)
        return (params, rest), nnx.split(optimizer)[1], tstate, {"loss": loss, **metrics}

    def step(module: Any, optimizer: "nnx.Optimizer", tstate: Any, batch: Any) -> tuple[Any, Metrics]:
        graph, *variables = nnx.split(module, optimizer.wrt, ...)
        opt_graph, opt_state = nnx.split(optimizer)
        variables, opt_state, tstate, metrics = pure(graph, opt_graph, tuple(variables), opt_state, tstate, batch)
        nnx.update(module, *variables)
        nnx.update(optimizer, opt_state)
        return tstate, metrics

    return step


def _check_module(name: str, module: Any) -> None:
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise TypeError(f"{name}: module must be a flax.nnx.Module; got {described(module)}.")


def _reseeded(model_state: PyTree, key: Array) -> PyTree:
    """The state with every random stream begun from a key of its own."""
    from flax import nnx

    flat = nnx.to_flat_state(model_state)
    streams = [path for path, variable in flat if isinstance(variable, nnx.RngKey)]
    keys = {path: jax.random.fold_in(key, number) for number, path in enumerate(streams)}
    new = [(path, variable.replace(keys[path]) if path in keys else variable) for path, variable in flat]
    return nnx.from_flat_state(new)


def _with_streams_of(model_state: PyTree, before: PyTree) -> PyTree:
    """The state with the random streams of an earlier one."""
    from flax import nnx

    old = dict(nnx.to_flat_state(before))
    flat = nnx.to_flat_state(model_state)
    return nnx.from_flat_state([(path, old[path] if isinstance(v, nnx.RngState) else v) for path, v in flat])
