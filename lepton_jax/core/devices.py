"""Which devices a program is for, where the code inside must know it to say how something lies."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from lepton_jax.core.typing import Array


def for_mesh(function: Callable[..., Any], mesh: Any) -> Callable[..., Any]:
    """Return a function that is traced for the devices of a mesh; where it may be laid out by the compiler alone, as it was.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
      >>> jax.jit(for_mesh(whole, mesh))(jax.numpy.ones(2)).tolist()
      [1.0, 1.0]
    """
    abstract = getattr(mesh, "abstract_mesh", mesh)
    if not _is_automatic(abstract):
        return function

    @wraps(function)
    def traced(*args: Any, **keywords: Any) -> Any:
        with jax.sharding.use_abstract_mesh(abstract):
            return function(*args, **keywords)

    return traced


def whole(array: Array) -> Array:
    """Ask that an array lies whole on every device that the program is for, if that is known; see `for_mesh`.

    Example:
      >>> whole(jax.numpy.ones(2)).tolist()
      [1.0, 1.0]
    """
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(array, PartitionSpec()) if not mesh.empty and _is_automatic(mesh) else array


def _is_automatic(mesh: Any) -> bool:
    return all(kind == AxisType.Auto for kind in mesh.axis_types)
