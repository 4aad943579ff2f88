"""Pruning: criteria, structures, allocations and schedules, put together by `prune`."""

from lepton_jax.pruning.allocation import Explicit, erk, uniform
from lepton_jax.pruning.masks import block, channel, keep_count, n_of_m, top
from lepton_jax.pruning.prune import PruneState, apply_mask, prune
from lepton_jax.pruning.structures import Blocks, Channels, Filters, Heads, NofM, Structure, Unstructured
from lepton_jax.pruning.threshold import top_of_all

__all__ = [
    "Blocks",
    "Channels",
    "Explicit",
    "Filters",
    "Heads",
    "NofM",
    "PruneState",
    "Structure",
    "Unstructured",
    "apply_mask",
    "block",
    "channel",
    "erk",
    "keep_count",
    "n_of_m",
    "prune",
    "top",
    "top_of_all",
    "uniform",
]
