"""Data parallel training: the batch is spread over the devices of a mesh, the state is on all of them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lepton_jax import paths
from lepton_jax.errors import collect
from lepton_jax.training.state import TrainState
from lepton_jax.training.step import Metrics, TrainStep


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of one axis, "data".

    Args:
      devices: by default all there are.

    Example:
      >>> data_mesh(jax.devices()[:1]).axis_names
      ('data',)
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), ("data",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a whole tree on every device of the mesh: the initial state, before `shard_step`'s first step.

    Example:
      >>> mesh = data_mesh()
      >>> replicate({"w": 1.0}, mesh)["w"].sharding.is_fully_replicated
      True
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_step(step: TrainStep, mesh: Mesh, *, axis: str = "data") -> TrainStep:
    """Spread each batch over the mesh and keep the state on all devices; the compiler adds the gradients up.

    The result is that of one device up to the order of the sums.

    Args:
      step: from `make_train_step`.
      mesh: has the axis.
      axis: the mesh axis that the batches' first axis is spread over.

    Returns:
      A step of the same signature; the state is donated.

    Raises:
      ValueError: at a call with a batch that the axis' devices do not divide.

    Example:
      >>> mesh = data_mesh(jax.devices()[:1])
      >>> step = shard_step(lambda state, batch: (state + batch.sum(), {}), mesh)
      >>> step(replicate(np.float32(1), mesh), np.ones(4, np.float32))[0].item()
      5.0
    """
    whole, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axis))
    parallel = jax.jit(step, in_shardings=(whole, spread), out_shardings=whole, donate_argnums=0)
    count = mesh.shape[axis]

    def sharded(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        with collect(f"a batch is spread over {count} devices, so its first axis must be a multiple of {count}") as problems:
            for path, leaf in paths.flatten(batch).items():
                if not leaf.ndim or leaf.shape[0] % count:
                    problems.append(f"{path}: shape {leaf.shape}")
        return parallel(state, batch)

    return sharded
