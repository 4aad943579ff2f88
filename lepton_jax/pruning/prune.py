"""Pruning as a transform: criterion, structure, allocation and schedule, put together."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax import paths
from lepton_jax.errors import collect
from lepton_jax.packed import is_coded
from lepton_jax.pruning.allocation import Shapes, uniform
from lepton_jax.pruning.criteria import Criterion, Magnitude
from lepton_jax.pruning.masks import keep_count
from lepton_jax.pruning.structures import Structure, Unstructured
from lepton_jax.pruning.threshold import top_of_all
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pruning:
    """The settings of `prune`, and the functions of its transform."""

    schedule: SparsitySchedule
    criterion: Criterion
    structure: Structure
    allocation: Callable[[Shapes, float], Mapping[Path, float]]
    scope: Literal["layer", "global"]
    score_scale: Mapping[str, float]
    select: Select
    gradient: Literal["masked", "straight_through"]
    interval: int

    def __post_init__(self) -> None:
        with collect("prune") as problems:
            if self.gradient not in ("masked", "straight_through"):
                problems.append(f"gradient must be 'masked' or 'straight_through'; got {self.gradient!r}")
            if self.scope not in ("layer", "global"):
                problems.append(f"scope must be 'layer' or 'global'; got {self.scope!r}")
            if self.scope == "layer" and self.score_scale:
                problems.append("score_scale compares leaves, so it needs scope='global'; here every leaf is on its own")
            if self.scope == "global" and self.allocation is not uniform:
                problems.append("allocation gives every leaf its sparsity, so it needs scope='layer'; here one threshold does")
            if self.structure.local and (self.scope == "global" or self.allocation is not uniform):
                name = type(self.structure).__name__
                problems.append(f"{name} chooses within each group, so it needs scope='layer' and the uniform allocation")
            if self.interval < 1:
                problems.append(f"interval must be at least 1 step; got {self.interval}")

    def init(self, params: PyTree) -> tuple[PyTree, PruneState]:
        weights = paths.select(params, self.select)
        self.structure.check({path: weight.shape for path, weight in weights.items()}, self.schedule.target)
        gathered = self.criterion.init_all(weights, params)
        now = self.schedule(0)
        return params, PruneState(self._masks(params, weights, gathered, {}, now), gathered, now)

    def view(self, params: PyTree, state: PruneState) -> PyTree:
        if self.gradient == "masked":
            return _masked(params, state.masks)
        leaves = paths.flatten(params)
        seen = {p: straight_through(leaves[p], apply_mask(leaves[p], m)) for p, m in state.masks.items() if p in leaves}
        return paths.replace(params, seen)

    def update(self, params: PyTree, state: PruneState, grads: PyTree, step: Step) -> tuple[PyTree, PruneState]:
        leaves, slopes = paths.flatten(params), paths.flatten(grads)
        weights = {path: leaf for path, leaf in leaves.items() if path in state.masks}  # in the tree's order, as in `init`
        replaced = [path for path in state.masks if path not in leaves]
        if replaced:  # a later transform put its own parameters in their place
            self._check_arrived(replaced)
            return self._enforce(params, state.masks), state
        with collect("prune: update takes the gradients of the parameters, a tree like theirs") as problems:
            problems.extend(f"{path}: no gradient given" for path in weights if path not in slopes)
        gathered = {p: self.criterion.accumulate(state.criterion[p], w, slopes[p]) for p, w in weights.items()}
        now = self.schedule(step)
        arrives = (now >= self._target) & (state.sparsity < self._target)
        due = (jnp.asarray(step) % self.interval == 0) | arrives
        kept: Mapping[Path, Array] = {}
        if self.gradient == "masked":  # weights never return, so the masks change only as the sparsity does
            due &= now != state.sparsity
            kept = state.masks
        masks, now = jax.lax.cond(
            due, lambda: (self._masks(params, weights, gathered, kept, now), now), lambda: (dict(state.masks), state.sparsity)
        )
        return self._enforce(params, masks), PruneState(masks, gathered, now)

    def pack(self, params: PyTree, state: PruneState) -> PyTree:
        return _masked(params, state.masks)

    @property
    def _target(self) -> Array:
        return jnp.float32(self.schedule.target)

    def _masks(
        self,
        params: PyTree,
        weights: Mapping[Path, Array],
        gathered: Mapping[Path, Any],
        kept: Mapping[Path, Array],
        now: Array,
    ) -> dict[Path, Array]:
        """Make the masks of a sparsity; a weight that `kept` has pruned comes after all others."""
        scores = self.criterion.score_all(weights, gathered, params)
        for pattern, factor in self.score_scale.items():
            scores |= {p: factor * scores[p] for p in paths.select(dict(weights), pattern)}
        scores = {p: jnp.where(kept[p], s, -jnp.inf) if p in kept else s for p, s in scores.items()}
        if self.structure.local:
            return {p: self.structure.mask(s, now) for p, s in scores.items()}
        units = {p: self.structure.reduce(s) for p, s in scores.items()}
        target, arrived = self.schedule.target, now >= self._target

        def keep(size: int, goal: float) -> Array:  # exact where the schedule has arrived; else rounded in float32
            risen = goal * (now / target if target else 1.0)
            return jnp.where(arrived, keep_count(size, goal), keep_count(size, risen))

        if self.scope == "global":
            masks = top_of_all(list(units.values()), keep(sum(u.size for u in units.values()), target))
        else:
            goals = self.allocation({p: w.shape for p, w in weights.items()}, target)
            masks = [top_of_all([u], keep(u.size, goals[p]))[0] for p, u in units.items()]
        return {p: self.structure.expand(mask, weights[p].shape) for p, mask in zip(units, masks)}

    def _enforce(self, params: PyTree, masks: Mapping[Path, Array]) -> PyTree:
        """Set pruned masters to zero, so that momentum and decay cannot move them."""
        return _masked(params, masks) if self.gradient == "masked" else params

    def _check_arrived(self, replaced: list[Path]) -> None:
        with jax.ensure_compile_time_eval():
            arrived = bool(self.schedule(0) >= self._target)
        if not arrived:
            raise ValueError(
                f"prune: the masks of {', '.join(replaced)} cannot follow the schedule, because a later transform of the chain "
                "put its own parameters in their place. Prune in a phase of its own, and freeze it for the next."
            )


def prune(
    sparsity: float | SparsitySchedule,
    *,
    criterion: Criterion = Magnitude(),
    structure: Structure = Unstructured(),
    allocation: Callable[[Shapes, float], Mapping[Path, float]] = uniform,
    scope: Literal["layer", "global"] = "layer",
    score_scale: Mapping[str, float] = MappingProxyType({}),
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
      interval: steps between two mask updates; there is one more when the schedule arrives.

    Raises:
      ValueError: for a sparsity outside [0, 1), a selector or pattern that matches nothing, an unknown option, or a setting
        that the scope would pass over.

    Example:
      >>> transform = prune(0.5)
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[0.0, -4.0], [3.0, 0.0]]

    Source: Han et al. 2015; gradual schedules: Zhu and Gupta 2017.
    """
    pruning = _Pruning(
        schedule=as_schedule(sparsity),
        criterion=criterion,
        structure=structure,
        allocation=allocation,
        scope=scope,
        score_scale=score_scale,
        select=select,
        gradient=gradient,
        interval=interval,
    )
    return Transform(pruning.init, pruning.view, pruning.update, pruning.pack)


def _masked(tree: PyTree, masks: Mapping[Path, Array]) -> PyTree:
    """Mask the leaves that there are; arrays or coded leaves."""
    leaves = paths.flatten(tree, is_coded)
    return paths.replace(tree, {p: apply_mask(leaves[p], m) for p, m in masks.items() if p in leaves}, is_coded)
