"""Rewiring: drop the weakest weights, grow as many others. What SET and RigL share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lepton_jax import paths
from lepton_jax.errors import check_fraction, check_whole
from lepton_jax.pruning.allocation import Shapes
from lepton_jax.pruning.masks import keep_count
from lepton_jax.pruning.sparse_training.masked import laid_out_as, masked, masked_straight_through, take_slopes
from lepton_jax.pruning.threshold import top_of_all
from lepton_jax.transform import Transform
from lepton_jax.typing import Array, Path, PyTree, Schedule, Select, Step

Allocation = Callable[[Shapes, float], Mapping[Path, float | Array]]
Growth = Callable[[Array, Array], Array]
"""``(dense gradient, key) -> scores`` of the weight's shape; the highest among the pruned weights grow."""


class RewireState(NamedTuple):
    """State of `set_` and `rigl`.

    Attributes:
      masks: by path; boolean, True where the weight is kept, of the weight's shape.
      key: a typed random key; step k draws from ``fold_in(key, k)``.
    """

    masks: dict[Path, Array]
    key: Array


def rewire(mask: Array, weight: Array, growth: Array, fraction: Array) -> Array:
    """Exchange a fraction of the kept weights: drop those of least ``|w|``, grow the highest scores among the pruned.

    ``k = min(round(fraction * kept), pruned)`` weights are dropped and as many grown, so the count stays. What is dropped here
    cannot grow here. Ties go to the lower flat index; NaN counts as zero.

    Args:
      mask: boolean, True where the weight is kept.
      weight: of the mask's shape.
      growth: scores of the mask's shape, from zero up.
      fraction: of the kept weights, [0, 1], may be traced.

    Returns:
      the new mask.

    Example:
      >>> mask, weight = jnp.array([True, True, False, False]), jnp.array([0.1, -2.0, 0.0, 0.0])
      >>> rewire(mask, weight, jnp.array([9.0, 9.0, 1.0, 3.0]), 0.5).tolist()
      [False, True, False, True]
    """
    kept = jnp.sum(mask, dtype=jnp.int32)
    count = jnp.minimum(jnp.round(fraction * kept).astype(jnp.int32), mask.size - kept)
    stay = top_of_all([_among(mask, jnp.abs(weight))], kept - count)[0]
    return stay | top_of_all([_among(~mask, growth)], count)[0]


def _among(candidates: Array, scores: Array) -> Array:
    """Put what is no candidate below everything, and NaN at zero, below every other candidate."""
    return jnp.where(candidates, jnp.where(jnp.isnan(scores), 0, scores), -jnp.inf)


def exchange_schedule(name: str, fraction: float | Schedule, end: int, *, decay: bool) -> Schedule:
    """Read a number as a schedule of the fraction exchanged: decaying by the cosine to 0 at `end`, or steady.

    Example:
      >>> exchange_schedule("rigl", 0.5, 10, decay=True)(0).item(), exchange_schedule("set_", 0.5, 10, decay=False)(5)
      (0.5, 0.5)
    """
    check_whole(f"{name}: end", end, 1)
    if callable(fraction):
        return fraction
    if not 0 <= fraction <= 1:
        raise ValueError(f"{name}: fraction must be in [0, 1], of the kept weights; got {fraction}.")
    return optax.cosine_decay_schedule(fraction, end) if decay else optax.constant_schedule(fraction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewiring:
    """The settings of `set_` and `rigl`, and the functions of their transform."""

    name: str
    sparsity: float
    key: Array
    growth: Growth
    fraction: Schedule
    end: int
    interval: int
    allocation: Allocation
    select: Select
    dense_gradient: bool

    def __post_init__(self) -> None:
        check_fraction(f"{self.name}: sparsity", self.sparsity)
        check_whole(f"{self.name}: interval", self.interval, 1)
        if not jax.dtypes.issubdtype(getattr(self.key, "dtype", None), jax.dtypes.prng_key):
            raise TypeError(f"{self.name}: key must be a typed key, as jax.random.key(seed) makes it; got {self.key!r}.")

    def init(self, params: PyTree) -> tuple[PyTree, RewireState]:
        weights = paths.select(params, self.select)
        goals = self.allocation({path: weight.shape for path, weight in weights.items()}, self.sparsity)
        keys = jax.random.split(self.key, len(weights))
        drawn = {path: jax.random.uniform(key, weight.shape) for key, (path, weight) in zip(keys, weights.items())}
        masks = {p: top_of_all([scores], keep_count(scores.size, goals[p]))[0] for p, scores in drawn.items()}
        return params, RewireState({p: laid_out_as(mask, weights[p]) for p, mask in masks.items()}, self.key)

    def view(self, params: PyTree, state: RewireState) -> PyTree:
        return (masked_straight_through if self.dense_gradient else masked)(params, state.masks)

    def update(self, params: PyTree, state: RewireState, grads: PyTree, step: Step) -> tuple[PyTree, RewireState]:
        weights, slopes = take_slopes(self.name, state.masks, params, grads)
        step = jnp.asarray(step)

        def exchange() -> dict[Path, Array]:
            keys = jax.random.split(jax.random.fold_in(state.key, step), len(weights))
            fraction = self.fraction(step)
            return {
                path: rewire(mask, weights[path], self.growth(slopes[path], key), fraction)
                for key, (path, mask) in zip(keys, sorted(state.masks.items()))  # jit sorts dicts: eager is the same
            }

        due = (step > 0) & (step < self.end) & (step % self.interval == 0)
        masks = jax.lax.cond(due, exchange, lambda: dict(state.masks))
        # Under both masks: what the optimiser has meanwhile made of a pruned weight is not what it starts from.
        return masked(params, {path: mask & state.masks[path] for path, mask in masks.items()}), RewireState(masks, state.key)

    def pack(self, params: PyTree, state: RewireState) -> PyTree:
        return masked(params, state.masks)

    def transform(self) -> Transform:
        return Transform(self.init, self.view, self.update, self.pack)
