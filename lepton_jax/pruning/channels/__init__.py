"""Channel pruning that shrinks: groups of coupled channels, plans, smaller models, and the proof that they agree."""

from lepton_jax.pruning.channels.groups import Group, Slices
from lepton_jax.pruning.channels.importance import (
    BatchNormScale,
    Elements,
    Fisher,
    GeometricMedian,
    Importance,
    Norm,
    Random,
    Taylor,
)
from lepton_jax.pruning.channels.plan import Plan
from lepton_jax.pruning.channels.planning import plan
from lepton_jax.pruning.channels.verify import Verification, verify

__all__ = [
    "BatchNormScale",
    "Elements",
    "Fisher",
    "GeometricMedian",
    "Group",
    "Importance",
    "Norm",
    "Plan",
    "Random",
    "Slices",
    "Taylor",
    "Verification",
    "plan",
    "verify",
]
