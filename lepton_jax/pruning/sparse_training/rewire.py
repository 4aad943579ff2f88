"""Rewiring: drop the weakest weights, grow as many others. What SET and RigL share."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax.core import paths
from lepton_jax.core.errors import check_fraction, check_whole
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, Path, PyTree, Schedule, Select, Step
from lepton_jax.pruning.allocation import Allocation
from lepton_jax.pruning.hide import Gradient, apply_mask, laid_out_as, take_slopes, through_masks
from lepton_jax.pruning.masks import keep_some
from lepton_jax.pruning.stacked import Stacks
from lepton_jax.pruning.state import Failure, first_failure, no_failure
from lepton_jax.pruning.threshold import top_of_groups
from lepton_jax.pruning.words import counts_of, is_wide, minus, share, true_count

Leaves = Mapping[Path, Array]
K = TypeVar("K", Path, tuple[Path, int])
"""A leaf, or one of the weights that it stacks."""
Growth = Callable[[Array, Array], Array]
"""``(dense gradient, key) -> scores`` of the weight's shape; the highest among the pruned weights grow."""


class RewireState(NamedTuple):
    """State of `set_` and `rigl`.

    Attributes:
      masks: by path; boolean, True where the weight is kept, of the weight's shape.
      key: a typed random key; step k draws from ``fold_in(key, k)``.
      failure: weights or growth scores that were not finite; the masks were left as they were. See `check_scores`.
    """

    masks: dict[Path, Array]
    key: Array
    failure: Failure

    def problems(self) -> dict[str, list[str]]:
        """What `check_state` reports."""
        return self.failure.describe(self.masks)


def rewire(
    masks: Mapping[K, Array], weights: Mapping[K, Array], growth: Mapping[K, Array], fraction: float | Array
) -> tuple[dict[K, Array], Array]:
    """Exchange a fraction of each leaf's kept weights: drop those of least ``|w|``, grow the highest scores among all others.

    ``k = round(fraction * kept)`` weights of a leaf are dropped and as many grown, so its count stays. What is dropped can
    grow again at once, as the papers have it: then it was never gone. Ties go to the lower flat index; NaN comes last. All
    leaves are searched together.

    Args:
      masks: by path; boolean, True where the weight is kept.
      weights: by path.
      growth: scores by path, floating, of the weights' shapes.
      fraction: of the kept weights, [0, 1], may be traced.

    Returns:
      (the new masks; int32 [leaves], in the order of the sorted paths, how many of what was ranked is NaN or infinite).

    Example:
      >>> masks, weights = {"w": jnp.array([True, True, False, False])}, {"w": jnp.array([0.1, -2.0, 0.0, 0.0])}
      >>> new, not_finite = rewire(masks, weights, {"w": jnp.array([2.0, 9.0, 1.0, 3.0])}, 0.5)
      >>> new["w"].tolist(), not_finite.tolist()
      ([False, True, False, True], [0])
      >>> rewire(masks, weights, {"w": jnp.array([4.0, 9.0, 1.0, 3.0])}, 0.5)[0]["w"].tolist()
      [True, True, False, False]
    """
    order: list[K] = sorted(masks)  # type: ignore[type-var]
    wide = is_wide([masks[path].size for path in order])
    kept = counts_of([true_count(masks[path]) for path in order], wide=wide)
    count = share(fraction, kept)
    rest = minus(kept, count) if wide else kept - count
    groups = tuple(range(len(order)))
    stays = top_of_groups(
        [jnp.abs(weights[path]) for path in order], rest, groups=groups, allowed=[masks[path] for path in order]
    )
    grows = top_of_groups([growth[path] for path in order], count, groups=groups, allowed=[~stay for stay in stays.masks])
    new = {path: stay | grow for path, stay, grow in zip(order, stays.masks, grows.masks)}
    return new, stays.not_finite + grows.not_finite


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


def rewiring(
    name: str,
    growth: Growth,
    sparsity: float,
    key: Array,
    *,
    fraction: Schedule,
    end: int,
    interval: int,
    allocation: Allocation,
    select: Select,
    gradient: Gradient = "masked",
) -> Transform:
    """Return the transform of `set_` and `rigl`: random masks, and now and then an exchange, where `growth` says what grows.

    Example:
      >>> draw = lambda grad, key: jnp.abs(grad)
      >>> steady = exchange_schedule("mine", 0.5, 9, decay=False)
      >>> settings = {"fraction": steady, "end": 9, "interval": 1, "allocation": lambda shapes, s: {"w": s}, "select": "*"}
      >>> rewiring("mine", draw, 0.5, jax.random.key(0), **settings).init({"w": jnp.ones(4)})[1].masks["w"].sum().item()
      2
    """
    check_fraction(f"{name}: sparsity", sparsity)
    check_whole(f"{name}: interval", interval, 1)
    paths.check_select(f"{name}: select", select)
    if not jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise TypeError(f"{name}: key must be a typed key, as jax.random.key(seed) makes it; got {key!r}.")

    def init(params: PyTree) -> tuple[PyTree, RewireState]:
        weights = paths.select(params, select)
        stacks = Stacks(select, weights)
        goals = allocation(stacks.shapes, sparsity)
        first, later = jax.random.split(key)  # a buffer of its own: states are donated
        keys = jax.random.split(first, len(weights))
        drawn = {path: jax.random.uniform(key, weight.shape) for key, (path, weight) in zip(keys, weights.items())}
        parts = stacks.parts(drawn)
        sizes = [part.size for part in parts.values()]
        keep = counts_of([keep_some(part.size, goals[path]) for (path, _), part in parts.items()], wide=is_wide(sizes))
        found = top_of_groups(list(parts.values()), keep, groups=tuple(range(len(parts)))).masks
        whole = stacks.whole(dict(zip(parts, found)), weights)
        masks = {path: laid_out_as(mask, weights[path]) for path, mask in whole.items()}
        return params, RewireState(masks, later, no_failure(len(masks)))

    def update(params: PyTree, state: RewireState, grads: PyTree, step: Step) -> tuple[PyTree, RewireState]:
        weights, slopes = take_slopes(name, state.masks, params, grads)
        weights = {path: apply_mask(weight, state.masks[path]) for path, weight in weights.items()}
        step = jnp.asarray(step)

        def exchange(weights: Leaves) -> tuple[Leaves, Leaves, Failure]:
            keys = jax.random.split(jax.random.fold_in(state.key, step), len(weights))
            # In sorted order, in which jit hands over dicts: eager draws are the same.
            grown = {path: growth(slopes[path], key) for path, key in zip(sorted(weights), keys)}
            stacks = Stacks(select, weights)
            parts, by_part = rewire(stacks.parts(state.masks), stacks.parts(weights), stacks.parts(grown), fraction(step))
            found = stacks.whole(parts, weights)
            places = np.array([sorted(weights).index(path) for path, _ in sorted(parts)])
            not_finite = jnp.zeros(len(weights), jnp.int32).at[places].add(by_part)
            failed = jnp.any(not_finite > 0)
            masks = {path: jnp.where(failed, state.masks[path], mask) for path, mask in found.items()}
            failure = first_failure(state.failure, not_finite, step)
            return {path: apply_mask(weight, masks[path]) for path, weight in weights.items()}, masks, failure

        def stay(weights: Leaves) -> tuple[Leaves, Leaves, Failure]:
            return weights, dict(state.masks), state.failure

        due = (step > 0) & (step < end) & (step % interval == 0)
        # The weights go through it, so that a step that changes no mask does not read them once more.
        weights, masks, failure = jax.lax.cond(due, exchange, stay, weights)
        return paths.replace(params, weights), RewireState(masks, state.key, failure)

    return through_masks(init, update, gradient=gradient)
