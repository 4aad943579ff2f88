"""What compressed sums of gradients share: each device keeps what it did not send, and adds it to the next gradient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lepton_jax.core import paths
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.precision.all_reduce import AllReduce

Leaves = dict[Path, Array]


class EachDevice(NamedTuple):
    """Arrays that differ from device to device: axis 0 counts the devices, and is spread over them.

    A checkpoint goes on with another number of devices (`regrouped`).
    """

    values: Leaves


class ReduceState(NamedTuple):
    """What a `Compressed` sum keeps from step to step.

    Attributes:
      errors: by path, float32 [devices, *shape]: each device's share of what was not sent yet.
      shared: by path, what is the same on all devices.
    """

    errors: EachDevice
    shared: Leaves


@dataclass(frozen=True, kw_only=True)
class Compressed(AllReduce):
    """The base of sums that send less than they are given, with error feedback.

    Device i of n has the gradient g_i and the error e_i. Of its share ``a_i = g_i / n + e_i`` it sends what the method sends;
    all devices get the same sum s, and each keeps an e_i, so that nothing is lost::

        s + sum_i e_i = sum_i a_i

    Leaves that the method does not take are summed whole, in `dtype`.

    Args:
      dtype: of the leaves that are summed whole.
      axis: of the devices' mesh.

    Source: Karimireddy et al. 2019, "Error feedback fixes SignSGD and other gradient compression schemes", algorithm 2.
    """

    def takes(self, leaf: Any) -> bool:
        """Whether a leaf is compressed; leaves that are not floating never are."""
        return True

    def begin(self, leaves: Leaves) -> Leaves:
        """Return what is shared at first."""
        return {}

    def exchange(self, shares: Leaves, shared: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        """Return the sums over devices, what each device keeps back, and what is shared."""
        raise NotImplementedError

    @property
    def remembers(self) -> bool:
        """Whether the sum has a state."""
        return True

    def init(self, params: PyTree, devices: int) -> ReduceState:
        """Return the first state: no errors."""
        found = {p: leaf for p, leaf in paths.flatten(params).items() if paths.is_floating(leaf) and self.takes(leaf)}
        errors = {path: jnp.zeros((devices, *leaf.shape), jnp.float32) for path, leaf in found.items()}
        return ReduceState(EachDevice(errors), self.begin(found))

    def check(self, state: Any) -> None:
        """Raise unless the state is of such a sum."""
        if not isinstance(state, ReduceState):
            name = type(self).__name__
            raise ValueError(f"{name}: the state holds no errors; make it with create(..., reduce={name}(...), placement=...).")

    def specs(self) -> Any:
        """How the state is spread over the devices."""
        return ReduceState(PartitionSpec(self.axis), PartitionSpec())  # type: ignore[arg-type]

    def reduce(self, grads: PyTree, state: Any) -> tuple[PyTree, Any]:
        """Return the mean of the devices' gradients, nearly, and the state."""
        count, leaves = jax.lax.axis_size(self.axis), paths.flatten(grads)
        mine = {path: error[0] for path, error in state.errors.values.items()}
        shares = {path: leaves[path].astype(jnp.float32) / count + error for path, error in mine.items()}
        sums, errors, shared = self.exchange(shares, state.shared)
        whole = self.gradients({path: leaf for path, leaf in leaves.items() if path not in shares})
        sums = {path: leaf.astype(leaves[path].dtype) for path, leaf in sums.items()}
        kept = EachDevice({path: error[None] for path, error in errors.items()})
        return paths.replace(grads, {**whole, **sums}), ReduceState(kept, shared)


def lies(state: Any, reduce: AllReduce, mesh: Mesh) -> Any:
    """Return how the state of a sum lies on a mesh.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
      >>> lies((), AllReduce(), mesh)
      ()
    """
    if not isinstance(state, ReduceState):
        return state
    each, same = NamedSharding(mesh, PartitionSpec(reduce.axis)), NamedSharding(mesh, PartitionSpec())
    return ReduceState(jax.tree.map(lambda _: each, state.errors), jax.tree.map(lambda _: same, state.shared))


def as_saved(template: PyTree, described: Mapping[Path, str]) -> PyTree:
    """Return a template of a state as it was saved, perhaps on another number of devices.

    Args:
      template: of the state to be.
      described: of what was saved: ``{path: 'float32[4,2]'}``.

    Example:
      >>> template = {"errors": EachDevice({"w": jnp.zeros((2, 3))})}
      >>> as_saved(template, {"errors/values/w": "float32[4,3]"})["errors"].values["w"].shape
      (4, 3)
    """

    def saved(key_path: Any, node: Any) -> Any:
        if not isinstance(node, EachDevice):
            return node
        start = paths.path_str(key_path)
        found: dict[Path, Any] = {}
        for path, leaf in node.values.items():
            said = described.get(f"{start}/values/{path}".removeprefix("/"), "")
            count = int(number[0]) if (number := re.findall(r"\d+", said.partition("[")[2])) else leaf.shape[0]
            found[path] = leaf if count == leaf.shape[0] else jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
        return EachDevice(found)

    return jax.tree_util.tree_map_with_path(saved, template, is_leaf=lambda node: isinstance(node, EachDevice))


def regrouped(arrays: Mapping[Path, Any], template: PyTree) -> dict[Path, Any]:
    """Return what was saved for as many devices as the template has; the sum over the devices stays.

    Fewer devices that divide the old number get the sums of neighbours; in any other case each gets the same part of the sum.

    Args:
      arrays: of the saved state, by path.
      template: of the state to be.

    Example:
      >>> saved = {"errors/values/w": np.arange(4, dtype=np.float32)[:, None]}
      >>> regrouped(saved, {"errors": EachDevice({"w": jnp.zeros((2, 1))})})["errors/values/w"].tolist()
      [[1.0], [5.0]]
      >>> regrouped(saved, {"errors": EachDevice({"w": jnp.zeros((3, 1))})})["errors/values/w"].tolist()
      [[2.0], [2.0], [2.0]]
    """
    sizes = {path: leaf.shape[0] for path, leaf in paths.flatten(template).items() if leaf.shape}
    moved = {p: _regrouped(array, sizes[p]) for p, array in arrays.items() if p in sizes and len(array) != sizes[p]}
    return {**arrays, **moved}


def _regrouped(array: Any, count: int) -> Any:
    old = np.asarray(array)
    if len(old) % count == 0:
        return old.reshape(count, len(old) // count, *old.shape[1:]).sum(1, dtype=old.dtype)
    return np.broadcast_to(old.sum(0, keepdims=True) / np.float32(count), (count, *old.shape[1:])).astype(old.dtype)
