"""Pruning: criteria, structures, allocations and schedules, put together by `prune`."""

from lepton_jax.pruning.allocation import Explicit, erk, uniform
from lepton_jax.pruning.balance import UnevenWarning
from lepton_jax.pruning.bit_masks import MaskBits, bit_masks
from lepton_jax.pruning.hide import apply_mask
from lepton_jax.pruning.masks import block, channel, keep_count, keep_some, n_of_m, top
from lepton_jax.pruning.prune import PruneState, prune
from lepton_jax.pruning.rounds import iterative_masks
from lepton_jax.pruning.sensitivity import Sensitivity, sensitivity
from lepton_jax.pruning.sparsegpt import sparsegpt, sparsegpt_prune
from lepton_jax.pruning.state import check_scores
from lepton_jax.pruning.structures import Blocks, Channels, Filters, Heads, NofM, Structure, Unstructured
from lepton_jax.pruning.threshold import Selection, top_of_all, top_of_groups

__all__ = [
    "Blocks",
    "Channels",
    "Explicit",
    "Filters",
    "Heads",
    "MaskBits",
    "NofM",
    "PruneState",
    "Selection",
    "Sensitivity",
    "Structure",
    "UnevenWarning",
    "Unstructured",
    "apply_mask",
    "bit_masks",
    "block",
    "channel",
    "check_scores",
    "erk",
    "iterative_masks",
    "keep_count",
    "keep_some",
    "n_of_m",
    "prune",
    "sensitivity",
    "sparsegpt",
    "sparsegpt_prune",
    "top",
    "top_of_all",
    "top_of_groups",
    "uniform",
]
