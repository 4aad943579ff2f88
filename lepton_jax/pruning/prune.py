"""Pruning as a transform: criterion, structure, allocation and schedule, put together."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import check_fraction, collect, is_traced
from lepton_jax.core.schedules import SparsitySchedule, as_schedule, constant
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Path, PyTree, Select, Step
from lepton_jax.core.weight_axes import StackedShape
from lepton_jax.pruning.allocation import Allocation, uniform
from lepton_jax.pruning.balance import warn_if_uneven
from lepton_jax.pruning.criteria import Criterion, Magnitude
from lepton_jax.pruning.hide import Gradient, apply_mask, laid_out_as, masked, through_masks
from lepton_jax.pruning.masks import keep_count, keep_some
from lepton_jax.pruning.stacked import Stacks
from lepton_jax.pruning.state import Goals, PruneState, check_scores, first_failure, no_failure
from lepton_jax.pruning.structures import Structure, Unstructured, named_structure
from lepton_jax.pruning.threshold import leave_one, top_of_groups
from lepton_jax.pruning.words import COUNTABLE, counts_of, int32_count, is_wide


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pruning:
    """The settings of `prune`, and the functions of its transform."""

    schedule: SparsitySchedule
    criterion: Criterion
    structure: Structure
    allocation: Allocation
    scope: Literal["layer", "global"]
    score_scale: Mapping[str, float]
    select: Select
    gradient: Gradient
    interval: int

    def __post_init__(self) -> None:
        paths.check_select("prune: select", self.select)
        if not isinstance(self.criterion, Criterion):
            raise TypeError(
                "prune: criterion must be one of lepton_jax.pruning.criteria, e.g. criterion=Magnitude(); got "
                f"{self.criterion!r}."
            )
        if not callable(self.allocation):
            raise TypeError(
                "prune: allocation must be a function (shapes, sparsity) -> sparsities, e.g. lepton_jax.pruning.erk; got "
                f"{self.allocation!r}."
            )
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
        self._check_structure(Stacks(self.select, weights))
        goals = self._goals(weights)
        state = PruneState(
            masks={path: jnp.ones(weight.shape, bool) for path, weight in weights.items()},
            criterion=self.criterion.init_all(weights, params),
            sparsity=jnp.float32(0),
            goals=goals,
            thresholds=jnp.zeros(goals.by_group.shape, jnp.uint32),
            failure=no_failure(len(weights)),
        )
        state = self._remask(params, weights, state, jnp.int32(0), first=True)
        # Not all scores say how their weight is spread over devices: random ones don't.
        state = state._replace(masks={path: laid_out_as(mask, weights[path]) for path, mask in state.masks.items()})
        if not is_traced(state.failure.step):
            check_scores(state)
            if self.scope == "global":  # elsewhere an allocation says how even it is
                warn_if_uneven("prune", state.masks)
        return params, state

    def update(self, params: PyTree, state: PruneState, grads: PyTree, step: Step) -> tuple[PyTree, PruneState]:
        if self.gradient == "masked":  # so that momentum and decay cannot move what is pruned
            params = masked(params, state.masks)
        leaves, slopes = paths.flatten(params), paths.flatten(grads)
        weights = {path: leaf for path, leaf in leaves.items() if path in state.masks}  # in the tree's order, as in `init`
        replaced = [path for path in state.masks if path not in leaves]
        if replaced:  # a later transform put its own parameters in their place
            self._check_arrived(replaced)
            return params, state
        with collect("prune: update takes the gradients of the parameters, a tree like theirs") as problems:
            problems.extend(f"{path}: no gradient given" for path in weights if path not in slopes)
        gathered = {p: self.criterion.accumulate(state.criterion[p], w, slopes[p]) for p, w in weights.items()}
        state = state._replace(criterion=gathered)
        step, progress = jnp.asarray(step, jnp.int32), self._progress(step)
        due = (step % self.interval == 0) | ((progress >= 1) & (state.sparsity < state.goals.sparsity))
        if self.gradient == "masked":  # weights never return, so the masks change only as the sparsity does
            due &= _sparsity(state.goals, progress) != state.sparsity

        def remask(values: list[Array]) -> tuple[Any, ...]:
            new = self._remask(params, dict(zip(weights, values)), state, step)
            if self.gradient == "masked":
                values = [apply_mask(value, new.masks[path]) for path, value in zip(weights, values)]
            return values, new.masks, new.sparsity, new.thresholds, new.failure

        def stay(values: list[Array]) -> tuple[Any, ...]:
            return values, state.masks, state.sparsity, state.thresholds, state.failure

        # The weights go through it, so that a step that changes no mask does not read them once more; as a list, for the order.
        values, masks, sparsity, thresholds, failure = jax.lax.cond(due, remask, stay, list(weights.values()))
        params = paths.replace(params, dict(zip(weights, values)))
        state = state._replace(masks=masks, sparsity=sparsity, thresholds=thresholds, failure=failure)
        return params, state

    def _check_structure(self, stacks: Stacks) -> None:
        alike: dict[Structure, dict[Path, StackedShape]] = {}
        for path, shape in stacks.shapes.items():
            alike.setdefault(self.structure.at(stacks.of_one(path)), {})[path] = shape
        for structure, shapes in alike.items():
            structure.check(shapes, self.schedule.target)

    def _progress(self, step: Step) -> Array:
        """Return how far the sparsity has risen, 1 where the schedule has arrived."""
        now, target = self.schedule(step), jnp.asarray(self.schedule.target, jnp.float32)
        return jnp.where(now >= target, 1.0, now / jnp.maximum(target, jnp.finfo(jnp.float32).tiny))

    def _goals(self, weights: Mapping[Path, Array]) -> Goals:
        """Return what each group arrives at; exact where the target is a Python float."""
        target, stacks = self.schedule.target, Stacks(self.select, weights)
        sizes: dict[Path, int] = {}  # of one of a leaf's weights, in units
        for path in [] if self.structure.local else weights:
            one = jax.ShapeDtypeStruct(stacks.shapes[path], jnp.float32)
            sizes[path] = jax.eval_shape(self.structure.at(stacks.of_one(path)).reduce, one).size
        each = [path for path in sorted(sizes) for _ in range(stacks.shapes[path].times)]
        if self.scope == "global":
            total = sum(sizes[path] for path in each)
            fractions, counts, wide = [target], [keep_count(total, target)], is_wide(total)
        else:
            given = self.allocation(stacks.shapes, target)
            with collect("prune: allocation must give every leaf its sparsity") as problems:
                problems.extend(f"{path}: got none" for path in weights if path not in given)
            for path in weights:
                check_fraction(f"prune: allocation: {path}", given[path])
            fractions = [given[path] for path in each]
            counts, wide = [keep_some(sizes[path], given[path]) for path in each], is_wide(list(sizes.values()))
        keep = counts_of(counts, wide=wide)
        return Goals(jnp.asarray(target, jnp.float32), jnp.asarray(fractions, jnp.float32), keep)

    def _remask(
        self, params: PyTree, weights: Mapping[Path, Array], state: PruneState, step: Array, *, first: bool = False
    ) -> PruneState:
        """Make the masks of a step; if a score is not finite, keep those there are, and note it."""
        progress, goals = self._progress(step), state.goals
        scores = self._apart(weights, self.criterion.score_all(weights, state.criterion, params))
        for pattern, factor in self.score_scale.items():
            scores |= {p: factor * scores[p] for p in paths.select(dict(weights), pattern)}
        held = self.gradient == "masked" and not first
        if held:  # what is pruned has no say, whatever is there
            scores = {p: jnp.where(state.masks[p], s, 0) for p, s in scores.items()}
        if self.structure.local:
            ranked = {p: jnp.where(state.masks[p], s, -jnp.inf) if held else s for p, s in scores.items()}
            masks = self._locally(ranked, _sparsity(goals, progress))
            not_finite = jnp.stack([int32_count(~jnp.isfinite(scores[p])) for p in sorted(scores)])
            thresholds = state.thresholds
        else:
            masks, not_finite, thresholds = self._thresholded(scores, state, progress, first, held)
        failed = jnp.any(not_finite > 0)
        old = (state.masks, state.sparsity, state.thresholds)
        new = (masks, _sparsity(goals, progress), thresholds)
        masks, sparsity, thresholds = jax.tree.map(lambda a, b: jnp.where(failed, a, b), old, new)
        failure = first_failure(state.failure, not_finite, step)
        return state._replace(masks=masks, sparsity=sparsity, thresholds=thresholds, failure=failure)

    def _apart(self, weights: Mapping[Path, Array], scores: dict[Path, Array]) -> dict[Path, Array]:
        """The scores, where a criterion compares within a leaf, compared within each weight that the leaf stacks."""
        if type(self.criterion).apart is Criterion.apart:
            return scores
        stacks = Stacks(self.select, weights)
        for path in [path for path, shape in stacks.shapes.items() if shape.times > 1]:
            pairs = zip(stacks.split(path, weights[path]), stacks.split(path, scores[path]))
            scores[path] = stacks.join(path, [self.criterion.apart(*pair) for pair in pairs], weights[path].shape)
        return scores

    def _thresholded(
        self, scores: Mapping[Path, Array], state: PruneState, progress: Array, first: bool, held: bool
    ) -> tuple[dict[Path, Array], Array, Array]:
        """Return the masks of units above their group's threshold, how many scores are not finite, and the thresholds."""
        stacks = Stacks(self.select, scores)
        units = self._units(stacks, scores)
        rank = {place: i for i, place in enumerate(sorted(units))}
        groups = tuple(0 if self.scope == "global" else rank[place] for place in units)
        sizes: Any = np.zeros(state.goals.keep.shape[0], np.int64)  # counted alike, all at once
        for unit, group in zip(units.values(), groups):
            sizes[group] += unit.size
        sizes = sizes if is_wide(sizes) else sizes.astype(np.int32)
        # A unit is out if all its weights are.
        kept = {path: state.masks[path].astype(jnp.float32) for path in scores}
        allowed = [unit > 0 for unit in self._units(stacks, kept).values()] if held else None
        rising = keep_some(sizes, state.goals.by_group * progress)
        found = top_of_groups(
            list(units.values()),
            jnp.where(progress >= 1, state.goals.keep, rising),
            groups=groups,
            allowed=allowed,
            near=None if first else state.thresholds,
        )
        left = found.masks
        if self.scope == "global":
            left = leave_one(left, list(units.values()), allowed, needed=[len(stacks.shapes[path]) > 1 for path, _ in units])
        parts: dict[tuple[Path, int], Array] = {}
        for place, mask in zip(units, left):
            parts[place] = self.structure.at(stacks.of_one(place[0])).expand(mask, stacks.shapes[place[0]])
        masks = stacks.whole(parts, scores)
        of_leaf = [[place for place, (path, _) in enumerate(units) if path == one] for one in sorted(scores)]
        odd = found.not_finite
        if is_wide(sizes.sum()):  # the sum must not overflow
            odd = jnp.minimum(odd, COUNTABLE // len(units))
        not_finite = jnp.stack([jnp.sum(odd[np.array(places)]) for places in of_leaf])
        return masks, not_finite, found.thresholds

    def _units(self, stacks: Stacks, scores: Mapping[Path, Array]) -> dict[tuple[Path, int], Array]:
        """Return the scores of units, by path and place in the stack."""
        each = {path: self.structure.at(stacks.of_one(path)) for path in scores}
        return {(path, place): each[path].reduce(one) for (path, place), one in stacks.parts(scores).items()}

    def _locally(self, scores: Mapping[Path, Array], sparsity: Array) -> dict[Path, Array]:
        """Return the masks of a structure that chooses by itself."""
        stacks = Stacks(self.select, scores)
        each = {path: self.structure.at(stacks.of_one(path)) for path in scores}
        masks = {(path, place): each[path].mask(one, sparsity) for (path, place), one in stacks.parts(scores).items()}
        return stacks.whole(masks, scores)

    def _check_arrived(self, replaced: list[Path]) -> None:
        with jax.ensure_compile_time_eval():
            arrived = isinstance(self.schedule, constant) or bool(self._progress(0) >= 1)
        if not arrived:
            raise ValueError(
                f"prune: the masks of {', '.join(replaced)} cannot follow the schedule, because a later transform of the chain "
                "put its own parameters in their place. Prune in a phase of its own, and freeze it for the next."
            )


@checked_but("criterion", "structure", "allocation")
@named
def prune(
    sparsity: float | Array | SparsitySchedule,
    *,
    criterion: Criterion = Magnitude(),
    structure: Structure | str = Unstructured(),
    allocation: Allocation = uniform,
    scope: Literal["layer", "global"] = "layer",
    score_scale: Mapping[str, float] = MappingProxyType({}),
    select: Select = paths.matrices,
    gradient: Gradient = "masked",
    interval: int = 1,
) -> Transform:
    """Show the weights with the least valuable ones set to zero.

    ``view = where(mask, w, 0)``, ``mask = top(scores(w), sparsity(step))``. Of every leaf at least one unit is kept, whatever
    the sparsity: a leaf that loses all cuts the network (in scope "global", of those with two axes or more).

    Args:
      sparsity: fraction of the selected weights removed, [0, 1), or a schedule of it; see `lepton_jax.core.schedules`.
      criterion: scores a weight; see `lepton_jax.pruning.criteria`.
      structure: which weights go together; or a short name, "2:4".
      allocation: in scope "layer", gives each leaf its sparsity, see `lepton_jax.pruning.allocation`; under a schedule all
        leaves rise together, in proportion.
      scope: "layer": each leaf has its own threshold. "global": one threshold for all leaves.
      score_scale: glob pattern -> factor on the scores of the leaves that match, for scope "global".
      select: which leaves; by default those with two axes or more. Of `lepton_jax.graph.weights`, every weight that a leaf
        stacks is pruned by itself, and structures follow inputs and outputs in any layout.
      gradient: "masked": a pruned weight gets no gradient, its master is set to zero and it never returns.
        "straight_through": it gets the gradient of the zero that stands for it, its master lives on, and it may return.
      interval: steps between two mask updates; there is one more when the schedule arrives.

    Raises:
      ValueError: for a sparsity outside [0, 1), a selector or pattern that matches nothing, an unknown option, a setting
        that the scope would pass over, or, in `init`, scores that are not finite; see `check_scores` for those of `update`.

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
        structure=named_structure("prune: structure", structure),
        allocation=allocation,
        scope=scope,
        score_scale=score_scale,
        select=select,
        gradient=gradient,
        interval=interval,
    )
    return through_masks(pruning.init, pruning.update, gradient=gradient, lives_on=gradient == "straight_through")


def _sparsity(goals: Goals, progress: Array) -> Array:
    """Return the sparsity of all leaves together."""
    return jnp.where(progress >= 1, goals.sparsity, goals.sparsity * progress)
