"""What an importance is, and how scores of slices become scores of channels."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option, collect
from lepton_jax.core.paths import flatten
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.pruning.channels.groups import Group, Place
from lepton_jax.pruning.channels.match import Matcher

Reduce = Literal["sum", "mean", "max"]
Normalize = Literal["none", "mean", "max"]


class Importance:
    """Scores the slices of variables that make up a channel; the higher, the more it is worth keeping.

    Subclasses are frozen dataclasses.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> class Last(Importance):
      ...     def scores(self, variables, groups):
      ...         return {(s.path, s.axis): np.arange(s.indices.size) for group in groups for s in group.slices}
      >>> group = Group(slices=(Slices(path="kernel", axis=1, indices=np.array([[0], [1]])),))
      >>> Last().scores({}, [group])
      {('kernel', 1): array([0, 1])}
    """

    def scores(self, variables: Mapping[Path, Any], groups: Sequence[Group]) -> Mapping[Place, np.ndarray]:
        """Return a score for every index of every axis that it has an opinion on.

        Args:
          variables: ``{path: leaf}``.
          groups: the groups that are to be scored; axes in none of them need no score.

        Returns:
          ``{(path, axis): float[length of the axis]}``.
        """
        raise TypeError(f"{type(self).__name__} defines no scores")


def places(groups: Sequence[Group]) -> dict[Place, None]:
    """The axes that occur in the groups, each once, in order."""
    return {s.place: None for group in groups for s in group.slices}


def value(variables: Mapping[Path, Any], path: Path) -> np.ndarray:
    """The values of a leaf, in float64.

    Raises:
      TypeError: if only its shape is known.
    """
    leaf = variables[path]
    if not hasattr(leaf, "__array__"):
        raise TypeError(f"{path}: this importance needs the values of the variables; got {type(leaf).__name__}. Use Random.")
    return np.asarray(leaf).astype(np.float64)


def along(elements: np.ndarray, axis: int) -> np.ndarray:
    """Sum scores of single weights over all axes but one."""
    return elements.sum(axis=tuple(a for a in range(elements.ndim) if a != axis))


def by_variable(tree: PyTree, variables: Mapping[Path, Any]) -> dict[Path, Any]:
    """The leaves of a tree of gradients by the path of the variable that each belongs to.

    Raises:
      ValueError: if none belongs to any, or one has another shape.
    """
    matcher = Matcher(variables)
    with collect("Gradients must have the paths and shapes of the variables") as problems:
        found = {}
        for path, leaf in flatten(tree).items():
            name = matcher.find(path)
            if name is None:
                continue
            if np.shape(leaf) != tuple(variables[name].shape):
                problems.append(f"{path}: must have the shape {tuple(variables[name].shape)}; got {np.shape(leaf)}")
            found[name] = leaf
        if not found:
            problems.append(f"no leaf's path ends in that of a variable, such as {', '.join(list(variables)[:5])}")
    return found


@checked
def channel_scores(
    groups: Sequence[Group], scores: Mapping[Place, np.ndarray], reduce: Reduce, normalize: Normalize
) -> list[np.ndarray]:
    """Reduce the scores of all slices of a channel to one, and normalise within its group.

    Args:
      groups: the groups.
      scores: as from `Importance.scores`.
      reduce: how the scores of a channel's slices become one.
      normalize: what the scores of a group are divided by, so that groups can be compared: their mean, their maximum, or
        nothing.

    Returns:
      float[channels] for every group.

    Raises:
      ValueError: for a group without any score, or with one that is not finite.

    Example:
      >>> from lepton_jax.pruning.channels.groups import Slices
      >>> group = Group(slices=(Slices(path="kernel", axis=1, indices=np.array([[0, 1], [2, 3]])),))
      >>> channel_scores([group], {("kernel", 1): np.array([1.0, 2.0, 3.0, 6.0])}, "sum", "mean")
      [array([0.5, 1.5])]
    """
    check_option("reduce", reduce, Reduce)
    check_option("normalize", normalize, Normalize)
    results = []
    with collect("The criterion cannot rank every group; exclude those, or choose another") as problems:
        for group in groups:
            known = [scores[s.place][s.indices] for s in group.slices if s.place in scores]
            if not known:
                problems.append(f"{group.name}: none of its slices has a score ({', '.join(s.path for s in group.slices)})")
                continue
            whole = np.concatenate(known, axis=1)
            one = np.asarray(getattr(whole, reduce)(axis=1))
            if not np.isfinite(one).all():
                problems.append(f"{group.name}: has scores that are not finite")
            scale = {"none": 1.0, "mean": np.abs(one).mean(), "max": np.abs(one).max()}[normalize]
            results.append(one / scale if scale > 0 else one)
    return results
