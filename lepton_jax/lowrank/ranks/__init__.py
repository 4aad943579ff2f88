"""Choosing ranks: one file a rule, and what is made of what it says."""

from lepton_jax.lowrank.ranks.budget import Budget
from lepton_jax.lowrank.ranks.choose import RankChoice, RankReport, choose_ranks, keep_faster
from lepton_jax.lowrank.ranks.energy import Energy
from lepton_jax.lowrank.ranks.evbmf import Evbmf
from lepton_jax.lowrank.ranks.fixed import Fixed
from lepton_jax.lowrank.ranks.fraction import Fraction
from lepton_jax.lowrank.ranks.guarded import Guarded

__all__ = [
    "Budget",
    "Energy",
    "Evbmf",
    "Fixed",
    "Fraction",
    "Guarded",
    "RankChoice",
    "RankReport",
    "choose_ranks",
    "keep_faster",
]
