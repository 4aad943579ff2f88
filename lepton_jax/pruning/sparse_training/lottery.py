"""Lottery tickets: prune what was trained, go back, train again."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction, check_option, check_whole, collect, is_traced
from lepton_jax.core.finite import check_finite
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.pruning.hide import Masks, apply_mask, check_masks, masked
from lepton_jax.pruning.masks import keep_some
from lepton_jax.pruning.sanity import Initializer, reinitialize
from lepton_jax.pruning.threshold import leave_one, top_of_groups

Train = Callable[[PyTree, dict[Path, Array]], PyTree]
"""``(params, masks) -> trained params``, e.g. a run of `fit` under ``fixed_masks(masks)``."""
Restart = Callable[[PyTree, PyTree, Masks, int], PyTree]
"""``(initial, trained, masks, round) -> params`` that a round begins from."""


class LotteryRound(NamedTuple):
    """One round of `lottery`.

    Attributes:
      number: 0 for the dense round.
      masks: by path, under which the round trained.
      begun: the parameters that it began from.
      trained: the parameters that it ended at.
    """

    number: int
    masks: dict[Path, Array]
    begun: PyTree
    trained: PyTree


@checked
def next_masks(
    params: PyTree, masks: Masks, fraction: float | Mapping[Path, float], *, scope: Literal["layer", "global"] = "global"
) -> dict[Path, Array]:
    """Remove a fraction of the weights that are left, those of least ``|w|``.

    Of n weights that are left ``n - round(fraction * n)`` stay; ties go to the earlier leaf and the lower flat index.

    Args:
      params: trained under `masks`.
      masks: by path.
      fraction: [0, 1); by path in scope "layer", where it may differ (the paper halves it for the output layer).
      scope: "global": all leaves are compared; "layer": each leaf loses its fraction.

    Returns:
      the next masks, each within the one before.

    Raises:
      ValueError: for a fraction out of range or missing, an unknown scope, or masks that do not fit the parameters.

    Example:
      >>> params = {"w": jnp.array([4.0, 0.0, 1.0, -2.0])}
      >>> next_masks(params, {"w": jnp.array([True, False, True, True])}, 1 / 3)["w"].tolist()
      [True, False, False, True]

    Source: Frankle and Carbin 2019, "The lottery ticket hypothesis", section 2 (layer) and section 4 (global).
    """
    check_masks("next_masks", masks, params)
    fractions = _fractions(masks, fraction, scope)
    leaves = paths.flatten(params)
    order = [path for path in leaves if path in masks]
    groups = (0,) * len(order) if scope == "global" else tuple(range(len(order)))
    keep: list[Array] = []
    for group in range(max(groups) + 1):
        members = [path for path, its in zip(order, groups) if its == group]
        left = sum((jnp.sum(masks[path], dtype=jnp.int32) for path in members), jnp.int32(0))
        keep.append(_still(left, fractions[members[0]]))
    sizes, allowed = [jnp.abs(leaves[path]) for path in order], [masks[path] for path in order]
    return dict(zip(order, top_of_groups(sizes, jnp.stack(keep), groups=groups, allowed=allowed).masks))


def _still(left: Array, fraction: float) -> Array:
    """Return how many of the weights that are left stay: exactly where they can be counted, in float32 under jit."""
    if is_traced(left):
        return jnp.asarray(keep_some(left, jnp.float32(fraction)))
    return jnp.asarray(keep_some(int(left), fraction), jnp.int32)


def _fractions(masks: Masks, fraction: float | Mapping[Path, float], scope: str) -> dict[Path, float]:
    """Return every leaf's fraction; raise if there is none or it is out of range."""
    by_path = dict(fraction) if isinstance(fraction, Mapping) else dict.fromkeys(masks, fraction)
    with collect("next_masks") as problems:
        if scope not in ("layer", "global"):
            problems.append(f"scope must be 'layer' or 'global'; got {scope!r}")
        if scope == "global" and isinstance(fraction, Mapping):
            problems.append("a fraction by path needs scope='layer'")
        problems.extend(f"{path}: no fraction given" for path in masks if path not in by_path)
    for path in masks:
        check_fraction(f"next_masks: fraction of {path}", by_path[path])
    return by_path


@checked
def rewind(params: PyTree, masks: Masks) -> PyTree:
    """Return the parameters that a round begins from: `params`, with zeros where the masks are False.

    Weight rewinding gives the parameters of an early step k (k = 0: as initialised), and trains with the schedule from k on.
    Rate rewinding gives the trained parameters, and trains with the learning rate's schedule from k on once more. Fine-tuning
    gives the trained parameters, and trains at the last rate.

    Example:
      >>> rewind({"w": jnp.array([0.5, 0.25])}, {"w": jnp.array([True, False])})["w"].tolist()
      [0.5, 0.0]

    Source: Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis" (weights, k > 0); Renda,
    Frankle, Carbin 2020, "Comparing rewinding and fine-tuning in neural network pruning" (rate).
    """
    return masked(params, masks)


@checked
def weight_rewinding(initial: PyTree, trained: PyTree, masks: Masks, number: int) -> PyTree:
    """Begin every round of `lottery` from the parameters that the first began from.

    Example:
      >>> weight_rewinding({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, {"w": jnp.array([True, False])}, 1)["w"].tolist()
      [1.0, 0.0]

    Source: Frankle and Carbin 2019, section 1; for an early step: Frankle et al. 2020.
    """
    del trained, number
    return rewind(initial, masks)


@checked
def rate_rewinding(initial: PyTree, trained: PyTree, masks: Masks, number: int) -> PyTree:
    """Begin every round of `lottery` from the parameters that the last one ended at; the learning rate's schedule starts anew.

    Example:
      >>> rate_rewinding({"w": jnp.ones(2)}, {"w": jnp.full(2, 3.0)}, {"w": jnp.array([True, False])}, 1)["w"].tolist()
      [3.0, 0.0]

    Source: Renda, Frankle, Carbin 2020, section 3.
    """
    del initial, number
    return rewind(trained, masks)


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomReinitialization:
    """Begin every round of `lottery` from newly drawn weights under its masks; other leaves as in the first.

    Args:
      key: a typed random key; round n draws from ``fold_in(key, n)``.
      init: draws a weight, see `lepton_jax.pruning.sanity.reinitialize`.

    Example:
      >>> restart = RandomReinitialization(key=jax.random.key(0), init=jax.nn.initializers.ones)
      >>> restart({"w": jnp.zeros(2)}, {"w": jnp.zeros(2)}, {"w": jnp.array([True, False])}, 1)["w"].tolist()
      [1.0, 0.0]

    Source: Frankle and Carbin 2019, section 2, the control experiment.
    """

    key: Array
    init: Initializer

    def __call__(self, initial: PyTree, trained: PyTree, masks: Masks, number: int) -> PyTree:
        """Return the parameters that round `number` begins from."""
        del trained
        return reinitialize(jax.random.fold_in(self.key, number), initial, masks, self.init)


@checked
def lottery(
    initial: PyTree,
    train: Train,
    *,
    rounds: int,
    fraction: float | Mapping[Path, float] = 0.2,
    scope: Literal["layer", "global"] = "global",
    restart: Restart = weight_rewinding,
    select: Select = paths.matrices,
) -> Iterator[LotteryRound]:
    """Prune by rounds: train, remove a fraction of what is left, restart, train again. At least one weight of a leaf is left.

    For weight rewinding to an early step k, train k steps first, give those parameters as `initial`, and let `train` go on
    from k.

    Args:
      initial: the parameters that the first round begins from.
      train: ``(params, masks) -> trained params``; `fixed_masks` keeps its masks in its state, so one compiled step serves all
        rounds.
      rounds: rounds of pruning after the dense one.
      fraction: removed each round, of the weights that are left; see `next_masks`.
      scope: "global" or "layer".
      restart: `weight_rewinding`, `rate_rewinding`, `RandomReinitialization`, or any function of their signature.
      select: which leaves are pruned; by default those with two axes or more.

    Returns:
      an iterator of ``rounds + 1`` `LotteryRound`, the dense one first; each trains when it is asked for.

    Raises:
      ValueError: for rounds below 0, trained weights that are not finite, and as `next_masks` does.

    Example:
      >>> found = lottery({"w": jnp.array([[3.0, -1.0]])}, lambda params, masks: params, rounds=1, fraction=0.5)
      >>> [one.begun["w"].tolist() for one in found]
      [[[3.0, -1.0]], [[3.0, 0.0]]]

    Source: Frankle and Carbin 2019, "The lottery ticket hypothesis", section 1, iterative pruning.
    """
    check_whole("lottery: rounds", rounds, 0)
    check_option("lottery: scope", scope, Literal["layer", "global"])
    masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in paths.select(initial, select).items()}

    def run(masks: dict[Path, Array], begun: PyTree) -> Iterator[LotteryRound]:
        for number in range(rounds + 1):
            trained = train(begun, masks)
            leaves = paths.flatten(trained)
            sizes = {path: jnp.abs(apply_mask(leaves[path], mask)) for path, mask in masks.items() if path in leaves}
            check_finite(f"lottery, round {number}", sizes)
            yield LotteryRound(number, masks, begun, trained)
            if number < rounds:
                found = next_masks(trained, masks, fraction, scope=scope)
                needed = [mask.ndim > 1 for mask in masks.values()]
                left = leave_one([found[path] for path in masks], list(sizes.values()), list(masks.values()), needed=needed)
                masks = dict(zip(masks, left))
                begun = restart(initial, trained, masks, number + 1)

    return run(masks, initial)
