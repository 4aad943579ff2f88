"""The state of `prune`, and what transforms that rank weights say of scores that were not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.transform import check_state
from lepton_jax.core.typing import Array, Path


class Goals(NamedTuple):
    """Where the sparsity rises to; in the state, so that the states of several sparsities can be stacked.

    A *group* is what has a threshold of its own: every leaf, in the order of the sorted paths; or, in scope "global", all
    together.

    Attributes:
      sparsity: float32 scalar, of all leaves together.
      by_group: float32 [groups].
      keep: int32 [groups], the units that are kept in the end; where a group has 2**31 or more, uint32 [groups, 2], the high
        word first.
    """

    sparsity: Array
    by_group: Array
    keep: Array


class Failure(NamedTuple):
    """The first update whose scores were not all finite.

    Attributes:
      not_finite: int32 [leaves], how many scores of each leaf, in the order of the sorted paths; all 0 while none has failed.
      step: int32 scalar, when that was; 0 for `init`.
    """

    not_finite: Array
    step: Array

    def describe(self, paths: Iterable[Path]) -> dict[str, list[str]]:
        """Return what to say of the scores of the leaves at these paths, under a heading; see `check_state`."""
        failure, places = jax.device_get(self), sorted(paths)
        counts = np.reshape(failure.not_finite, (-1, len(places)))
        found = [
            f"{path}: {number} scores are NaN or infinite at step {step}"
            for count, step in zip(counts, np.reshape(failure.step, -1))  # one of each run that is trained at once
            for path, number in zip(places, count)
            if number
        ]
        return {"prune: scores must be finite, and were not; the masks are those of before": found}


class PruneState(NamedTuple):
    """State of `prune`.

    Attributes:
      masks: by path; boolean, True where the weight is kept, of the weight's shape.
      criterion: by path; what the criterion gathers.
      sparsity: float32 scalar, the sparsity that the masks were made for.
      goals: where it rises to.
      thresholds: uint32 [groups], where the next search for a threshold begins.
      failure: the scores that could not be ranked; the masks were left as they were.
    """

    masks: dict[Path, Array]
    criterion: dict[Path, Any]
    sparsity: Array
    goals: Goals
    thresholds: Array
    failure: Failure

    def problems(self) -> dict[str, list[str]]:
        """What `check_state` reports."""
        return self.failure.describe(self.masks)


def no_failure(leaves: int) -> Failure:
    """Return the state of things before any update.

    Example:
      >>> no_failure(2).not_finite.tolist()
      [0, 0]
    """
    return Failure(jnp.zeros(leaves, jnp.int32), jnp.int32(0))


def first_failure(failure: Failure, not_finite: Array, step: Array) -> Failure:
    """Return the failure with an update's counts noted, unless there was one before.

    Example:
      >>> first_failure(no_failure(2), jnp.array([0, 3]), jnp.int32(7)).step.item()
      7
    """
    news = jnp.any(not_finite > 0) & jnp.all(failure.not_finite == 0)
    new = Failure(not_finite, jnp.asarray(step, jnp.int32))
    return jax.tree.map(lambda a, b: jnp.where(news, a, b), new, failure)


@checked
def check_scores(state: Any) -> None:
    """Raise if an update met scores that are not finite: `check_state`, by its older name.

    Inside a compiled step nothing can be raised. There, such an update leaves every mask as it was, and notes in the state
    where the scores were not finite, and when; this function reports it. `lepton_jax.training.fit` calls it.

    Args:
      state: of `prune`, `set_` or `rigl`, or any tree with such states in it: of a chain, of a whole training run, of several
        seeds at once.

    Raises:
      ValueError: naming the leaves and the step of the first such update.

    Example:
      >>> from lepton_jax import prune
      >>> params, state = prune(0.5, gradient="straight_through").init({"kernel": jnp.ones((2, 2))})
      >>> bad = {"kernel": jnp.full((2, 2), jnp.nan)}
      >>> _, state = prune(0.5, gradient="straight_through").update(bad, state, bad, 7)
      >>> check_scores(state)
      Traceback (most recent call last):
      ...
      ValueError: prune: scores must be finite, and were not; the masks are those of before:
        kernel: 4 scores are NaN or infinite at step 7
    """
    check_state(state)
