"""Low-rank factorization."""

from lepton_jax.lowrank.method import Method, Rank, RankRule
from lepton_jax.lowrank.svd import Svd, factorize
from lepton_jax.lowrank.transform import SkippedWarning, factors_of, low_rank

__all__ = ["Method", "Rank", "RankRule", "SkippedWarning", "Svd", "factorize", "factors_of", "low_rank"]
