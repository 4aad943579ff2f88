"""Low-rank factorization."""

from lepton_jax.lowrank.svd import factorize, low_rank

__all__ = ["factorize", "low_rank"]
