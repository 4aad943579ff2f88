"""Channel pruning that shrinks: groups of coupled channels, plans, smaller models, and the proof that they agree."""

from lepton_jax.pruning.channels.choose import plan
from lepton_jax.pruning.channels.groups import Group, Slices
from lepton_jax.pruning.channels.importance import (
    ActivationRank,
    BatchNormScale,
    Elements,
    Fisher,
    GeometricMedian,
    Importance,
    Norm,
    Random,
    Taylor,
    feature_maps,
)
from lepton_jax.pruning.channels.plan import Plan
from lepton_jax.pruning.channels.regularize import GroupSparsity, channel_norms
from lepton_jax.pruning.channels.rounds import prune_iteratively
from lepton_jax.pruning.channels.verify import Verification, verify

__all__ = [
    "ActivationRank",
    "BatchNormScale",
    "Elements",
    "Fisher",
    "GeometricMedian",
    "Group",
    "GroupSparsity",
    "Importance",
    "Norm",
    "Plan",
    "Random",
    "Slices",
    "Taylor",
    "Verification",
    "channel_norms",
    "feature_maps",
    "plan",
    "prune_iteratively",
    "verify",
]
