"""Pruning: criteria, structures, allocations and schedules, put together by `prune`."""

from lepton_jax.pruning.masks import keep_count, top
from lepton_jax.pruning.prune import PruneState, apply_mask, prune
from lepton_jax.pruning.structures import Structure, Unstructured
from lepton_jax.pruning.threshold import top_of_all

__all__ = ["PruneState", "Structure", "Unstructured", "apply_mask", "keep_count", "prune", "top", "top_of_all"]
