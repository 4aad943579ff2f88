"""Choosing ranks: one file a rule."""

from lepton_jax.lowrank.ranks.budget import Budget
from lepton_jax.lowrank.ranks.energy import Energy
from lepton_jax.lowrank.ranks.evbmf import Evbmf
from lepton_jax.lowrank.ranks.fixed import Fixed
from lepton_jax.lowrank.ranks.fraction import Fraction

__all__ = ["Budget", "Energy", "Evbmf", "Fixed", "Fraction"]
