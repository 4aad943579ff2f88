"""Criteria: what a weight is worth. One file each."""

from lepton_jax.pruning.criteria.base import Criterion
from lepton_jax.pruning.criteria.batch_norm_scale import BatchNormScale
from lepton_jax.pruning.criteria.fisher import Fisher
from lepton_jax.pruning.criteria.given import Given
from lepton_jax.pruning.criteria.grasp import Grasp
from lepton_jax.pruning.criteria.inverted import Inverted
from lepton_jax.pruning.criteria.lamp import Lamp
from lepton_jax.pruning.criteria.layer_normalized import LayerNormalized
from lepton_jax.pruning.criteria.magnitude import Magnitude
from lepton_jax.pruning.criteria.movement import Movement
from lepton_jax.pruning.criteria.random import Random
from lepton_jax.pruning.criteria.saliency import Saliency
from lepton_jax.pruning.criteria.snip import Snip
from lepton_jax.pruning.criteria.synflow import SynFlow
from lepton_jax.pruning.criteria.wanda import Wanda, wanda_masks

__all__ = [
    "BatchNormScale",
    "Criterion",
    "Fisher",
    "Given",
    "Grasp",
    "Inverted",
    "Lamp",
    "LayerNormalized",
    "Magnitude",
    "Movement",
    "Random",
    "Saliency",
    "Snip",
    "SynFlow",
    "Wanda",
    "wanda_masks",
]
