"""A model split into stages: planned on its graph, each a pure function with variables of its own."""

from lepton_jax.stages.files import SavedStages, load, save
from lepton_jax.stages.plan import Plan, plan
from lepton_jax.stages.verify import Verified, join, verify

__all__ = ["Plan", "SavedStages", "Verified", "join", "load", "plan", "save", "verify"]
