"""Pruning as a transform: criterion, structure, allocation and schedule, put together."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax import paths
from lepton_jax.packed import is_coded
from lepton_jax.pruning.allocation import Shapes, uniform
from lepton_jax.pruning.criteria import Criterion, Magnitude
from lepton_jax.pruning.masks import keep_count, top_of_all
from lepton_jax.pruning.structures import Structure, Unstructured
from lepton_jax.schedules import SparsitySchedule, as_schedule
from lepton_jax.straight_through import straight_through
from lepton_jax.transform import Transform
from lepton_jax.typing import Array, Path, PyTree, Select, Step


class PruneState(NamedTuple):
    """State of `prune`.

    Attributes:
      masks: by path; boolean, True where the weight is kept, of the weight's shape.
      criterion: by path; what the criterion gathers.
      sparsity: the schedule's value when the masks were made.
    """

    masks: dict[Path, Array]
    criterion: dict[Path, Any]
    sparsity: Array


def apply_mask(leaf: Any, mask: Array) -> Any:
    """Return an array or coded leaf with exact zeros where `mask` is False, whatever was there (NaN too).

    Example:
      >>> apply_mask(jnp.array([1.0, jnp.nan]), jnp.array([True, False])).tolist()
      [1.0, 0.0]
    """
    return leaf.masked(mask) if is_coded(leaf) else jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def prune(
    sparsity: float | SparsitySchedule,
    *,
    criterion: Criterion = Magnitude(),
    structure: Structure = Unstructured(),
    allocation: Callable[[Shapes, float], Mapping[Path, float]] = uniform,
    scope: Literal["layer", "global"] = "layer",
    score_scale: Mapping[str, float] | None = None,
    select: Select = paths.matrices,
    gradient: Literal["masked", "straight_through"] = "masked",
    interval: int = 1,
) -> Transform:
    """Show the weights with the least valuable ones set to zero.

    ``view = where(mask, w, 0)``, ``mask = top(scores(w), sparsity(step))``.

    Args:
      sparsity: fraction of the selected weights removed, [0, 1), or a schedule of it; see `lepton_jax.schedules`.
      criterion: scores a weight; see `lepton_jax.pruning.criteria`.
      structure: which weights go together.
      allocation: in scope "layer", gives each leaf its sparsity, see `lepton_jax.pruning.allocation`; under a schedule all
        leaves rise together, in proportion.
      scope: "layer": each leaf has its own threshold. "global": one threshold for all leaves.
      score_scale: glob pattern -> factor on the scores of the leaves that match, for scope "global".
      select: which leaves; by default those with two axes or more.
      gradient: "masked": a pruned weight gets no gradient, its master is set to zero and it never returns.
        "straight_through": it gets the gradient of the zero that stands for it, its master lives on, and it may return.
      interval: steps between two mask updates.

    Raises:
      ValueError: for a sparsity outside [0, 1), a selector or pattern that matches nothing, an unknown option.

    Example:
      >>> transform = prune(0.5)
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[0.0, -4.0], [3.0, 0.0]]

    Source: Han et al. 2015; gradual schedules: Zhu and Gupta 2017.
    """
    schedule = as_schedule(sparsity)
    for name, value, options in (("gradient", gradient, ("masked", "straight_through")), ("scope", scope, ("layer", "global"))):
        if value not in options:
            raise ValueError(f"prune: {name} must be one of {options}; got {value!r}.")
    if interval < 1:
        raise ValueError(f"prune: interval must be at least 1 step; got {interval}.")

    def scales(weights: Mapping[Path, Array]) -> dict[Path, float]:
        """The factor on each leaf's scores."""
        result = dict.fromkeys(weights, 1.0)
        for pattern, factor in (score_scale or {}).items():
            result |= dict.fromkeys(paths.select(dict(weights), pattern), factor)
        return result

    def make_masks(weights: Mapping[Path, Array], gathered: Mapping[Path, Any], now: Array) -> dict[Path, Array]:
        factors = scales(weights)
        arrived = now >= jnp.float32(schedule.target)
        progress = now / schedule.target if schedule.target else jnp.float32(1)

        def keep(size: int, goal: float) -> Array:  # exact where the schedule has arrived; else rounded in float32
            return jnp.where(arrived, keep_count(size, goal), keep_count(size, goal * progress))

        units = {p: structure.reduce(factors[p] * criterion.scores(w, gathered[p])) for p, w in weights.items()}
        if scope == "global":
            kept = top_of_all(list(units.values()), keep(sum(u.size for u in units.values()), schedule.target))
        else:
            goal = allocation({p: w.shape for p, w in weights.items()}, schedule.target)
            kept = [top_of_all([u], keep(u.size, goal[p]))[0] for p, u in units.items()]
        return {p: structure.expand(mask, weights[p].shape) for (p, mask) in zip(units, kept)}

    def enforce(params: PyTree, masks: Mapping[Path, Array]) -> PyTree:
        """Set pruned masters to zero, so that momentum and decay cannot move them."""
        if gradient == "straight_through":
            return params
        return _masked(params, masks)

    def check_arrived(replaced: list[Path]) -> None:
        with jax.ensure_compile_time_eval():
            arrived = bool(schedule(0) >= jnp.float32(schedule.target))
        if not arrived:
            raise ValueError(
                f"prune: the masks of {', '.join(replaced)} cannot follow the schedule, because a later transform of the chain "
                "put its own parameters in their place. Prune in a phase of its own, and freeze it for the next."
            )

    def init(params: PyTree) -> tuple[PyTree, PruneState]:
        weights = paths.select(params, select)
        gathered = {path: criterion.init(weight) for path, weight in weights.items()}
        now = schedule(0)
        return params, PruneState(make_masks(weights, gathered, now), gathered, now)

    def view(params: PyTree, state: PruneState) -> PyTree:
        if gradient == "masked":
            return _masked(params, state.masks)
        leaves = paths.flatten(params)
        seen = {p: straight_through(leaves[p], apply_mask(leaves[p], m)) for p, m in state.masks.items() if p in leaves}
        return paths.replace(params, seen)

    def update(params: PyTree, state: PruneState, grads: PyTree, step: Step) -> tuple[PyTree, PruneState]:
        leaves, slopes = paths.flatten(params), paths.flatten(grads)
        weights = {path: leaf for path, leaf in leaves.items() if path in state.masks}  # in the tree's order, as in `init`
        replaced = [path for path in state.masks if path not in leaves]
        if replaced:  # a later transform put its own parameters in their place
            check_arrived(replaced)
            return enforce(params, state.masks), state
        gathered = {p: criterion.accumulate(state.criterion[p], w, slopes[p]) for p, w in weights.items()}
        now = schedule(step)
        # With masked gradients the masks change only as the sparsity does; otherwise weights may return at any time.
        due = jnp.asarray(step) % interval == 0
        if gradient == "masked":
            due &= now != state.sparsity
        masks, now = jax.lax.cond(
            due, lambda: (make_masks(weights, gathered, now), now), lambda: (dict(state.masks), state.sparsity)
        )
        return enforce(params, masks), PruneState(masks, gathered, now)

    def pack(params: PyTree, state: PruneState) -> PyTree:
        return _masked(params, state.masks)

    return Transform(init, view, update, pack)


def _masked(tree: PyTree, masks: Mapping[Path, Array]) -> PyTree:
    """Mask the leaves that there are; arrays or coded leaves."""
    leaves = paths.flatten(tree, is_coded)
    return paths.replace(tree, {p: apply_mask(leaves[p], m) for p, m in masks.items() if p in leaves}, is_coded)
