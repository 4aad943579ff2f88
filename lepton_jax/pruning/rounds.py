"""Pruning in many small rounds, scoring anew in each."""

from typing import Literal

import jax
import jax.numpy as jnp
from tqdm.auto import tqdm

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction, check_whole, collect, is_traced
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.pruning.criteria.base import Criterion
from lepton_jax.pruning.masks import keep_some
from lepton_jax.pruning.threshold import leave_one, top_of_groups
from lepton_jax.pruning.words import counts_of, is_wide


@checked
def iterative_masks(
    criterion: Criterion,
    params: PyTree,
    sparsity: float,
    rounds: int = 100,
    *,
    scope: Literal["global", "layer"] = "global",
    select: Select = paths.matrices,
    progress: bool = True,
) -> dict[Path, Array]:
    """Return masks made in rounds: score the masked parameters, prune a little more, and again.

    After round k of n, ``1 - (1 - sparsity)**(k / n)`` is removed: every round takes the same fraction of what is left. A
    weight once pruned stays so. One function is compiled, run `rounds` times. With `SynFlow` and 100 rounds it is its paper's
    algorithm, with `Snip` iterative SNIP. The final count is exact.

    Args:
      criterion: scores; its state is made anew in every round.
      params: at which the criterion looks.
      sparsity: fraction removed in the end, [0, 1).
      rounds: how many.
      scope: "global": one threshold for all leaves. "layer": each leaf has its own.
      select: which leaves.
      progress: show a bar.

    Returns:
      boolean masks by path; ``keep_count`` True in all, or in every leaf, but at least one in every leaf.

    Raises:
      ValueError: for a sparsity outside [0, 1), fewer rounds than one, an unknown scope, or scores that are not finite.

    Example:
      >>> from lepton_jax.pruning.criteria import Magnitude
      >>> masks = iterative_masks(Magnitude(), {"w": jnp.array([[1.0, 4.0], [3.0, 2.0]])}, 0.5, 2, progress=False)
      >>> masks["w"].tolist()
      [[False, True], [True, False]]

    Source: Tanaka, Kunin, Yamins, Ganguli 2020, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", algorithm 1; de Jorge, Sanyal, Behl, Torr, Rogez, Dokania 2021, "Progressive skeletonization", section 4 (iterative
    SNIP, exponential decay).
    """
    check_fraction("sparsity", sparsity)
    check_whole("iterative_masks: rounds", rounds, 1)
    if scope not in ("global", "layer"):
        raise ValueError(f"iterative_masks: scope must be 'global' or 'layer'; got {scope!r}.")
    leaves = paths.select(params, select)
    sizes = {path: leaf.size for path, leaf in leaves.items()}
    groups = (0,) * len(leaves) if scope == "global" else tuple(range(len(leaves)))
    counted = [sum(sizes.values())] if scope == "global" else list(sizes.values())

    @jax.jit
    def prune_more(params: PyTree, masks: dict[Path, Array], keep: Array) -> tuple[dict[Path, Array], Array]:
        held = paths.flatten(params)
        weights = {path: jnp.where(mask, held[path], jnp.zeros((), held[path].dtype)) for path, mask in masks.items()}
        seen = paths.replace(params, weights)
        scores = criterion.score_all(weights, criterion.init_all(weights, seen), seen)
        ranked, allowed = [scores[path] for path in leaves], [masks[path] for path in leaves]
        found = top_of_groups(ranked, keep, groups=groups, allowed=allowed)
        kept = leave_one(found.masks, ranked, allowed, needed=[leaf.ndim > 1 for leaf in leaves.values()])
        return dict(zip(leaves, kept, strict=True)), found.not_finite

    masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in leaves.items()}
    for number in tqdm(range(1, rounds + 1), desc="pruning", unit="round", disable=not progress):
        removed = sparsity if number == rounds else 1 - (1 - sparsity) ** (number / rounds)
        masks, not_finite = prune_more(
            params, masks, counts_of([keep_some(size, removed) for size in counted], wide=is_wide(counted))
        )
        if is_traced(not_finite):  # a caller that compiles this must look at its weights itself
            continue
        with collect(f"iterative_masks: scores must be finite, and are not in round {number}") as problems:
            counts = dict(zip(leaves, not_finite.tolist(), strict=True))
            problems.extend(f"{path}: {count} scores are NaN or infinite" for path, count in counts.items() if count)
    return masks
