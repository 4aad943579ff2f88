"""Mixed precision."""

from lepton_jax.precision.cast import cast

__all__ = ["cast"]
