"""Criteria: what a weight is worth. One file each."""

from lepton_jax.pruning.criteria.base import Criterion
from lepton_jax.pruning.criteria.magnitude import Magnitude

__all__ = ["Criterion", "Magnitude"]
