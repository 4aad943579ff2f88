"""Data parallel training: the batch is spread over the devices of a mesh, the state is on all of them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.devices import for_mesh
from lepton_jax.core.errors import collect
from lepton_jax.core.transform import Transform
from lepton_jax.graph.lowering import fast_lowering
from lepton_jax.precision.all_reduce import AllReduce
from lepton_jax.precision.loss_scale import LossScale
from lepton_jax.training.arrays import put
from lepton_jax.training.state import TrainState
from lepton_jax.training.step import LossFn, Metrics, TrainStep, step_function


@checked
def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one axis, "data".

    Args:
      devices: by default all there are.

    Example:
      >>> data_mesh(jax.devices()[:1]).axis_names
      ('data',)
    """
    if devices is not None and not len(devices):
        raise ValueError("data_mesh: devices must be one or more, e.g. jax.devices()[:1]; got none.")
    return Mesh(np.array(jax.devices() if devices is None else devices), ("data",))


@checked
def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a whole tree on every device of the mesh: the initial state, before `shard_step`'s first step.

    Args:
      tree: arrays; typed random keys too. In several processes each gives the same.
      mesh: of the devices of one process, or of several.

    Example:
      >>> mesh = data_mesh()
      >>> replicate({"w": 1.0}, mesh)["w"].sharding.is_fully_replicated
      True
    """
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: put(leaf, whole), tree)


@checked
def shard_step(step: TrainStep, mesh: Mesh, *, axis: str = "data") -> TrainStep:
    """Spread each batch over the mesh and keep the state as it lies there; the compiler adds the gradients up.

    A state that a `Placement` put on the mesh stays as it was placed; any other is whole on every device. The result is that
    of one device up to the order of the sums.

    Args:
      step: from `make_train_step`; of a net with depthwise convolutions that several CPUs train, with ``lowering=False``, see
        `lepton_jax.graph.fast_lowering`, or use `parallel_step`.
      mesh: has the axis; of several processes each gives the batch of all (`multihost.joined`), or the whole batch alike, of
        which its devices get their rows.
      axis: the mesh axis that the batches' first axis is spread over.

    Returns:
      A step of the same signature; the state is donated.

    Raises:
      ValueError: if the mesh lacks the axis; at a call with a batch that the axis' devices do not divide.

    Example:
      >>> mesh = data_mesh(jax.devices()[:1])
      >>> step = shard_step(lambda state, batch: (state + batch.sum(), {}), mesh)
      >>> step(replicate(np.float32(1), mesh), np.ones(4, np.float32))[0].item()
      5.0
    """
    if axis not in mesh.shape:
        raise ValueError(f"shard_step: axis must be one of the mesh, {mesh.axis_names}; got {axis!r}.")
    whole, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axis))
    count = mesh.shape[axis]

    def lies(leaf: Any) -> NamedSharding:
        found = getattr(leaf, "sharding", None)
        return found if isinstance(found, NamedSharding) and found.mesh == mesh else whole

    @functools.cache
    def parallel(lying: Any, leaves: tuple[NamedSharding, ...]) -> TrainStep:
        state = jax.tree.unflatten(lying, leaves)
        return jax.jit(for_mesh(step, mesh), in_shardings=(state, spread), out_shardings=(state, whole), donate_argnums=0)

    def sharded(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        with collect(f"a batch is spread over {count} devices, so its first axis must be a multiple of {count}") as problems:
            for path, leaf in paths.flatten(batch).items():
                if not leaf.ndim or leaf.shape[0] % count:
                    problems.append(f"{path}: shape {leaf.shape}")
        if jax.process_count() > 1:
            batch = jax.tree.map(lambda leaf: _shared(leaf, spread), batch)
        leaves, lying = jax.tree.flatten(state)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return step(state, batch)  # the program around says how they lie
        return parallel(lying, tuple(map(lies, leaves)))(state, batch)

    return sharded


def _shared(leaf: Any, spread: NamedSharding) -> Any:
    """Return an array of all processes; of one that this process has whole, its own rows go to its devices."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, spread, lambda rows: whole[rows])


@checked
def parallel_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    transform: Transform,
    mesh: Mesh,
    *,
    reduce: AllReduce,
    loss_scale: LossScale | None = None,
    lowering: bool = True,
) -> TrainStep:
    """Make a data parallel step whose gradients are added up in a way of choice.

    Each device computes the loss of its own rows and its gradients; their mean over the devices is taken by `reduce`. Means
    over a batch must be means (as `classification_loss` makes them), and batch norm uses each device's own rows, its
    running statistics being their mean. With `shard_step` the compiler decides all of this, and sums in the gradients' dtype.

    Args:
      loss_fn: as for `make_train_step`.
      tx: likewise.
      transform: likewise.
      mesh: has the axis of `reduce`.
      reduce: the axis and the dtype of the sums, e.g. ``AllReduce(dtype="bfloat16")``; or a compressed sum of
        `lepton_jax.training.reduce`, `Int8Reduce`, `PowerSgd` or `TopK`, which `create` must have been given too.
      loss_scale: as for `make_train_step`.
      lowering: likewise; each device computes its own rows, so no other form asks another device for any.

    Returns:
      A step of the same signature for a state on all devices (`replicate`, or `create` with the placement `replicated`); the
      state is donated.

    Raises:
      ValueError: if the mesh lacks the axis; at a call with a batch that the axis' devices do not divide.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import identity
      >>> from lepton_jax.training import create
      >>> loss_fn = lambda params, model_state, batch, key: (jnp.mean(params["w"] * batch), (model_state, {}))
      >>> mesh = data_mesh()
      >>> step = parallel_step(loss_fn, optax.sgd(1.0), identity(), mesh, reduce=AllReduce(dtype="bfloat16"))
      >>> state = replicate(create({"w": jnp.float32(3)}, {}, optax.sgd(1.0), identity(), jax.random.key(0)), mesh)
      >>> step(state, np.ones(mesh.size, np.float32))[0].params["w"].item()
      2.0
    """
    if reduce.axis not in mesh.shape:
        raise ValueError(f"parallel_step: reduce.axis must be an axis of the mesh, {mesh.axis_names}; got {reduce.axis!r}.")
    step = step_function(loss_fn, tx, transform, loss_scale, reduce)
    step = fast_lowering(step) if lowering else step
    fields: dict[str, Any] = dict.fromkeys(TrainState._fields, PartitionSpec()) | {"reduction": reduce.specs()}
    same, rows = TrainState(**fields), PartitionSpec(reduce.axis)
    # Without the check of replication: with it, jax would add the gradients up itself, in float32.
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(same, rows), out_specs=(same, PartitionSpec()), check_vma=False)

    def local(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        reduce.check(state.reduction)
        return mapped(state, batch)

    return shard_step(local, mesh, axis=reduce.axis)
