"""Dynamic network surgery: prune and splice."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Path, PyTree, Select, Step
from lepton_jax.pruning.hide import take_slopes, through_masks
from lepton_jax.pruning.stacked import Stacks


class SurgeryState(NamedTuple):
    """State of `dynamic_surgery`.

    Attributes:
      masks: by path; boolean, True where the weight is kept, of the weight's shape.
      thresholds: by path; float32 scalar, the middle of the two thresholds.
      key: a typed random key; step k draws from ``fold_in(key, k)``.
    """

    masks: dict[Path, Array]
    thresholds: dict[Path, Array]
    key: Array


def surgery_threshold(weight: Array, c: float, axes: tuple[int, ...] | None = None) -> Array:
    """Return ``max(mean(|w|) + c * std(|w|), 0)`` of one leaf, float32; over some of its axes, if given, which are kept.

    Example:
      >>> surgery_threshold(jnp.array([1.0, -3.0]), 0.5)
      Array(2.5, dtype=float32)
    """
    size = jnp.abs(weight.astype(jnp.float32))
    kept = axes is not None
    return jnp.maximum(jnp.mean(size, axes, keepdims=kept) + c * jnp.std(size, axes, keepdims=kept), 0)


def prune_and_splice(mask: Array, weight: Array, low: Array, high: Array) -> Array:
    """Return the next mask: off below `low`, on from `high`, as it was between.

    A weight that is not finite is left as it was, so that what a mask hides cannot come back as one. Where all would be off,
    the largest are on: a leaf that loses all cuts the network.

    Example:
      >>> mask = jnp.array([True, True, False, False])
      >>> prune_and_splice(mask, jnp.array([0.1, 0.5, -0.5, -0.9]), 0.3, 0.8).tolist()
      [False, True, False, True]
    """
    size = jnp.abs(weight)
    found = jnp.where(jnp.isfinite(weight), (size >= high) | (mask & (size >= low)), mask)
    real = jnp.where(jnp.isfinite(weight), size, 0)
    # One threshold a leaf, or one for each weight that it stacks.
    axes = tuple(axis for axis, length in enumerate(jnp.shape(low)) if length == 1) if jnp.ndim(low) else None
    largest = (real == jnp.max(real, axes, keepdims=axes is not None, initial=0)) & (real > 0)
    return jnp.where(jnp.any(found, axes, keepdims=axes is not None), found, largest)


@checked
@named
def dynamic_surgery(
    c: float,
    key: Array,
    *,
    end: int,
    margin: float = 0.1,
    gamma: float = 0.0,
    power: float = 1.0,
    interval: int = 1,
    select: Select = paths.matrices,
) -> Transform:
    """Prune weights as they become small, and splice them in again as they become large.

    ``T <- 0 where |w| < a, 1 where |w| >= b, else as it was``; ``a = (1 - margin) t``, ``b = (1 + margin) t``, ``t =
    max(mean(|w|) + c std(|w|), 0)`` of each leaf as it is at `init`. All masters get the gradient of the view, ``w <- w -
    rate dL/d(w T)``, so that a pruned weight lives on and may return. Masks change at steps before `end`, every `interval`
    steps, each leaf's with probability ``(1 + gamma step)^-power``. The sparsity follows from `c`; see `sparsity_of`.

    Args:
      c: of the threshold; the higher, the sparser. Start from trained weights.
      key: a typed random key, kept in the state.
      end: the step from which the masks stay.
      margin: half the gap between the thresholds, relative, [0, 1).
      gamma, power: of the probability of an update; 0 updates always.
      interval: steps between two updates.
      select: which leaves; by default those with two axes or more.

    Raises:
      ValueError: for settings out of range (all together), or a selector that matches nothing.

    Example:
      >>> transform = dynamic_surgery(0.0, jax.random.key(0), end=100)
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[0.0, -4.0], [3.0, 0.0]]
      >>> _, state = transform.update({"kernel": jnp.array([[2.8, -1.0], [3.0, 2.3]])}, state, params, 1)
      >>> state.masks["kernel"].tolist()
      [[True, False], [True, False]]

    Source: Guo, Yao, Chen 2016, "Dynamic network surgery for efficient DNNs", equations 1 to 3; the thresholds, their margin
    of 0.1 and the probability as in the authors' code. Deviation: the first masks are made at `init`, there in the first
    steps.
    """
    with collect("dynamic_surgery") as problems:
        if not 0 <= margin < 1:
            problems.append(f"margin must be in [0, 1); got {margin}")
        if gamma < 0 or power < 0:
            problems.append(f"gamma and power must not be negative; got {gamma} and {power}")
    check_whole("dynamic_surgery: end", end, 1)
    check_whole("dynamic_surgery: interval", interval, 1)
    paths.check_select("dynamic_surgery: select", select)

    def operate(mask: Array, weight: Array, threshold: Array) -> Array:
        return prune_and_splice(mask, weight, (1 - margin) * threshold, (1 + margin) * threshold)

    def init(params: PyTree) -> tuple[PyTree, SurgeryState]:
        weights = paths.select(params, select)
        check_finite("dynamic_surgery", weights)  # a threshold that is NaN would prune all
        stacks = Stacks(select, weights)
        thresholds = {path: surgery_threshold(w, c, stacks.alone(path)) for path, w in weights.items()}
        masks = {path: operate(jnp.ones(w.shape, bool), w, thresholds[path]) for path, w in weights.items()}
        later = jax.random.fold_in(key, 0)  # a buffer of its own: states are donated
        return params, SurgeryState(masks, thresholds, later)

    def update(params: PyTree, state: SurgeryState, grads: PyTree, step: Step) -> tuple[PyTree, SurgeryState]:
        weights, _ = take_slopes("dynamic_surgery", state.masks, params, grads)
        step = jnp.asarray(step)
        chance = (1 + gamma * step.astype(jnp.float32)) ** -power
        draws = jax.random.uniform(jax.random.fold_in(state.key, step), (len(weights),))
        due = (step < end) & (step % interval == 0) & (draws < chance)
        masks = {  # in sorted order, in which jit hands over dicts: eager draws are the same
            path: jnp.where(due[number], operate(mask, weights[path], state.thresholds[path]), mask)
            for number, (path, mask) in enumerate(sorted(state.masks.items()))
        }
        return params, state._replace(masks=masks)

    return through_masks(init, update, gradient="straight_through")
