"""Factors in place of weights, as a transform."""

import warnings
from collections.abc import Mapping
from typing import Literal

from lepton_jax.core import packed, paths
from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.errors import check_whole, collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.transform import Transform, hold, named
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.lowrank.method import Method, Rank, RankRule, as_tuple, placed
from lepton_jax.lowrank.svd import Svd

Unsupported = Literal["raise", "skip"]


class SkippedWarning(UserWarning):
    """Some selected leaves could not be factorized, and stay dense."""


@checked_but("method", "rank")
@named
def low_rank(
    rank: Rank | Mapping[Path, Rank] | RankRule,
    *,
    method: Method = Svd(),
    select: Select = paths.matrices,
    unsupported: Unsupported = "raise",
) -> Transform:
    """Exchange each selected weight for smaller trainable factors: for a matrix two thin ones, ``view = u @ v``.

    The factors are leaves of their own (``Dense_0/kernel/u``): a later transform of a chain may prune or quantize them, and
    optimisers, checkpoints and sharding see them as they see any leaf.

    Args:
      rank: inner size, 1 to the highest of every selected leaf (`Method.max_rank`): one number, or one for each inner size of
        the method; or a mapping from path to rank, or a rule that chooses it: what they leave out stays dense.
      method: the factorization. With the default a convolution's kernel is read as the matrix of (height, width, in) by out.
      select: which leaves; by default those with two axes or more. Of `lepton_jax.graph.weights`, each is read as the matrix of
        inputs by outputs that it is, and stacked ones one by one.
      unsupported: what to do with a leaf that the method cannot factorize: refuse all, or leave it dense and warn.

    Raises:
      ValueError: for ranks that are no whole numbers or outside that range, or leaves that the method cannot factorize (all
        paths together), or a selector that matches nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> transform = low_rank(1)
      >>> params, state = transform.init({"kernel": jnp.ones((4, 3))})
      >>> paths.flatten(params)["kernel/u"].shape, transform.view(params, state)["kernel"].shape
      ((4, 1), (4, 3))

    Source: Denil et al. 2013, "Predicting parameters in deep learning"; the methods name their own.
    """
    if not isinstance(method, Method):
        raise TypeError(f"low_rank: method must be a factorization such as Svd(); got {method!r}.")
    paths.check_select("low_rank: select", select)
    if unsupported not in ("raise", "skip"):
        raise ValueError(f"low_rank: unsupported must be 'raise' or 'skip'; got {unsupported!r}.")
    if not isinstance(rank, Mapping) and not hasattr(rank, "ranks"):
        _check_rank("low_rank: rank", rank)

    def init(params: PyTree) -> tuple[PyTree, tuple[()]]:
        weights = paths.select(params, select)
        mine = placed(method, select, weights)
        weights = _supported(weights, mine, type(method).__name__, unsupported)
        check_finite("low_rank", weights)
        ranks = _ranks(rank, weights, mine)
        return paths.replace(params, factors_of({path: weights[path] for path in ranks}, ranks, mine)), ()

    def view(params: PyTree, state: tuple[()]) -> PyTree:
        return packed.unpack(params)

    def factors(params: PyTree, state: tuple[()]) -> PyTree:
        return params

    return Transform(init, view, hold, pack=factors, view_leaves=factors)


@checked
def factors_of(weights: Mapping[Path, Array], ranks: Mapping[Path, Rank], method: Method) -> dict[Path, packed.Packed]:
    """Return the factors of several leaves, by path.

    Raises:
      ValueError: with every leaf whose rank is outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> factors_of({"w": jnp.ones((4, 3))}, {"w": 2}, Svd())["w"].v.shape
      (2, 3)
    """
    text = f"rank {next(iter(set(ranks.values())))}" if len(set(ranks.values())) == 1 else "these ranks"
    with collect(f"low_rank: cannot factorize with {text}") as problems:
        for path, r in ranks.items():
            shape = tuple(weights[path].shape)
            highest = method.at(path).max_rank(shape)
            if not _within(r, highest):
                given = "" if text != "these ranks" else f"rank {r}; "
                limit = f"1 to {highest}" if isinstance(highest, int) else f"from 1 to {highest}, one for each, or one for all"
                problems.append(f"{path}: {given}shape {shape}; the rank must be {limit}: choose less, or deselect it.")
    return {path: method.at(path).factorize(weights[path], r) for path, r in ranks.items()}


def _supported(weights: dict[Path, Array], method: Method, name: str, unsupported: Unsupported) -> dict[Path, Array]:
    reasons = {path: method.at(path).refusal(tuple(weight.shape)) for path, weight in weights.items()}
    refused = {path: f"{path}: shape {tuple(weights[path].shape)} {why}" for path, why in reasons.items() if why is not None}
    if refused and unsupported == "skip":
        listed = "; ".join(refused.values())
        warnings.warn(f"{name} leaves {len(refused)} of {len(weights)} leaves dense: {listed}.", SkippedWarning, stacklevel=3)
    elif refused:
        with collect(f"low_rank: {name} cannot factorize these; deselect them, or pass unsupported='skip'") as problems:
            problems.extend(refused.values())
    return {path: weight for path, weight in weights.items() if path not in refused}


def _ranks(rank: Rank | Mapping[Path, Rank] | RankRule, weights: dict[Path, Array], method: Method) -> dict[Path, Rank]:
    if isinstance(rank, (int, tuple)):
        return dict.fromkeys(weights, rank)
    found = dict(rank if isinstance(rank, Mapping) else rank.ranks(weights, method))
    with collect("low_rank: ranks for leaves that are not selected, or not supported") as problems:
        problems.extend(f"{path}: there are {', '.join(weights) or 'none'}" for path in found if path not in weights)
    for path, r in found.items():
        _check_rank(f"low_rank: rank of {path}", r)
    return found


def _check_rank(name: str, rank: object) -> None:
    for one in rank if isinstance(rank, tuple) and rank else (rank,):
        check_whole(name, one, 1)  # type: ignore[arg-type]


def _within(rank: Rank, highest: Rank) -> bool:
    tops = as_tuple(highest)
    ranks = (rank,) * len(tops) if isinstance(rank, int) else rank
    return len(ranks) == len(tops) and all(1 <= one <= top for one, top in zip(ranks, tops))
