"""Sparse training: transforms under which a network is sparse while it trains, and what goes with them.

Static sparse training is `lepton_jax.prune` by random scores: ``prune(0.9, criterion=Random(key=key), allocation=erk)``.
"""

from lepton_jax.pruning.hide import masks_of, nonzero_masks, sparsity_of
from lepton_jax.pruning.sparse_training.ac_dc import ac_dc
from lepton_jax.pruning.sparse_training.adam_by_weight import AdamByWeightState, scale_by_adam_by_weight
from lepton_jax.pruning.sparse_training.dynamic_surgery import SurgeryState, dynamic_surgery
from lepton_jax.pruning.sparse_training.fixed_masks import FixedMasksState, fixed_masks
from lepton_jax.pruning.sparse_training.lottery import (
    LotteryRound,
    RandomReinitialization,
    lottery,
    next_masks,
    rate_rewinding,
    rewind,
    weight_rewinding,
)
from lepton_jax.pruning.sparse_training.moments import masked_moments
from lepton_jax.pruning.sparse_training.rewire import RewireState
from lepton_jax.pruning.sparse_training.rigl import rigl
from lepton_jax.pruning.sparse_training.set import set_
from lepton_jax.pruning.sparse_training.soft_threshold import Thresholded, soft_threshold

__all__ = [
    "AdamByWeightState",
    "FixedMasksState",
    "LotteryRound",
    "RandomReinitialization",
    "RewireState",
    "SurgeryState",
    "Thresholded",
    "ac_dc",
    "dynamic_surgery",
    "fixed_masks",
    "lottery",
    "masked_moments",
    "masks_of",
    "next_masks",
    "nonzero_masks",
    "rate_rewinding",
    "rewind",
    "rigl",
    "scale_by_adam_by_weight",
    "set_",
    "soft_threshold",
    "sparsity_of",
    "weight_rewinding",
]
