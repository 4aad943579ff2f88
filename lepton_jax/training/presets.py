"""The usual placements by name: all whole, all spread (FSDP), outputs spread (tensor parallel)."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph.roles import weights
from lepton_jax.graph.trace import Apply
from lepton_jax.training.placement import Placement

AnyMesh = Mesh | AbstractMesh
"""Of devices that are there, or are not."""


@checked
def replicated(mesh: AnyMesh) -> Placement:
    """Every parameter whole on every device; only batches are spread.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
      >>> tuple(replicated(mesh).weights({"w": jax.numpy.ones(4)})["w"])
      ()
    """
    return Placement(mesh, {})


@checked
def fsdp(mesh: AnyMesh, *, axis: str = "data") -> Placement:
    """Every parameter of two axes or more is spread over the devices of the batch, along its longest axis that they divide.

    Each device holds its part of parameters, masks and moments; the compiler gathers a weight where it is used.

    Raises:
      ValueError: if the mesh lacks the axis.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
      >>> tuple(fsdp(mesh).weights({"w": jax.numpy.ones((2, 4)), "b": jax.numpy.ones(4)})["w"])
      (None, 'data')

    Source: Rajbhandari et al. 2020, ZeRO, stage 3.
    """
    _need(mesh, axis, "fsdp")

    def spread(path: Path, leaf: Any) -> PartitionSpec:
        shape = jax.numpy.shape(leaf)
        return _along(shape, range(len(shape)) if len(shape) > 1 else (), mesh, axis)

    return Placement(mesh, spread, axis)


@checked
def tensor_parallel(
    mesh: AnyMesh, apply: Apply, variables: PyTree, *inputs: Any, axis: str = "model", **static: Any
) -> Placement:
    """Every weight of a function is spread along its outputs, or along its inputs where the devices do not divide those.

    What is an output follows from what the function does with the weight, in any layout. Biases, scales, tables whose axes
    are not clear, and weights that no axis of theirs divides are whole.

    Args:
      mesh: has the axis; batches are spread over its first other axis, if there is one.
      apply: ``apply(variables, *inputs, **static)``.
      variables: arrays or their shapes; of a mapping with "params" the state's parameters are these alone.
      *inputs: arrays or their shapes.
      axis: of the mesh.
      **static: keywords of `apply`.

    Raises:
      ValueError: if the mesh lacks the axis.

    Example:
      >>> mesh = jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1])
      >>> variables = {"w": jax.numpy.ones((4, 2)), "b": jax.numpy.ones(2)}
      >>> placement = tensor_parallel(mesh, lambda v, x: x @ v["w"] + v["b"][None], variables, jax.numpy.ones((3, 4)))
      >>> {path: tuple(spec) for path, spec in placement.weights(variables).items()}
      {'b': (), 'w': (None, 'model')}

    Source: Shoeybi et al. 2019, Megatron-LM. There every second weight is spread along its inputs, which saves a gather.
    """
    _need(mesh, axis, "tensor_parallel")
    found = weights(apply, variables, *inputs, **static)

    def spread(path: Path, leaf: Any) -> PartitionSpec:
        axes, shape = found.axes(path), jax.numpy.shape(leaf)
        if axes is None or not found(path, leaf):
            return PartitionSpec()
        return _along(shape, axes.outputs, mesh, axis) or _along(shape, axes.inputs, mesh, axis)

    others = [name for name in mesh.axis_names if name != axis]
    return Placement(mesh, spread, others[0] if others else None)


def _along(shape: tuple[int, ...], axes: Any, mesh: AnyMesh, name: str) -> PartitionSpec:
    """Spread the longest of these axes that the devices divide, if there is one."""
    fit = [at for at in axes if shape[at] and shape[at] % mesh.shape[name] == 0]
    best = max(fit, key=lambda at: shape[at], default=None)
    return PartitionSpec() if best is None else PartitionSpec(*(name if at == best else None for at in range(len(shape))))


def _need(mesh: AnyMesh, axis: str, name: str) -> None:
    if axis not in mesh.shape:
        raise ValueError(f"{name}: axis must be one of the mesh, {', '.join(map(str, mesh.axis_names))}; got {axis!r}.")
