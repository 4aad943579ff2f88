"""Importance: what a channel is worth. One file each."""

from lepton_jax.pruning.channels.importance.activation import ActivationRank, feature_maps
from lepton_jax.pruning.channels.importance.base import Importance, Normalize, Reduce, channel_scores
from lepton_jax.pruning.channels.importance.elements import Elements
from lepton_jax.pruning.channels.importance.gradient import Fisher, Taylor
from lepton_jax.pruning.channels.importance.median import GeometricMedian
from lepton_jax.pruning.channels.importance.norm import Norm
from lepton_jax.pruning.channels.importance.random import Random
from lepton_jax.pruning.channels.importance.scale import BatchNormScale

__all__ = [
    "ActivationRank",
    "BatchNormScale",
    "Elements",
    "Fisher",
    "GeometricMedian",
    "Importance",
    "Norm",
    "Normalize",
    "Random",
    "Reduce",
    "Taylor",
    "channel_scores",
    "feature_maps",
]
