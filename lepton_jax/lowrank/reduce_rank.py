"""Progressive rank reduction: factors that lose columns while they are trained."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lepton_jax.core import packed, paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.packed import is_packed
from lepton_jax.core.schedules import SparsitySchedule, as_schedule
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Path, PyTree, Select, Step
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank.method import Method, Rank, RankRule
from lepton_jax.lowrank.svd import Svd
from lepton_jax.lowrank.transform import low_rank


class ReduceRankState(NamedTuple):
    """Which columns of u, and rows of v, are left: boolean ``[rank]`` by path."""

    columns: dict[Path, Array]


@checked
@named
def reduce_rank(
    rank: Rank | Mapping[Path, Rank] | RankRule,
    schedule: float | SparsitySchedule,
    *,
    method: Method = Svd(),
    select: Select = paths.matrices,
) -> Transform:
    """Begin with factors of one rank, and take columns away as a schedule says, the least first.

    A fraction ``s(step)`` of each leaf's columns is removed, at least one left; the least are those of smallest
    ``|u_i| |v_i|``, which is how much of the product they are. The schedule is a traced function of the step, masks have one
    shape: one compilation for the whole run. Removed columns get no gradient and are set to zero at every update, so momentum
    and decay cannot bring them back; a schedule should rise. The packed form has the columns that are left, and no others.

    Args:
      rank: at the beginning: as for `low_rank`.
      schedule: fraction of the columns removed at a step, such as ``polynomial(0.75, begin=100, end=1000)``, or a number.
      method: a factorization into `LowRank` leaves.
      select: which leaves.

    Raises:
      ValueError: as `low_rank`.
      TypeError: for a method that gives other leaves.

    Example:
      >>> from lepton_jax.core.schedules import one_shot
      >>> transform = reduce_rank(2, one_shot(0.5, begin=3))
      >>> params, state = transform.init({"kernel": jnp.diag(jnp.array([1.0, 5.0]))})
      >>> params, state = transform.update(params, state, params, 3)
      >>> transform.view(params, state)["kernel"].round(4).tolist(), transform.pack(params, state)["kernel"].rank
      ([[0.0, 0.0], [0.0, 5.0]], 1)

    Source: the idea of shrinking ranks in training is that of Xu et al. 2020, "TRP: trained rank pruning", and Yang et al.
    2020; the schedule and the measure are ours.
    """
    removed = as_schedule(schedule)
    factorized = low_rank(rank, method=method, select=select)

    def init(params: PyTree) -> tuple[PyTree, ReduceRankState]:
        before = paths.flatten(params, is_packed)
        params, _ = factorized.init(params)
        new = {path: leaf for path, leaf in paths.flatten(params, is_packed).items() if leaf is not before[path]}
        new = {path: leaf for path, leaf in new.items() if is_packed(leaf)}
        with collect("reduce_rank: needs a method that gives two factors, as Svd() does", TypeError) as problems:
            problems.extend(f"{p}: a {type(leaf).__name__}" for p, leaf in new.items() if not isinstance(leaf, LowRank))
        return params, ReduceRankState({path: _left(leaf, removed(0)) for path, leaf in new.items()})

    def view_leaves(params: PyTree, state: ReduceRankState) -> PyTree:
        leaves = paths.flatten(params, is_packed)
        return paths.replace(params, {p: _masked(leaves[p], left) for p, left in state.columns.items()}, is_packed)

    def view(params: PyTree, state: ReduceRankState) -> PyTree:
        return packed.unpack(view_leaves(params, state))

    def keep_zero(params: PyTree, state: ReduceRankState, grads: PyTree, step: Step) -> tuple[PyTree, ReduceRankState]:
        del grads, step
        return view_leaves(params, state), state

    def update(params: PyTree, state: ReduceRankState, grads: PyTree, step: Step) -> tuple[PyTree, ReduceRankState]:
        params = view_leaves(params, state)
        leaves = paths.flatten(params, is_packed)
        state = ReduceRankState({path: _left(leaves[path], removed(step)) for path in state.columns})
        return keep_zero(params, state, grads, step)

    def pack(params: PyTree, state: ReduceRankState) -> PyTree:
        leaves = paths.flatten(params, is_packed)
        return paths.replace(params, {p: _cut(leaves[p], left) for p, left in state.columns.items()}, is_packed)

    return Transform(init, view, update, pack, view_leaves, keep_zero)


def _left(leaf: LowRank, removed: Array) -> Array:
    """The columns that are kept: the largest, among equals the first."""
    u, v = leaf.u.astype(jnp.float32), leaf.v.astype(jnp.float32)
    rank = u.shape[-1]
    sizes = jnp.sum(u**2, axis=-2) * jnp.sum(v**2, axis=-1)
    sizes = jnp.sum(sizes.reshape(-1, rank), axis=0)  # stacked layers keep the same ones
    kept = jnp.maximum(rank - jnp.round(removed * rank).astype(jnp.int32), 1)
    places = jnp.argsort(jnp.argsort(-sizes, stable=True), stable=True)
    return places < kept


def _masked(leaf: Any, left: Array) -> LowRank:
    u = jnp.where(jnp.broadcast_to(left, leaf.u.shape), leaf.u, 0)
    v = jnp.where(jnp.broadcast_to(left[:, None], leaf.v.shape), leaf.v, 0)
    return LowRank(u, v, leaf.shape)


def _cut(leaf: Any, left: Array) -> LowRank:
    """The leaf of lower rank (not under jit: how many columns are left must be known)."""
    places = np.flatnonzero(np.asarray(left))
    return LowRank(leaf.u[..., places], leaf.v[..., places, :], leaf.shape)
