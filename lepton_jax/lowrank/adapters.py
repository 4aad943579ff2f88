"""What LoRA, DoRA and QLoRA share: what is trained stays in the parameters, what is not goes into the state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core import packed, paths
from lepton_jax.core.errors import collect
from lepton_jax.core.packed import is_packed
from lepton_jax.core.transform import Transform, hold
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank.adapted import Held
from lepton_jax.lowrank.svd import Svd


class AdapterState(NamedTuple):
    """What does not move.

    Attributes:
      base: of every adapted leaf the weight: an array or a coded leaf.
      held: the other leaves that are not trained.
    """

    base: dict[Path, Any]
    held: dict[Path, Array]


def check_settings(name: str, scale: float, key: Array) -> None:
    """Raise unless the scale is positive and the key a typed one.

    Raises:
      ValueError: for the scale.
      TypeError: for a raw key.

    Example:
      >>> check_settings("lora", 1.0, jax.random.key(0))
    """
    if not scale > 0:
        raise ValueError(f"{name}: scale must be above 0 (alpha / rank of the paper); got {scale}.")
    if not jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise TypeError(f"{name}: key must be a typed key, as jax.random.key(seed) makes it; got {key!r}.")


def split(name: str, params: PyTree, rank: int, select: Select, train: Select, method: Svd) -> tuple[dict[Path, Array], dict]:
    """Return the weights to adapt, and the other floating leaves that are not trained, by path.

    Raises:
      ValueError: for weights that have no such rank, all together, or a pattern that matches nothing.
    """
    weights = paths.select(params, select)
    with collect(f"{name}: cannot adapt with rank {rank}") as problems:
        for path, weight in weights.items():
            shape = tuple(weight.shape)
            refusal = method.refusal(shape)
            if refusal is not None:
                problems.append(f"{path}: shape {shape} {refusal}; deselect it")
            elif rank > method.max_rank(shape):
                problems.append(f"{path}: shape {shape}; the rank must be 1 to {method.max_rank(shape)}")
    trained = paths.select(params, train) if train else {}
    leaves = paths.flatten(params)
    held = {p: x for p, x in leaves.items() if paths.is_floating(x) and p not in weights and p not in trained}
    return weights, held


def start(key: Array, weights: Mapping[Path, Array], rank: int, method: Svd) -> dict[Path, LowRank]:
    """Return corrections that are zero: u normal with variance 1 / m, v zero.

    Args:
      key: for u; each leaf draws from its own.
      weights: by path.
      rank: of every correction.
      method: says how leaves are read as matrices.

    Example:
      >>> start(jax.random.key(0), {"w": jnp.ones((4, 3))}, 2, Svd())["w"].unpack().tolist()[0]
      [0.0, 0.0, 0.0]
    """
    found = {}
    for number, (path, weight) in enumerate(weights.items()):
        rows, columns = method.sides(tuple(weight.shape))
        stack = tuple(weight.shape[: method.stacked])
        u = jax.random.normal(jax.random.fold_in(key, number), (*stack, rows, rank), jnp.float32) / jnp.sqrt(rows)
        found[path] = LowRank(u.astype(weight.dtype), jnp.zeros((*stack, rank, columns), weight.dtype), tuple(weight.shape))
    return found


def put_away(params: PyTree, trained: Mapping[Path, Any], held: Mapping[Path, Array]) -> PyTree:
    """Return the parameters with what is trained in its leaves' places, and `Held` in those of what is not."""
    places = {path: Held(tuple(leaf.shape), jnp.dtype(leaf.dtype).name) for path, leaf in held.items()}
    return paths.replace(params, {**trained, **places})


def shown(params: PyTree, state: AdapterState, adapted: Mapping[Path, Any]) -> PyTree:
    """Return the parameters with the adapted leaves, and those that were held, in their places."""
    return paths.replace(params, {**adapted, **state.held}, is_packed)


def trained_leaves(params: PyTree, state: AdapterState) -> dict[Path, Any]:
    """Return what is trained of the adapted leaves, by path."""
    leaves = paths.flatten(params, is_packed)
    return {path: leaves[path] for path in state.base}


def corrected(params: PyTree, state: AdapterState, scale: float) -> PyTree:
    """Return the parameters as the model has them, each adapted weight as ``base + scale * u v`` in an `Adapted` leaf.

    Args:
      params: of an adapter's transform, with `LowRank` leaves for the corrections.
      state: of the transform.
      scale: of the corrections.

    Example:
      >>> params, state = {"w": start(jax.random.key(0), {"w": jnp.eye(2)}, 1, Svd())["w"]}, AdapterState({"w": jnp.eye(2)}, {})
      >>> corrected(params, state, 2.0)["w"].unpack().tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    leaves = trained_leaves(params, state)
    adapted = {
        path: Adapted(base, LowRank(leaves[path].u * scale, leaves[path].v, leaves[path].shape))
        for path, base in state.base.items()
    }
    return shown(params, state, adapted)


def adapter(init: Callable[[PyTree], tuple[PyTree, AdapterState]], scale: float) -> Transform:
    """Return the transform whose view is ``base + scale * u v``, and whose packed form keeps the two apart.

    Args:
      init: parts the parameters into corrections and state.
      scale: of the corrections.

    Example:
      >>> def init(params):
      ...     return start(jax.random.key(0), params, 1, Svd()), AdapterState(params, {})
      >>> params, state = adapter(init, 2.0).init({"w": jnp.eye(2)})
      >>> adapter(init, 2.0).view(params, state)["w"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """

    def pack(params: PyTree, state: AdapterState) -> PyTree:
        return corrected(params, state, scale)

    def view(params: PyTree, state: AdapterState) -> PyTree:
        return packed.unpack(pack(params, state))

    return Transform(init, view, hold, pack)
