"""Models as files that other engines run, on their own and from other languages."""

from lepton_jax.deploy.save import save

__all__ = ["save"]
