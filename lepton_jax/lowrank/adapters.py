"""What LoRA, DoRA and QLoRA share: what is trained stays in the parameters, what is not goes into the state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core import packed, paths
from lepton_jax.core.errors import check_whole, collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.packed import Packed, is_packed, register_packed
from lepton_jax.core.transform import Transform, hold
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank.method import Method, as_tuple, placed
from lepton_jax.lowrank.svd import Svd


class AdapterState(NamedTuple):
    """What does not move.

    Attributes:
      base: of every adapted leaf the weight: an array or a coded leaf.
      held: the other leaves that are not trained.
    """

    base: dict[Path, Any]
    held: dict[Path, Array]


@register_packed()
class Held(Packed):
    """The place of a leaf that is not trained and lies in the transform's state: it has no arrays, so no optimiser moves it.

    Args:
      shape: the leaf's.
      held_dtype: the name of its dtype.

    Example:
      >>> import jax
      >>> held = Held((3, 2), "float32")
      >>> held.size, jax.tree.leaves({"kernel": held})
      (6, [])
    """

    shape: tuple[int, ...]
    held_dtype: str

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return jnp.dtype(self.held_dtype)

    def unpack(self) -> Array:
        raise TypeError("Held: the leaf lies in the transform's state; take transform.view(params, state).")


def adapter(
    name: str,
    rank: int,
    key: Array,
    scale: float,
    select: Select,
    train: Select,
    stacked: int,
    *,
    begin: Callable[[dict[Path, Array], dict[Path, LowRank]], tuple[Mapping[Path, Any], Mapping[Path, Any]]],
    show: Callable[[Any, Any], Any],
) -> Transform:
    """Return the transform that trains a correction of each selected weight, and holds all else in its state.

    Args:
      name: for errors.
      rank: of the corrections.
      key: for their u.
      scale: only checked here.
      select: the weights.
      train: other leaves that are trained as they are.
      stacked: leading axes that stack layers.
      begin: ``(weights, corrections that are zero) -> (what is trained, what is held of the weights)``, by path.
      show: ``(what is held, what is trained) -> leaf``, as the model sees it: packed or not.

    Raises:
      ValueError: for settings out of range.
      TypeError: for a key that is no typed key.

    Example:
      >>> begin = lambda weights, corrections: (corrections, weights)
      >>> show = lambda base, leaf: corrected(base, leaf, 2.0)
      >>> transform = adapter("mine", 1, jax.random.key(0), 2.0, paths.matrices, (), 0, begin=begin, show=show)
      >>> transform.view(*transform.init({"w": jnp.eye(2)}))["w"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    check_whole(f"{name}: rank", rank, 1)
    if not scale > 0:
        raise ValueError(f"{name}: scale must be above 0 (alpha / rank of the paper); got {scale}.")
    if not jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise TypeError(f"{name}: key must be a typed key, as jax.random.key(seed) makes it; got {key!r}.")
    paths.check_select(f"{name}: select", select)
    paths.check_select(f"{name}: train", train)

    def init(params: PyTree) -> tuple[PyTree, AdapterState]:
        method = placed(Svd(stacked=stacked), select, paths.select(params, select))
        weights, held = _split(name, params, rank, select, train, method)
        trained, base = begin(weights, start(key, weights, rank, method))
        places = {path: Held(tuple(leaf.shape), jnp.dtype(leaf.dtype).name) for path, leaf in held.items()}
        return paths.replace(params, {**trained, **places}), AdapterState(dict(base), held)

    def pack(params: PyTree, state: AdapterState) -> PyTree:
        leaves = paths.flatten(params, is_packed)
        adapted = {path: show(base, leaves[path]) for path, base in state.base.items()}
        return paths.replace(params, {**adapted, **state.held}, is_packed)

    def view(params: PyTree, state: AdapterState) -> PyTree:
        return packed.unpack(pack(params, state))

    return Transform(init, view, hold, pack)


def corrected(base: Any, leaf: Any, scale: float) -> Adapted:
    """Return ``base + scale * u v``, the two kept apart.

    Args:
      base: an array or a coded leaf.
      leaf: what has the u and v.
      scale: of the correction.

    Example:
      >>> corrected(jnp.eye(2), LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)), (2, 2)), 2.0).unpack().tolist()
      [[3.0, 2.0], [2.0, 3.0]]
    """
    return Adapted(base, LowRank(leaf.u * scale, leaf.v, leaf.shape))


def start(key: Array, weights: Mapping[Path, Array], rank: int, method: Method) -> dict[Path, LowRank]:
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
        own: Any = method.at(path)
        rows, columns = own.sides(tuple(weight.shape))
        stack = tuple(weight.shape[: own.stacked])
        u = jax.random.normal(jax.random.fold_in(key, number), (*stack, rows, rank), jnp.float32) / jnp.sqrt(rows)
        found[path] = LowRank(u.astype(weight.dtype), jnp.zeros((*stack, rank, columns), weight.dtype), tuple(weight.shape))
    return found


def _split(
    name: str, params: PyTree, rank: int, select: Select, train: Select, method: Method
) -> tuple[dict[Path, Array], dict]:
    """Return the weights to adapt, and the other floating leaves that are not trained, by path.

    Raises:
      ValueError: for weights that have no such rank, all together, or a pattern that matches nothing.
    """
    weights = paths.select(params, select)
    check_finite(name, weights)
    with collect(f"{name}: cannot adapt with rank {rank}") as problems:
        for path, weight in weights.items():
            shape = tuple(weight.shape)
            refusal, most = method.at(path).refusal(shape), method.at(path).max_rank
            if refusal is not None:
                problems.append(f"{path}: shape {shape} {refusal}; deselect it")
            elif rank > max(as_tuple(most(shape))):
                problems.append(f"{path}: shape {shape}; the rank must be 1 to {most(shape)}")
    trained = paths.select(params, train) if train else {}
    leaves = paths.flatten(params)
    held = {p: x for p, x in leaves.items() if paths.is_floating(x) and p not in weights and p not in trained}
    return weights, held
