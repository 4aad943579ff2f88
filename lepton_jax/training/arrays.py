"""A training state as plain host arrays by path, and back: what checkpoints store and failures are traced from."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Path, PyTree


@checked
def to_arrays(tree: PyTree) -> dict[Path, Any]:
    """Copy every leaf to the host; random keys become their data.

    The copies share nothing with the state, so that the state can be donated while they are written. A leaf that is spread
    over several processes stays a `jax.Array`, copied on its devices.

    Args:
      tree: a `TrainState` or any pytree of arrays.

    Returns:
      ``{path: array}``, in the tree's order.

    Raises:
      ValueError: if two leaves have the same path.

    Example:
      >>> to_arrays({"a": jax.numpy.ones(2), "key": jax.random.key(7)})
      {'a': array([1., 1.], dtype=float32), 'key': array([0, 7], dtype=uint32)}
    """
    return {path: _host_copy(leaf) for path, leaf in paths.flatten(tree).items()}


@checked
def from_arrays(arrays: Mapping[Path, Any], template: PyTree) -> PyTree:
    """Put arrays in the places of the template's leaves, with its shardings; keys become keys again.

    Args:
      arrays: from `to_arrays`.
      template: a tree of the same paths, shapes and dtypes; its values are not read (they may have been donated).

    Raises:
      ValueError: with every path that is missing, unknown, or of another shape or dtype.

    Example:
      >>> tree = {"w": jax.numpy.ones(2)}
      >>> from_arrays(to_arrays(tree), tree)
      {'w': Array([1., 1.], dtype=float32)}
    """
    check_same(describe(arrays), template)

    def place(key_path: Any, leaf: Any) -> Any:
        value = arrays[paths.path_str(key_path)]
        # On CPU the device may use the host array's memory as its own: give it a copy that no one else has.
        value = value if isinstance(value, jax.Array) else np.array(value)
        if _is_key(leaf):
            return jax.random.wrap_key_data(jax.device_put(value, leaf.sharding), impl=jax.random.key_impl(leaf))
        return jax.device_put(value, getattr(leaf, "sharding", None))

    return jax.tree_util.tree_map_with_path(place, template)


def put(leaf: Any, sharding: jax.sharding.Sharding) -> Any:
    """Put a leaf where it belongs; of a typed random key its data, since jax puts no key on devices of several processes.

    Example:
      >>> here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      >>> put(jax.random.key(3), here), put(1.0, here).item()
      (Array((), dtype=key<fry>) overlaying:
      [0 3], 1.0)
    """
    if _is_key(leaf):
        return jax.random.wrap_key_data(
            jax.device_put(_local(jax.random.key_data(leaf)), sharding), impl=jax.random.key_impl(leaf)
        )
    return jax.device_put(_local(leaf), sharding)


def _local(leaf: Any) -> Any:
    """Take what lies in this process alone to the host: of several processes each has its own, on a device of its own."""
    alone = jax.process_count() > 1 and isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return np.asarray(leaf) if alone else leaf


def describe(arrays: Mapping[Path, Any]) -> dict[Path, str]:
    """Return ``{path: 'float32[2,3]'}``.

    Example:
      >>> describe({"a": np.zeros((2, 3), np.float32)})
      {'a': 'float32[2,3]'}
    """
    return {path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in arrays.items()}


def check_same(found: Mapping[Path, str], template: PyTree) -> None:
    """Raise unless the described arrays are what the template needs.

    Args:
      found: from `describe`.
      template: a tree.

    Raises:
      ValueError: with every path that is missing, unknown, or of another shape or dtype.

    Example:
      >>> check_same({"a": "float32[2]"}, {"b": np.zeros(2, np.float32)})
      Traceback (most recent call last):
      ...
      ValueError: the saved state is of another run; use the model, optimiser and transform that it was saved with:
        b: needed as float32[2], not in the saved state
        a: saved as float32[2], not in this run's state
    """
    needed = describe(stored(template))
    heading = "the saved state is of another run; use the model, optimiser and transform that it was saved with"
    with collect(heading) as problems:
        for path, what in needed.items():
            if path not in found:
                problems.append(f"{path}: needed as {what}, not in the saved state")
            elif found[path] != what:
                problems.append(f"{path}: needed as {what}, saved as {found[path]}")
        for path in sorted(found.keys() - needed.keys()):
            problems.append(f"{path}: saved as {found[path]}, not in this run's state")


def stored(template: PyTree) -> dict[Path, Any]:
    """Return the leaves by path as `to_arrays` has them, of random keys the shape of their data.

    Example:
      >>> stored({"key": jax.random.key(7)})["key"].shape
      (2,)
    """
    leaves = paths.flatten(template)
    return {path: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for path, leaf in leaves.items()}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def _host_copy(leaf: Any) -> Any:
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.numpy.copy(leaf)
    return np.array(leaf)
